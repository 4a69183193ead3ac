"""Regions go where their images go, in a worker and on the device's code path; the first view is as without them."""

import cv2
import numpy as np
import pytest
import torch

from data.loading.studies import ReadStudy, StudyInputs
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.device_augmentation import DeviceAugmentation
from data.transforms.guided import Guided, Region
from data.transforms.images import LightAugmentation, Preprocess, sample_rng
from utils.batch import Batch, Inputs, Targets
from utils.guidance import ANY_CLASS

SIZE = (40, 48)
SHAPE = (60, 90)


def spot(row: int, column: int, shape=SHAPE) -> np.ndarray:
    """A small disc, uint8: the same picture is an image and its own region."""
    return cv2.circle(np.zeros(shape, np.uint8), (column, row), 5, 255, -1)


IMAGES = [spot(20, 30), spot(40, 60), np.zeros(SHAPE, np.uint8)]


def index_of(images) -> DatasetIndex:
    studies = tuple(Study(f"{i}", {IMAGE: f"{i}"}, np.zeros(1, np.float32)) for i in range(len(images)))
    return DatasetIndex(("spot",), studies, images.__getitem__)


class Own:
    """The region of an image is what is bright in it."""

    def of(self, row: int) -> list[Region]:
        return [Region(ANY_CLASS, IMAGES[row] > 127)]


def preprocess(mode: str, flip: float = 0.5, augment: bool = True) -> Preprocess:
    augmentation = LightAugmentation(25.0, 0.2, 0.1, 0.0, 0.0, flip) if augment else None
    return Preprocess(SIZE, 1, [0.0], [1.0], mode, augmentation)


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_region_lies_where_its_image_does(mode, on_device, seed):
    """Rotation, scale, shift, mirror, resizing and padding: the region is the image that it was drawn from."""
    plain = preprocess(mode)
    transform = Guided(DeviceAugmentation(plain) if on_device else plain, Own())
    read = transform.collate([transform.apply(index_of(IMAGES), row, sample_rng(seed, 0, row)) for row in range(2)])
    targets = Targets(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    device_transform = transform.device_transform
    assert (device_transform is not None) == on_device
    batch = Batch(read.inputs, targets, torch.arange(2), read.augmentation_params, device_transform, read.guidance)
    image, regions = batch.to(torch.device("cpu")).inputs.image, batch.to(torch.device("cpu")).guidance.regions
    assert regions.image.tolist() == [0, 1] and image.amax() > 0.5
    assert (image[:, 0] - regions.share / 255.0).abs().amax() < 0.04  # cv2 rounds to whole grey levels


def test_a_region_without_augmentation_is_the_fitted_mask():
    transform = Guided(preprocess("letterbox", augment=False), Own())
    found = transform.apply(index_of(IMAGES), 0, sample_rng(0, 0, 0))
    share = torch.tensor(found.guidance.regions[0], dtype=torch.float32) / 255
    assert torch.allclose(found.image[0], share, atol=1e-6) and share.amax() > 0.9


@pytest.mark.parametrize("on_device", [False, True])
def test_the_first_view_is_as_without_guidance(on_device):
    plain = preprocess("stretch")
    inner = DeviceAugmentation(plain) if on_device else plain
    for regions, second in ((Own(), False), (None, True)):
        guided = Guided(inner, regions, second)
        for row in range(3):
            one, other = (t.apply(index_of(IMAGES), row, sample_rng(1, 2, row)) for t in (inner, guided))
            assert torch.equal(one.image, other.image)
            assert (one.augmentation_params is None) or torch.equal(one.augmentation_params, other.augmentation_params)


@pytest.mark.parametrize("on_device", [False, True])
def test_both_views_are_warps_by_their_maps(on_device):
    """What cv2 makes of the fitted image by either map."""
    plain = preprocess("stretch")
    transform = Guided(DeviceAugmentation(plain) if on_device else plain, None, second=True)
    read = transform.collate([transform.apply(index_of(IMAGES), row, sample_rng(4, 0, row)) for row in range(2)])
    targets = Targets(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))
    batch = Batch(
        read.inputs, targets, torch.arange(2), read.augmentation_params, transform.device_transform, read.guidance
    ).to(torch.device("cpu"))
    second = batch.guidance.second
    assert not torch.equal(batch.inputs.image, second.image)
    for row in range(2):
        fitted = plain.fit(IMAGES[row])[:, :, 0]
        for view, image in enumerate((batch.inputs.image, second.image)):
            matrix = second.maps[row, view].double().numpy()
            expected = cv2.warpAffine(fitted, matrix, SIZE[::-1], flags=cv2.INTER_LINEAR)
            assert np.abs(image[row, 0].numpy() * 255 - expected).max() < 0.06 * 255


def test_regions_without_a_pixel_left_are_no_regions():
    transform = Guided(preprocess("stretch"), Own())
    values = [transform.apply(index_of(IMAGES), row, sample_rng(0, 0, row)) for row in (2, 0)]
    assert transform.collate(values).guidance.regions.image.tolist() == [1]
    assert transform.collate(values[:1]).guidance.regions is None


def test_studies_of_several_images_know_whose_a_region_is():
    """A study of two images with a region each, one of none, one of one."""
    transform = Guided(preprocess("stretch", augment=False), Own())
    images = [transform.apply(index_of(IMAGES), row, sample_rng(0, 0, row)) for row in range(2)]
    empty = np.zeros(0, np.float32), np.ones(0, bool)

    def study(*read) -> ReadStudy:
        return ReadStudy(tuple(read), np.ones(len(read), bool), np.zeros(len(read), np.int64), *empty)

    read = StudyInputs(transform).collate([study(*images), study(), study(images[0])])
    regions = read.guidance.regions
    assert regions.image.tolist() == [0, 1, 2] and regions.study.tolist() == [0, 0, 2]
    assert regions.turn.tolist() == [0, 1, 0] and regions.turns == 2
    assert StudyInputs(transform).collate([study(), study()]).guidance is None


def test_a_batch_is_cut_with_its_guidance():
    transform = Guided(preprocess("stretch"), Own(), second=True)
    rows = [0, 2, 1, 0, 1]
    values = [transform.apply(index_of(IMAGES), row, sample_rng(0, n, row)) for n, row in enumerate(rows)]
    read = transform.collate(values)
    targets = Targets(torch.ones(5, 1), torch.ones(5, 1, dtype=torch.bool))
    batch = Batch(read.inputs, targets, torch.arange(5), None, None, read.guidance)
    parts = batch.split(2)
    assert [part.guidance.regions.image.tolist() for part in parts] == [[0, 2], [0, 1]]
    assert [part.guidance.regions.study.tolist() for part in parts] == [[0, 2], [0, 1]]
    for name in ("image", "maps"):
        joined = torch.cat([getattr(part.guidance.second, name) for part in parts])
        assert torch.equal(joined, getattr(batch.guidance.second, name))
    assert torch.equal(torch.cat([part.guidance.regions.share for part in parts]), read.guidance.regions.share)


def test_images_that_differ_in_kind_have_second_views_alike():
    """A grey and a coloured image in one batch on the device's path."""
    images = [IMAGES[0], np.stack([IMAGES[1]] * 3, axis=2)]
    plain = replace_channels(preprocess("stretch"))
    transform = Guided(DeviceAugmentation(plain), None, second=True)
    read = transform.collate([transform.apply(index_of(images), row, sample_rng(0, 0, row)) for row in range(2)])
    batch = Batch(
        read.inputs, Targets(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool)), torch.arange(2),
        read.augmentation_params, transform.device_transform, read.guidance,
    ).to(torch.device("cpu"))  # fmt: skip
    assert batch.guidance.second.image.shape == batch.inputs.image.shape == (2, 3, *SIZE)
    assert isinstance(batch.inputs, Inputs)


def replace_channels(plain: Preprocess) -> Preprocess:
    return Preprocess(SIZE, 3, [0.0], [1.0], plain.resize_mode, plain.augmentation)


def test_an_albumentations_map_is_not_known():
    with pytest.raises(AssertionError):
        Guided(Preprocess(SIZE, 1, [0.0], [1.0], "stretch", lambda image, rng: image), Own())
