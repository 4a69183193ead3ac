"""Batches of studies: ragged images in order, gaps masked, what is random a function of (seed, epoch, study, view)."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.errors import DataError
from data.loading.loaders import EpochBatchSampler, ImageLoader, Labels, UnreadableImages
from data.loading.studies import EncodedTable, StudyDataset, StudyDropout, StudyInputs, view_rng
from data.readers.volumes import Volume
from data.sources.image_files import FileReader
from data.study import IMAGE, DatasetIndex, Study, StudyImages, StudyReader
from data.transforms.device_augmentation import DeviceAugmentation
from data.transforms.images import LightAugmentation, Preprocess, sample_rng
from data.transforms.volumes import VolumePreprocess

SIZES = (1, 2, 3, 1, 2, 4, 1, 2)  # images of each study
STARTS = np.cumsum([0, *SIZES])
COUNT, F, SEED = len(SIZES), 3, 4
NAMES = tuple(f"{index:02d}.png" for index in range(STARTS[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    for index, name in enumerate(NAMES):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24), dtype=np.uint8)
        assert cv2.imwrite(str(root / name), pixels)
    return root


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the folder in which some images are cut short."""

    def damage(*indices: int) -> Path:
        for index, name in enumerate(NAMES):
            content = (folder / name).read_bytes()
            (tmp_path / name).write_bytes(content[: len(content) // 2] if index in indices else content)
        return tmp_path

    return damage


def index_of(root: Path) -> DatasetIndex:
    label = np.zeros(1, np.float32)
    images = DatasetIndex(("a",), tuple(Study(n, {IMAGE: n}, label) for n in NAMES), FileReader(root, NAMES))
    rows = tuple(tuple(range(start, start + size)) for start, size in zip(STARTS, SIZES))
    kinds = tuple(tuple((row + view) % 3 for view in range(len(own))) for row, own in enumerate(rows))
    together = StudyImages(images, rows, kinds, {"frontal": ("PA",), "lateral": ("L",)})
    studies = tuple(
        Study(f"s{row}", {f"v{view}": NAMES[image] for view, image in enumerate(own)}, label)
        for row, own in enumerate(rows)
    )
    return DatasetIndex(("a",), studies, StudyReader(together), images=together)


def table() -> EncodedTable:
    rng = np.random.default_rng(1)
    known = rng.random((COUNT, F)) < 0.7
    known[2] = False
    return EncodedTable(np.where(known, rng.normal(size=(COUNT, F)), 0).astype(np.float32), known)


def make_loader(root, workers=0, dropout=None, bad=None, augment=True, batch=3, shuffle=True, device=False, **other):
    preprocess = Preprocess((16, 16), 1, [0.5], [0.25], augmentation=LightAugmentation() if augment else None)
    transform = DeviceAugmentation(preprocess) if device else preprocess
    encoded = other.get("table", table())
    dataset = StudyDataset(index_of(root), StudyInputs(transform), SEED, encoded, dropout or StudyDropout())
    labels = Labels(np.arange(COUNT, dtype=np.float32)[:, None], np.ones((COUNT, 1), bool))
    batches = EpochBatchSampler(other.get("rows", np.arange(COUNT)), batch, shuffle, SEED)
    return ImageLoader(dataset, labels, batches, bad or UnreadableImages(0), workers)


def contents(loader, epoch: int, start: int = 0) -> list[tuple]:
    return [
        (number, *(tensor.numpy().tobytes() for tensor in (*batch.inputs, *batch.targets[:2], batch.index)))
        for number, batch in loader.epoch(epoch, start)
    ]


def by_study(loader, epoch: int = 0) -> dict[int, tuple]:
    """Row → its images [v, C, H, W], mask, kinds, values, known."""
    found = {}
    for _, batch in loader.epoch(epoch):
        inputs, counts = batch.inputs, batch.inputs.view_mask.sum(1).tolist()
        for row, images, *rest in zip(batch.index.tolist(), torch.split(inputs.image, counts), *inputs[1:]):
            found[row] = (images, *rest)
    return found


def test_images_follow_one_another_study_after_study(folder):
    loader = make_loader(folder, augment=False, shuffle=False)
    plain = Preprocess((16, 16), 1, [0.5], [0.25])
    images = index_of(folder).image_index
    for _, batch in loader.epoch(0):
        rows = batch.index.tolist()
        expected = [plain.apply(images, int(i)).image for row in rows for i in range(STARTS[row], STARTS[row + 1])]
        assert torch.equal(batch.inputs.image, torch.stack(expected))
        assert batch.inputs.view_mask.tolist() == [
            [view < SIZES[row] for view in range(max(SIZES[r] for r in rows))] for row in rows
        ]
        for row, kinds, mask in zip(rows, batch.inputs.view_kind, batch.inputs.view_mask):
            assert kinds[mask].tolist() == [(row + view) % 3 for view in range(SIZES[row])]
        assert batch.inputs.table.numpy().tobytes() == table().values[rows].tobytes()
        assert batch.inputs.table_mask.tolist() == table().known[rows].tolist()
        assert batch.targets.labels[:, 0].tolist() == rows
        assert len(batch) == len(rows) == batch.inputs.studies


def test_batches_can_be_cut_by_studies(folder):
    (_, batch), *_ = make_loader(folder, batch=8, device=True).epoch(0)
    parts = batch.split(3)
    assert [len(part.inputs.image) for part in parts] == [int(p.inputs.view_mask.sum()) for p in parts]
    assert torch.equal(torch.cat([part.inputs.image for part in parts]), batch.inputs.image)
    assert torch.equal(torch.cat([part.augmentation_params for part in parts]), batch.augmentation_params)
    finished = batch.to(torch.device("cpu"))
    assert finished.inputs.image.dtype == torch.float32 and len(finished.inputs.image) == sum(SIZES)


@pytest.mark.parametrize("dropout", [StudyDropout(), StudyDropout(0.4, 0.3)])
def test_workers_batches_and_beginning_change_nothing(folder, dropout):
    alone = contents(make_loader(folder, dropout=dropout), 2)
    assert contents(make_loader(folder, 2, dropout=dropout), 2) == alone
    assert contents(make_loader(folder, dropout=dropout), 2, 1) == alone[1:]
    together, single = (by_study(make_loader(folder, dropout=dropout, batch=size), 2) for size in (5, 1))
    for row, (images, mask, kinds, *rest) in together.items():
        one_images, one_mask, one_kinds, *one_rest = single[row]
        assert torch.equal(images, one_images) and torch.equal(mask[: SIZES[row]], one_mask)
        assert torch.equal(kinds[: SIZES[row]], one_kinds) and not mask[SIZES[row] :].any()
        assert all(torch.equal(a, b) for a, b in zip(rest, one_rest))


def test_the_first_image_is_augmented_as_ever_and_others_otherwise(folder):
    preprocess = Preprocess((16, 16), 1, [0.5], [0.25], augmentation=LightAugmentation())
    images = index_of(folder).image_index
    for row, (read, *_) in by_study(make_loader(folder), 3).items():
        first = preprocess.apply(images, int(STARTS[row]), sample_rng(SEED, 3, row)).image
        assert torch.equal(read[0], first)
    states = [view_rng(1, 2, 3, view).random() for view in (None, 0, 1, 2)]
    states += [view_rng(1, 2, 4, view).random() for view in (None, 0, 1)]
    states += [view_rng(1, 3, 3, view).random() for view in (None, 0, 1)]
    assert len(set(states)) == 10


def test_dropped_views_are_not_read_and_one_is_left(folder, monkeypatch):
    reads: list[int] = []
    read = FileReader.__call__
    monkeypatch.setattr(FileReader, "__call__", lambda self, index: reads.append(index) or read(self, index))
    kept = np.zeros(sum(SIZES))
    withheld = 0
    loader = make_loader(folder, dropout=StudyDropout(0.5, 0.25), augment=False)
    for epoch in range(60):
        reads.clear()
        found = by_study(loader, epoch)
        masks = {row: mask[: SIZES[row]].numpy() for row, (_, mask, *_) in found.items()}
        assert all(mask.any() for mask in masks.values())
        assert sorted(reads) == [int(STARTS[row]) + v for row in sorted(masks) for v in np.flatnonzero(masks[row])]
        kept += np.concatenate([masks[row] for row in range(COUNT)])
        withheld += sum(not known.any() for row, (*_, known) in found.items() if row != 2)
        assert all((values[~known] == 0).all() for *_, values, known in found.values())
    shares = [kept[start : start + size].mean() / 60 for start, size in zip(STARTS, SIZES)]
    for size, share in zip(SIZES, shares):  # of n views one is left where all n were dropped
        assert share == pytest.approx(0.5 + 0.5**size / size, abs=0.13)
    assert withheld / (60 * (COUNT - 1)) == pytest.approx(0.25, abs=0.05)  # 3 deviations of the binomial are 0.063


def test_each_view_may_be_the_one_that_is_left():
    """Where all were dropped: 0.8^3 of 4,000 draws, a third each; 3 deviations of the binomial are 0.031."""
    rng = np.random.default_rng(0)
    left = np.zeros(3)
    for _ in range(4000):
        kept, _ = StudyDropout(0.8).draw(rng, 3)
        left += kept if kept.sum() == 1 else 0
    np.testing.assert_allclose(left / left.sum(), 1 / 3, atol=0.031)


def test_evaluation_withholds_nothing(folder):
    one, other = (by_study(make_loader(folder, augment=False), epoch) for epoch in (0, 7))
    assert all(torch.equal(a, b) for row in one for a, b in zip(one[row], other[row]) if a.shape == b.shape)


def test_an_unreadable_image_is_a_view_that_is_missing(damaged):
    bad = UnreadableImages(2)
    root = damaged(int(STARTS[5]) + 1, int(STARTS[0]))  # one of four, and the only one of a study with a table
    found = by_study(make_loader(root, bad=bad, augment=False))
    assert found[5][1].tolist() == [True, False, True, True] and len(found[5][0]) == 3
    assert not found[0][1].any() and len(found[0][0]) == 0 and found[0][4].any()
    assert sorted(bad.reasons) == [0, STARTS[5] + 1]
    kinds = [(5 + view) % 3 for view in range(4)]
    assert found[5][2].tolist() == kinds
    with pytest.raises(DataError, match="max_bad_images allows 1"):
        by_study(make_loader(root, bad=UnreadableImages(1)))


def test_volumes_may_be_views():
    """Phases of one examination."""
    volumes = [Volume(np.random.default_rng(i).random((6, 7, 8), np.float32), np.eye(4)) for i in range(3)]
    label = np.zeros(1, np.float32)
    index = DatasetIndex(("a",), tuple(Study(f"{i}", {IMAGE: f"{i}"}, label) for i in range(3)), volumes.__getitem__)
    images = StudyImages(index, ((0, 1), (2,)), ((0, 1), (0,)), {"arterial": (), "venous": ()})
    studies = (Study("s", {"arterial": "0", "venous": "1"}, label), Study("t", {"arterial": "2"}, label))
    both = DatasetIndex(("a",), studies, StudyReader(images), images=images)
    dataset = StudyDataset(both, StudyInputs(VolumePreprocess((4, 4, 4), 1, [0.5], [0.25])), 0)
    inputs = dataset.transform.collate([dataset[0, 0].value, dataset[0, 1].value]).inputs
    assert inputs.image.shape == (3, 1, 4, 4, 4) and inputs.view_mask.tolist() == [[True, True], [True, False]]


def test_a_study_of_which_nothing_is_known_is_left_out(damaged):
    bad = UnreadableImages(9)
    root = damaged(*range(STARTS[2], STARTS[3]), STARTS[3])
    without = EncodedTable.none(COUNT)
    found = by_study(make_loader(root, bad=bad, table=without))
    assert sorted(found) == [0, 1, 4, 5, 6, 7] and len(bad.reasons) == 4
    (number, batch), *_ = make_loader(root, bad=UnreadableImages(9), table=without, rows=[2, 3], batch=2).epoch(0)
    assert (number, batch) == (0, None)


def test_a_view_that_was_withheld_is_read_where_the_others_cannot_be(damaged):
    root = damaged(int(STARTS[1]))
    loader = make_loader(root, dropout=StudyDropout(0.9), bad=UnreadableImages(1), rows=[1], batch=1)
    for epoch in range(20):
        (images, mask, *_) = by_study(loader, epoch)[1]
        assert mask.tolist() == [False, True] and len(images) == 1


@pytest.mark.parametrize("device", [False, True])
def test_a_batch_without_any_image(damaged, device):
    """Only their table is known of these studies."""
    root = damaged(STARTS[0], STARTS[3])
    loader = make_loader(root, bad=UnreadableImages(2), rows=[0, 3], batch=2, device=device)
    (_, batch), *_ = loader.epoch(0)
    finished = batch.to(torch.device("cpu"))
    assert finished.inputs.image.shape == (0, 1, 16, 16) and finished.inputs.image.dtype == torch.float32
    assert not finished.inputs.view_mask.any() and finished.inputs.table_mask.any(1).all()


def test_dropout_of_all_is_refused():
    with pytest.raises(ValueError, match="dropout of views"):
        StudyDropout(1.0)
