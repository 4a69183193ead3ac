"""Test-time transforms against a slow loop over pixels, and what the fixed lists promise."""

import math

import numpy as np
import pytest
import torch

from inference.tta import IMAGE_TRANSFORMS, VOLUME_TRANSFORMS, TestTimeTransform, show, transforms_for


def slow_transform(image: np.ndarray, transform: TestTimeTransform) -> np.ndarray:
    """[*spatial] float64, voxel by voxel: undo shift, rotation and scale about the centre, then interpolate."""
    lengths = image.shape
    centre = [(length - 1) / 2 for length in lengths]
    shift = transform.shift or (0.0,) * image.ndim
    angle = math.radians(transform.degrees)
    out = np.empty(lengths)
    for new in np.ndindex(*lengths):
        position = [n - c - s * length for n, c, s, length in zip(new, centre, shift, lengths)]
        y, x = position[-2:]
        # What is shown at angle a + degrees was at angle a, counted from x towards y.
        position[-2:] = [-math.sin(angle) * x + math.cos(angle) * y, math.cos(angle) * x + math.sin(angle) * y]
        out[new] = interpolate(image, [p / transform.scale + c for p, c in zip(position, centre)])
    return out


def interpolate(image: np.ndarray, position: list[float]) -> float:
    position = [min(max(p, 0.0), length - 1.0) for p, length in zip(position, image.shape)]
    low = [min(int(p), length - 2) for p, length in zip(position, image.shape)]
    total = 0.0
    for corner in np.ndindex(*(2,) * image.ndim):
        weight = math.prod(p - b if c else 1 - (p - b) for p, b, c in zip(position, low, corner))
        total += weight * image[tuple(b + c for b, c in zip(low, corner))]
    return total


ODD_TRANSFORMS = (
    TestTimeTransform(20.0),
    TestTimeTransform(-35.0, 1.3),
    TestTimeTransform(0.0, 0.7),
    TestTimeTransform(11.0, 1.1, (0.2, -0.1)),
)
ODD_VOLUME_TRANSFORMS = (
    TestTimeTransform(25.0),
    TestTimeTransform(0.0, 0.8),
    TestTimeTransform(10.0, 1.2, (0.2, -0.1, 0.15)),
)


@pytest.mark.parametrize("transform", IMAGE_TRANSFORMS + ODD_TRANSFORMS, ids=str)
def test_a_transform_of_images_is_what_the_loop_gives(transform):
    images = np.random.default_rng(0).random((2, 2, 13, 18))
    transformed = show(torch.from_numpy(images).float(), transform).double().numpy()
    for i, c in np.ndindex(2, 2):
        np.testing.assert_allclose(transformed[i, c], slow_transform(images[i, c], transform), atol=2e-5)


@pytest.mark.parametrize("transform", VOLUME_TRANSFORMS + ODD_VOLUME_TRANSFORMS, ids=str)
def test_a_transform_of_volumes_is_what_the_loop_gives(transform):
    volumes = np.random.default_rng(0).random((1, 1, 6, 9, 11))
    transformed = show(torch.from_numpy(volumes).float(), transform).double().numpy()
    np.testing.assert_allclose(transformed[0, 0], slow_transform(volumes[0, 0], transform), atol=2e-5)


def test_a_shift_moves_what_is_shown():
    image = torch.zeros(1, 1, 10, 10)
    image[0, 0, 2, 3] = 1.0
    moved = show(image, TestTimeTransform(shift=(0.3, 0.1)))
    assert divmod(int(moved.argmax()), 10) == (5, 4)
    assert moved.max() == pytest.approx(1.0, abs=1e-5)


def test_rotation_goes_from_x_towards_y():
    image = torch.zeros(1, 1, 11, 11)
    image[0, 0, 5, 9] = 1.0  # on the right
    assert divmod(int(show(image, TestTimeTransform(degrees=90.0)).argmax()), 11) == (9, 5)  # below


@pytest.mark.parametrize("transforms", [IMAGE_TRANSFORMS, VOLUME_TRANSFORMS])
def test_the_lists_begin_with_the_image_itself_and_lean_to_no_side(transforms):
    assert transforms[0].is_identity and not any(transform.is_identity for transform in transforms[1:])
    assert sum(transform.degrees for transform in transforms) == 0
    assert sum(transform.scale for transform in transforms) == pytest.approx(len(transforms))
    shifts = np.array([transform.shift or (0.0,) * 3 for transform in transforms])
    np.testing.assert_allclose(shifts.sum(0), 0, atol=1e-12)
    # A model has seen no other images than augmentation drew.
    assert all(abs(transform.degrees) <= 7 and abs(transform.scale - 1) <= 0.1 for transform in transforms)
    assert np.abs(shifts).max() <= 0.05


def test_the_identity_is_the_batch_itself():
    for shape in ((2, 3, 8, 8), (2, 1, 4, 8, 8)):
        batch = torch.rand(shape)
        assert show(batch, transforms_for(batch)[0]) is batch
