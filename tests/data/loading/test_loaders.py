"""Batches: order and augmentation follow from (seed, epoch, sample), whoever loads them and wherever they start."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import DataError
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.sources.image_files import FileReader
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import LightAugmentation, Preprocess, sample_rng

COUNT, SEED = 23, 5
NAMES = tuple(f"image_{index:02d}.png" for index in range(COUNT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
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


def random_labels(coarse: bool = True) -> Labels:
    rng = np.random.default_rng(3)
    target = rng.random((COUNT, 3)).astype(np.float32)
    mask = rng.random((COUNT, 3)) < 0.7
    if not coarse:
        return Labels(target, mask)
    return Labels(target, mask, rng.random((COUNT, 2)).astype(np.float32), rng.random((COUNT, 2)) < 0.7)


def make_loader(root: Path, workers=0, indices=None, batch=4, shuffle=True, augment=True, seed=SEED, bad=None, **other):
    studies = tuple(Study(name, {IMAGE: name}, np.zeros(3, np.float32)) for name in NAMES)
    dataset_index = DatasetIndex(("a", "b", "c"), studies, FileReader(root, NAMES))
    augmentation = LightAugmentation() if augment else None
    preprocess = Preprocess((16, 16), 1, [0.5], [0.25], augmentation=augmentation)
    batches = EpochBatchSampler(np.arange(COUNT) if indices is None else indices, batch, shuffle, seed)
    labels = other.get("labels") or random_labels()
    bad = UnreadableImages(0) if bad is None else bad
    return ImageLoader(ImageDataset(dataset_index, preprocess, seed), labels, batches, bad, workers)


def contents(loader, epoch: int, start: int = 0) -> list[tuple]:
    """Everything an epoch gives, as bytes that == compares bit by bit."""
    return [
        (number, *(tensor.numpy().tobytes() for tensor in (*batch.inputs, *batch.targets[:4], batch.index)))
        for number, batch in loader.epoch(epoch, start)
        if batch.targets.given is None  # which a user's own loader alone has
    ]


def order(loader, epoch: int) -> list[int]:
    return [index for _, batch in loader.epoch(epoch) for index in batch.index.tolist()]


def batches_of(loader, epoch: int, left_out: tuple[int, ...] = ()) -> list:
    """The batches of an epoch, which hold every image but those."""
    batches = [batch for _, batch in loader.epoch(epoch)]
    rows = sorted(index for batch in batches for index in batch.index.tolist())
    assert rows == sorted(set(loader.indices.tolist()) - set(left_out)) and rows
    return batches


# ---- order


def test_order_follows_from_seed_and_epoch_alone(folder):
    first, second = make_loader(folder), make_loader(folder)
    orders = [order(first, epoch) for epoch in range(4)]
    assert [order(second, epoch) for epoch in (3, 0, 2, 1)] == [orders[epoch] for epoch in (3, 0, 2, 1)]
    other_seed = [order(make_loader(folder, seed=SEED + 1), epoch) for epoch in range(4)]
    assert len({tuple(o) for o in [*orders, *other_seed]}) == 8


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_image_of_the_split_comes_once_an_epoch(folder, shuffle):
    indices = np.array([1, 2, 5, 7, 11, 12, 13, 17, 19, 22])
    loader = make_loader(folder, indices=indices, shuffle=shuffle)
    orders = [order(loader, epoch) for epoch in range(3)]
    assert all(sorted(o) == indices.tolist() for o in orders)
    assert all((o == indices.tolist()) is not shuffle for o in orders)
    assert len(loader) == 3 == len(contents(loader, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_any_batch(folder, workers):
    loader = make_loader(folder, workers)
    whole = contents(loader, 1)
    assert [entry[0] for entry in whole] == list(range(6))
    for start in range(7) if workers == 0 else (0, 4, 6):
        assert contents(loader, 1, start) == whole[start:]


# ---- workers


def test_workers_change_no_bit(folder):
    alone, shared = make_loader(folder), make_loader(folder, workers=2)
    epochs = [contents(alone, epoch) for epoch in range(3)]
    assert [contents(shared, epoch) for epoch in (2, 0, 1)] == [epochs[epoch] for epoch in (2, 0, 1)]
    abandoned = shared.epoch(2)
    next(abandoned)
    assert contents(shared, 0) == epochs[0]
    assert len({entry[1] for epoch in epochs for entry in epoch}) == 18, "augmentation must differ by epoch"


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_numbers_are_left_alone(folder, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    loader = make_loader(folder, workers)
    for epoch in range(2):
        contents(loader, epoch)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


# ---- content


@pytest.mark.parametrize("augment", [True, False])
def test_each_image_is_its_file_preprocessed(folder, augment):
    augmentation = LightAugmentation() if augment else None
    preprocess = Preprocess((16, 16), 1, [0.5], [0.25], augmentation=augmentation)
    for batch in batches_of(make_loader(folder, augment=augment), 2):
        for image, index in zip(batch.inputs.image, batch.index.tolist(), strict=True):
            pixels = np.asarray(Image.open(folder / NAMES[index]))
            expected = preprocess(pixels, sample_rng(SEED, 2, index) if augment else None)
            assert (image.numpy() == expected).all()


def test_labels_and_names_belong_to_the_images(folder):
    labels, loader = random_labels(), make_loader(folder)
    for batch in batches_of(loader, 0):
        assert batch.index.dtype == torch.int64
        for row, index in enumerate(batch.index.tolist()):
            known = (labels.target, labels.mask, labels.coarse_target, labels.coarse_mask)
            for found, expected in zip(batch.targets[:4], known, strict=True):
                assert (found[row].numpy() == expected[index]).all()
        assert loader.names(batch.index) == [NAMES[index] for index in batch.index.tolist()]


def test_without_coarse_classes_there_are_no_coarse_labels(folder):
    _, batch = next(make_loader(folder, labels=random_labels(coarse=False)).epoch(0))
    moved = batch.to(torch.device("cpu"), torch.channels_last)
    assert (
        batch.targets.coarse is batch.targets.coarse_mask is moved.targets.coarse is moved.targets.coarse_mask is None
    )
    assert moved.inputs.image.is_contiguous(memory_format=torch.channels_last)
    assert (
        torch.equal(moved.inputs.image, batch.inputs.image)
        and torch.equal(moved.targets.mask, batch.targets.mask)
        and len(moved) == 4
    )


# ---- images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_named_and_counted_once(damaged, folder, caplog, workers):
    root, bad = damaged(3, 9), UnreadableImages(2)
    loaders = [make_loader(root, workers, bad=bad), make_loader(root, 0, indices=[2, 3, 4], bad=bad)]
    whole = make_loader(folder)
    for epoch in range(3):
        for loader, expected in zip(loaders, (whole, make_loader(folder, indices=[2, 3, 4]))):
            wanted = [index for index in order(expected, epoch) if index not in (3, 9)]
            assert order(loader, epoch) == wanted
    assert set(bad.reasons) == {3, 9}
    assert all(NAMES[index] in reason for index, reason in bad.reasons.items())
    warned = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(warned) == 2 and sorted(NAMES[i] for i in (3, 9) for w in warned if NAMES[i] in w) == [
        NAMES[3],
        NAMES[9],
    ]


def test_the_others_of_a_batch_with_a_bad_image_are_unchanged(damaged, folder):
    whole = {int(i): image for _, b in make_loader(folder).epoch(0) for i, image in zip(b.index, b.inputs.image)}
    labels = random_labels()
    for batch in batches_of(make_loader(damaged(3, 9), bad=UnreadableImages(2)), 0, left_out=(3, 9)):
        assert len(batch) == len(batch.inputs.image) == len(batch.targets.labels) == len(batch.targets.coarse_mask)
        for row, index in enumerate(batch.index.tolist()):
            assert torch.equal(batch.inputs.image[row], whole[index])
            assert (batch.targets.labels[row].numpy() == labels.target[index]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_image_too_many_is_an_error_that_names_all(damaged, workers):
    loader = make_loader(damaged(0, 7, 15), workers, bad=UnreadableImages(2))
    with pytest.raises(DataError, match="max_bad_images") as error:
        order(loader, 0)
    assert all(NAMES[index] in str(error.value) for index in (0, 7, 15))
    with pytest.raises(DataError):
        order(make_loader(damaged(4)), 0)


def test_a_batch_of_bad_images_is_none(damaged):
    loader = make_loader(damaged(4, 5, 6, 7), shuffle=False, bad=UnreadableImages(4))
    batches = list(loader.epoch(0))
    assert [number for number, _ in batches] == list(range(6))
    assert [batch is None for _, batch in batches] == [False, True, False, False, False, False]
