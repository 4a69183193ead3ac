"""Which images a saved run was trained on, when its model meets data again."""

import numpy as np
import pytest

from configs.errors import DataError
from data.splits.assignment import write_split
from data.splits.saved_split import saved_split
from data.study import IMAGE, DatasetIndex, Study


def dataset_index(splits: list[str | None], start: int = 0, patients: int = 2) -> DatasetIndex:
    studies = tuple(
        Study(f"{n}.png", {IMAGE: f"{n}.png"}, np.array([n % 2], np.float32), f"p{n // patients}", split)
        for n, split in enumerate(splits, start)
    )
    return DatasetIndex(("Mass",), studies, lambda index: np.zeros((2, 2), np.uint8))


SPLITS = ["train", "train", "val", "val", "test", "test"]


@pytest.fixture
def saved(tmp_path):
    """(split.csv, its digest)."""
    path = tmp_path / "split.csv"
    return path, write_split(path, dataset_index([None] * 6), np.array(SPLITS))


def test_the_runs_own_split(saved):
    split = saved_split(dataset_index([None] * 6), *saved, own_data=True)
    assert split.own and split.assignment.tolist() == SPLITS and not split.warnings
    assert split.rows("test").tolist() == [4, 5] and split.rows("all").tolist() == list(range(6))
    assert split.has("val") and split.concerns("test") == []
    assert "trained on 2 of these" in split.concerns("all")[0]
    assert "trained on 2 of these" in split.concerns("train")[0]


def test_another_digest_is_a_warning_and_not_the_runs_own(saved):
    for digest, words in (("0" * 64, "another split"), (None, "does not say")):
        split = saved_split(dataset_index([None] * 6), saved[0], digest, own_data=True)
        assert not split.own and words in split.warnings[0] and split.assignment.tolist() == SPLITS


def test_patients_on_both_sides_are_said(tmp_path):
    path, torn = tmp_path / "split.csv", dataset_index([None] * 6, patients=6)
    split = saved_split(torn, path, write_split(path, torn, np.array(SPLITS)), own_data=True)
    assert "1 patients are in train and test" in split.concerns("test")[0]


def test_other_data_have_their_own_splits_or_none(saved):
    other = dataset_index(["test", "test", None, None], start=10)
    split = saved_split(other, *saved, own_data=False)
    assert not split.own and split.rows("test").tolist() == [0, 1] and not split.has("val")
    assert split.concerns("test") == []
    with pytest.raises(DataError, match=r"no val split in the data; there is test \(2 images\)"):
        split.rows("val")
    nothing = saved_split(dataset_index([None] * 3, start=10), *saved, own_data=False)
    with pytest.raises(DataError, match=r"there are none: .*--split all"):
        nothing.rows("test")


def test_other_data_with_names_of_training_images_are_suspicious(saved):
    mixed = dataset_index(["test"] * 8)
    split = saved_split(mixed, *saved, own_data=False)
    assert "2 of these images or their patients" in split.concerns("test")[0]


def test_the_runs_own_data_must_fit_their_split(saved):
    with pytest.raises(DataError, match="split of other images"):
        saved_split(dataset_index([None] * 8), *saved, own_data=True)


def test_without_a_split_file_nothing_is_drawn(tmp_path):
    split = saved_split(dataset_index([None] * 6), tmp_path / "split.csv", None, own_data=True)
    assert split.assignment.tolist() == [""] * 6 and not split.own
