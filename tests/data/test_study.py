"""A study: its name is its identity, its files stand beside it."""

import cv2
import numpy as np
import pytest

from data.cache.reader import Recipe
from data.cache.stamps import stamps
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.regions.annotations import Regions
from data.sources.image_files import FileReader
from data.splits.assignment import assign_splits, read_split, write_split
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import Preprocess

COUNT = 8


@pytest.fixture
def renamed(tmp_path) -> DatasetIndex:
    """Studies whose names say nothing of their files: a source to come may take an accession number."""
    studies = []
    for i in range(COUNT):
        file = f"deep/{COUNT - i}.png"
        (tmp_path / "deep").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / file), np.full((16, 16), 10 * i, np.uint8))
        studies.append(Study(f"accession {i}", {IMAGE: file}, np.array([i % 2], np.float32)))
    return DatasetIndex(("a",), tuple(studies), FileReader(tmp_path, tuple(study.file for study in studies)))


def test_what_is_drawn_together_has_the_text_that_splits_depend_on():
    assert Study("a.png", {IMAGE: "b.png"}, np.zeros(1)).group == "image:a.png"
    assert Study("a.png", {IMAGE: "b.png"}, np.zeros(1), "p7").group == "p7"
    assert Study("a.png", {"PA": "b.png"}, np.zeros(1)).file == "b.png"


def test_names_are_shown_and_files_are_opened(renamed, tmp_path):
    labels = Labels(renamed.label_matrix(), np.ones((COUNT, 1), bool))
    dataset = ImageDataset(renamed, Preprocess((16, 16), 1, [0.0], [1 / 255]), 0)
    loader = ImageLoader(dataset, labels, EpochBatchSampler(np.arange(COUNT), 3, False, 0), UnreadableImages(0))
    for _, batch in loader.epoch(0):
        assert loader.names(batch.index) == [f"accession {row}" for row in batch.index.tolist()]
        np.testing.assert_allclose(batch.inputs.image[:, 0, 0, 0], 10.0 * batch.index, rtol=1e-6)
    assert renamed.files(0) == (tmp_path / "deep" / f"{COUNT}.png",)


def test_a_split_and_a_cache_are_of_names(renamed, tmp_path):
    assignment = assign_splits(renamed, (0.5, 0.25, 0.25))
    write_split(tmp_path / "split.csv", renamed, assignment)
    assert "accession 3,," in (tmp_path / "split.csv").read_text()
    assert (read_split(tmp_path / "split.csv", renamed) == assignment).all()
    assert Recipe.of(renamed, Preprocess((8, 8), 1, [0.5], [0.5]), tmp_path).names[3] == "accession 3"
    before = stamps(renamed)
    cv2.imwrite(str(tmp_path / renamed.studies[3].file), np.zeros((20, 20), np.uint8))
    assert np.flatnonzero((stamps(renamed) != before).any(1)).tolist() == [3]


def test_a_mask_is_called_as_the_file_is(renamed, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / f"{COUNT - 1}.png").touch()
    regions = Regions(renamed, None, tmp_path / "masks")
    assert [regions.classes(row) for row in range(3)] == [(), (0,), ()]
