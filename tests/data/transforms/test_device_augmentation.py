"""Augmentation on the device: the function that the workers' is, against float64 and cv2, whatever the batch."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch

from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.device_augmentation import DeviceAugmentation
from data.transforms.images import AlbumentationsAugmentation, LightAugmentation, Preprocess, sample_rng
from utils.batch import Batch

CPU = torch.device("cpu")
NO_LIMITS = dict.fromkeys(("rotation_degrees", "scale", "translate", "brightness", "contrast"), 0.0)
LIMITS = {
    "defaults": {},
    "none": NO_LIMITS,
    "mirror": {**NO_LIMITS, "horizontal_flip": 1.0},
    "rotation": {**NO_LIMITS, "rotation_degrees": 180.0},
    "scale": {**NO_LIMITS, "scale": 0.9},
    "shift": {**NO_LIMITS, "translate": 1.0},
    "exposure": {**NO_LIMITS, "brightness": 1.0, "contrast": 1.0},
    "all": {
        "rotation_degrees": 40.0,
        "scale": 0.4,
        "translate": 0.3,
        "brightness": 0.3,
        "contrast": 0.5,
        "horizontal_flip": 0.5,
    },
}
PLAIN = ((0.0,), (1.0,))  # mean and std that leave [0, 1] as it is


def smooth(height: int, width: int, channels: int, seed: int, dtype=np.uint8) -> np.ndarray:
    """Blobs without sharp edges, [H, W, C]."""
    noise = np.random.default_rng(seed).random((height, width, channels))
    blurred = cv2.GaussianBlur(noise, (0, 0), 3.0).reshape(height, width, channels)
    unit = (blurred - blurred.min()) / np.ptp(blurred)
    return np.rint(unit * 255).astype(np.uint8) if dtype == np.uint8 else unit.astype(np.float32)


def halves(limits: dict, size: tuple[int, int], channels: int, mean=PLAIN[0], std=PLAIN[1]) -> DeviceAugmentation:
    return DeviceAugmentation(Preprocess(size, channels, mean, std, augmentation=LightAugmentation(**limits)))


def finished(device: DeviceAugmentation, images: list[np.ndarray], epoch: int = 0) -> torch.Tensor:
    prepared = [device.prepare(image, sample_rng(4, epoch, i)) for i, image in enumerate(images)]
    read = device.collate(prepared)
    return device.device_transform(read.inputs.image, read.augmentation_params)


def exact(unit: np.ndarray, limits: dict, rng: np.random.Generator) -> np.ndarray:
    """LightAugmentation by its docstring, in float64, pixel by pixel; unit: [H, W, C] in [0, 1]."""
    light = {"rotation_degrees": 7.0, "scale": 0.1, "translate": 0.05, "brightness": 0.1, "contrast": 0.1} | limits
    drawn = rng.uniform(-1, 1, 6)
    mirror = rng.random() < light.get("horizontal_flip", 0.0)
    height, width, _ = unit.shape
    turn, size = np.deg2rad(drawn[0] * light["rotation_degrees"]), 1 + drawn[1] * light["scale"]
    down, right = drawn[2] * light["translate"] * height, drawn[3] * light["translate"] * width
    middle = (height - 1) / 2, (width - 1) / 2
    warped = np.zeros_like(unit, dtype=np.float64)
    for y, x in np.ndindex(height, width):
        dy, dx = y - middle[0] - down, x - middle[1] - right
        x_old = (np.cos(turn) * dx - np.sin(turn) * dy) / size
        y_old = (np.sin(turn) * dx + np.cos(turn) * dy) / size
        x_old, y_old = (-x_old if mirror else x_old) + middle[1], y_old + middle[0]
        for row in (int(np.floor(y_old)), int(np.floor(y_old)) + 1):
            for column in (int(np.floor(x_old)), int(np.floor(x_old)) + 1):
                if 0 <= row < height and 0 <= column < width:
                    weight = (1 - abs(y_old - row)) * (1 - abs(x_old - column))
                    warped[y, x] += weight * unit[row, column]
    mean, gain = warped.mean(), 1 + drawn[5] * light["contrast"]
    return np.clip((warped - mean) * gain + mean + drawn[4] * light["brightness"], 0, 1)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(("size", "channels"), [((21, 34), 1), ((28, 19), 3)])
def test_it_is_the_documented_function_in_float64(name, size, channels):
    device = halves(LIMITS[name], size, channels)
    images = [np.random.default_rng(i).random((*size, channels)).astype(np.float32) for i in range(3)]
    found = finished(device, images).numpy()
    for i, (image, result) in enumerate(zip(images, found)):
        expected = exact(image.astype(np.float64), LIMITS[name], sample_rng(4, 0, i))
        np.testing.assert_allclose(result.transpose(1, 2, 0), expected, atol=5e-5)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.float32, 1)])
def test_it_is_the_workers_augmentation_but_for_rounding(name, dtype, channels):
    """cv2 rounds uint8 after the warp and after the exposure: about half a grey level each, a quarter on average."""
    device = halves(LIMITS[name], (90, 70), 3)
    images = [smooth(90, 70, channels, i, dtype) for i in range(8)]
    worst, mean = 0.0, 0.0
    for i, (image, result) in enumerate(zip(images, finished(device, images))):
        by_worker = device.preprocess(image, sample_rng(4, 0, i))
        difference = 255 * np.abs(result.numpy() - by_worker)
        worst, mean = max(worst, difference.max()), max(mean, difference.mean())
    print(f"{name}, {np.dtype(dtype)}, {channels} channels: mean {mean:.3f}, at most {worst:.2f} grey levels")
    assert mean < 0.5 and worst < (2.0 if dtype == np.uint8 else 0.1)


def test_normalisation_and_grey_repeated_are_the_preprocesses():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    device = halves(NO_LIMITS, (24, 32), 3, mean, std)
    images = [smooth(40, 50, 1, i) for i in range(3)]
    expected = np.stack([device.preprocess(image, sample_rng(4, 0, i)) for i, image in enumerate(images)])
    found = finished(device, images)
    assert found.shape == (3, 3, 24, 32) and found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    colour = [smooth(24, 32, 3, i) for i in range(3)]
    np.testing.assert_allclose(
        finished(device, colour).numpy(),
        np.stack([device.preprocess(image, sample_rng(4, 0, i)) for i, image in enumerate(colour)]),
        atol=2e-5,
    )


def test_what_workers_send_is_small():
    device = halves({}, (24, 32), 3)
    grey, augmentation_params, _ = device.prepare(smooth(90, 70, 1, 0)[:, :, 0], sample_rng(0, 0, 0))
    assert grey.shape == (1, 24, 32) and grey.dtype == torch.uint8 and augmentation_params.shape == (8,)
    deep, *_ = device.prepare((smooth(90, 70, 1, 0)[:, :, 0] * 200.0).astype(np.uint16), sample_rng(0, 0, 0))
    assert deep.dtype == torch.float32 and deep.min() >= 0 and deep.max() <= 1


def test_images_of_different_kinds_in_one_batch():
    device = halves({}, (30, 30), 3)
    kinds = [
        smooth(30, 30, 1, 0),
        smooth(30, 30, 3, 1),
        smooth(30, 30, 1, 2, np.float32),
        smooth(30, 30, 3, 3, np.float32),
    ]
    together = finished(device, kinds)
    for i, image in enumerate(kinds):
        fitted, augmentation_params, _ = device.prepare(image, sample_rng(4, 0, i))
        alone = device.device_transform(fitted[None], augmentation_params[None])[0]
        np.testing.assert_allclose(together[i].numpy(), alone.numpy(), atol=1e-6)


def test_an_image_does_not_depend_on_its_batch():
    device = halves({}, (40, 40), 3)
    images = [smooth(40, 40, 1, i) for i in range(7)]
    together = finished(device, images)
    for i, image in enumerate(images):
        fitted, augmentation_params, _ = device.prepare(image, sample_rng(4, 0, i))
        assert torch.equal(device.device_transform(fitted[None], augmentation_params[None])[0], together[i])
    assert not torch.equal(finished(device, images, epoch=1), together)


def test_autocast_around_it_changes_nothing():
    device, images = halves(LIMITS["all"], (40, 40), 3), [smooth(40, 40, 1, i) for i in range(3)]
    plain = finished(device, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(finished(device, images), plain)


def test_other_augmentations_are_refused():
    for augmentation in (None, AlbumentationsAugmentation()):
        with pytest.raises(TypeError, match="only the light augmentation"):
            DeviceAugmentation(Preprocess((8, 8), 1, *PLAIN, augmentation=augmentation))


# ---- batches


COUNT = 11


def loader_of(workers: int = 0, batch: int = 4, pin_memory: bool = False) -> ImageLoader:
    images = [smooth(30, 40, 1, i)[:, :, 0] for i in range(COUNT)]
    dataset_index = DatasetIndex(
        ("a",),
        tuple(Study(f"{i}.png", {IMAGE: f"{i}.png"}, np.zeros(1, np.float32)) for i in range(COUNT)),
        images.__getitem__,
    )
    rng = np.random.default_rng(0)
    labels = Labels(rng.random((COUNT, 1)).astype(np.float32), rng.random((COUNT, 1)) < 0.5)
    dataset = ImageDataset(dataset_index, halves({}, (24, 32), 3), seed=4)
    batches = EpochBatchSampler(np.arange(COUNT), batch, True, 4)
    return ImageLoader(dataset, labels, batches, UnreadableImages(0), workers, pin_memory)


def moved(loader: ImageLoader, epoch: int, start: int = 0) -> list[Batch]:
    return [batch.to(CPU) for _, batch in loader.epoch(epoch, start)]


def test_a_moved_batch_is_finished_once_and_is_the_preprocesses():
    loader = loader_of()
    batches = [batch for _, batch in loader.epoch(2)]
    assert sum(map(len, batches)) == len(loader.indices) > 0
    for batch in batches:
        assert batch.inputs.image.dtype == torch.uint8 and batch.inputs.image.shape[1:] == (1, 24, 32)
        ready = batch.to(CPU, torch.channels_last)
        image = ready.inputs.image
        assert image.shape[1:] == (3, 24, 32) and image.is_contiguous(memory_format=torch.channels_last)
        assert ready.device_transform is ready.augmentation_params is None
        assert torch.equal(ready.to(CPU).inputs.image, image)
        assert torch.equal(ready.targets.labels, batch.targets.labels)
        for image, row in zip(ready.inputs.image.numpy(), ready.index.tolist(), strict=True):
            by_worker = loader.dataset.transform.preprocess(
                loader.dataset.dataset_index.read(row), sample_rng(4, 2, row)
            )
            assert 255 * np.abs(image - by_worker).mean() < 0.5


def test_workers_and_where_an_epoch_begins_change_no_bit():
    alone, shared = loader_of(), loader_of(workers=2)
    whole = moved(alone, 1)
    for start in (0, 1, 2):
        for one, other in zip(whole[start:], moved(shared, 1, start), strict=True):
            assert torch.equal(one.inputs.image, other.inputs.image) and torch.equal(one.index, other.index)
    assert not torch.equal(whole[0].inputs.image, moved(alone, 2)[0].inputs.image)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_cut_batch_is_finished_part_by_part(parts):
    batches = [batch for _, batch in loader_of(batch=6).epoch(0)]
    assert len(batches) > 0
    for batch in batches:
        pieces = batch.split(parts)
        assert len(pieces) == min(parts, len(batch))
        assert torch.equal(torch.cat([piece.to(CPU).inputs.image for piece in pieces]), batch.to(CPU).inputs.image)


def test_it_can_be_pickled_and_copied_after_use():
    device, images = halves({}, (24, 32), 3), [smooth(24, 32, 1, i) for i in range(2)]
    expected = finished(device, images)
    for other in (pickle.loads(pickle.dumps(device)), copy.deepcopy(device)):
        assert torch.equal(finished(other, images), expected)
