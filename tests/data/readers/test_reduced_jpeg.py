"""JPEG files at the scale that a model needs: the right one, upright, the same wherever a model is asked."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import DataError
from data.joint_inputs import JointPreprocess, UnreadableInputs, unlabelled_loader
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.phantom.radiographs import draw_images
from data.profile import measure
from data.readers.images import read_image, read_reduced
from data.sources.image_files import FileReader
from data.sources.unlabelled import open_unlabelled
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import Preprocess

TO_GREY = {"mean": [0.0], "std": [1 / 255]}


def image(size: int = 400) -> np.ndarray:
    return next(iter(draw_images(1, size))).image


def save(path: Path, pixels: np.ndarray, orientation: int = 1, **options) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95, **options)
    return path


@pytest.mark.parametrize(
    ("least", "shape"),
    [
        ((201, 150), None),
        ((200, 150), (200, 150)),
        ((100, 76), (200, 150)),
        ((100, 75), (100, 75)),
        ((51, 3), (100, 75)),
        ((50, 37), (50, 38)),
        ((1, 1), (50, 38)),
    ],
)
def test_the_smallest_scale_that_leaves_enough(tmp_path, least, shape):
    path = save(tmp_path / "a.jpg", image()[:, :300])
    got = read_reduced(path, least)
    assert (got is None) == (shape is None) and (got is None or (got.shape == shape and got.dtype == np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_swaps_the_sides_before_the_scale_is_chosen(tmp_path, orientation):
    """400 x 160 as stored; lying (5 to 8), 160 x 400 is what is shown, and what `least` speaks of."""
    path = save(tmp_path / "a.jpg", image()[:, :160], orientation)
    lies = orientation >= 5
    least = (80, 200) if lies else (200, 80)
    got, full = read_reduced(path, least), read_image(path)
    assert full.shape == ((160, 400) if lies else (400, 160)) and got.shape == least
    means = full.reshape(least[0], 2, least[1], 2).mean((1, 3))
    assert np.abs(got - means).mean() < 1.0
    assert read_reduced(path, least[::-1]) is None


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (50, 100)])
def test_the_input_hardly_changes(tmp_path, colour, size):
    pixels = image(512)
    pixels = np.dstack([pixels, np.roll(pixels, 40, 0), 255 - pixels]) if colour else pixels
    path = save(tmp_path / "a.jpg", pixels, progressive=colour)
    preprocess = Preprocess(size, 3 if colour else 1, **TO_GREY)
    reduced = read_reduced(path, (2 * size[0], 2 * size[1]))
    assert reduced.shape[0] < 512 and reduced.shape[2:] == ((3,) if colour else ())
    difference = np.abs(preprocess(reduced) - preprocess(read_image(path)))
    print(f"mean {difference.mean():.2f}, at most {difference.max():.0f} grey levels")
    assert difference.mean() < 1.0 and difference.max() < 20
    assert difference.max() > 0  # else nothing was left out


def test_other_formats_and_damaged_files(tmp_path):
    Image.fromarray(image()).save(tmp_path / "a.png")
    assert read_reduced(tmp_path / "a.png", (10, 10)) is None
    content = save(tmp_path / "a.jpg", image()).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    for name in ("cut.jpg", "missing.jpg"):
        with pytest.raises(DataError) as full:
            read_image(tmp_path / name)
        with pytest.raises(DataError) as reduced:
            read_reduced(tmp_path / name, (50, 50))
        assert str(full.value) == str(reduced.value)


def test_a_bomb_is_told_by_its_full_size(tmp_path, monkeypatch):
    path = save(tmp_path / "a.jpg", image())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 400 - 1)
    with warnings.catch_warnings(), pytest.raises(DataError, match="DecompressionBomb"):
        warnings.simplefilter("ignore")
        read_reduced(path, (10, 10))


def test_training_and_prediction_get_the_same_input(tmp_path):
    """By the loader of training and evaluation, by that of predict.py with its traits of the full image."""
    names = tuple(f"{i}.jpg" for i in range(3))
    for i, name in enumerate(names):
        save(tmp_path / name, np.roll(image(), 30 * i, 1))
    one, other = Preprocess((48, 48), 1, **TO_GREY), Preprocess((190, 150), 1, **TO_GREY)
    dataset_index = DatasetIndex(
        ("a",), tuple(Study(n, {IMAGE: n}, np.zeros(1, np.float32)) for n in names), FileReader(tmp_path, names)
    )
    labels = Labels(np.zeros((3, 1), np.float32), np.ones((3, 1), bool))
    loader = ImageLoader(
        ImageDataset(dataset_index, one, 0), labels, EpochBatchSampler(range(3), 3, False, 0), UnreadableImages(0)
    )
    trained = next(loader.epoch(0))[1].inputs.image
    joint, (unlabelled, _) = JointPreprocess([one, other]), open_unlabelled([tmp_path], False)
    _, _, ((first, second), traits) = next(unlabelled_loader(unlabelled, joint, UnreadableInputs(), 3, 0).epoch(0))
    assert torch.equal(first.single_images(), trained)
    for i, name in enumerate(names):
        full = read_image(tmp_path / name)
        np.testing.assert_array_equal(second.image[i], other(full))  # 400 px do not leave twice 190 at half the scale
        for found, expected in zip(traits[i], measure(full), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(trained[i], one(full))
        np.testing.assert_array_equal(trained[i], one(read_reduced(tmp_path / name, (96, 96))))
