"""The guard against images that show nothing: what it remarks is computed here by counting pixels."""

import numpy as np
import pytest

from data.readers.contrast import judge
from data.readers.remarks import Remark, collecting, remark

rng = np.random.default_rng(1)
NOISE = rng.integers(0, 256, (300, 400))


def remarked(image: np.ndarray) -> dict[str, str]:
    with collecting() as found:
        judge(image)
    return {kind: made.detail for kind, made in found.items()}


def mostly(values: tuple[float, float], share: float, dtype: type) -> np.ndarray:
    """`share` of the pixels are one of two values in turn, the others between them."""
    count, rest = 10_000, round(10_000 * (1 - share))
    pixels = np.where(np.arange(count) % 2 == 0, *values)
    pixels[:rest] = np.linspace(*values, rest + 2)[1:-1]
    return rng.permutation(pixels).reshape(100, 100).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_of_one_value(dtype):
    assert remarked(np.full((40, 50), 1, dtype)) == {"constant": "all values are 1"}


@pytest.mark.parametrize("dtype, top", [(np.uint8, 255), (np.uint16, 4095), (np.float32, 1.0)])
def test_black_and_white_from_98_percent_on(dtype, top):
    assert list(remarked(mostly((0, top), 0.99, dtype))) == ["clipped"]
    assert remarked(mostly((0, top), 0.97, dtype)) == {}
    assert remarked(mostly((0, top), 1.0, dtype)) == {"clipped": "50.0% black, 50.0% white"}


def test_one_bright_pixel_of_16_bits_makes_all_others_black():
    """By min–max 200 of 65535 are 0.8 of 255 grey levels: black, or the next level."""
    image = rng.integers(0, 101, (200, 200)).astype(np.uint16)
    image[3, 3] = 65535
    assert list(remarked(image)) == ["clipped"]
    dim = image + rng.integers(200, 300, image.shape).astype(np.uint16)
    dim[3, 3], dim[0, 0] = 65535, 0
    assert list(remarked(dim)) == ["flat"]


def test_images_with_contrast_are_left_alone():
    for image in (NOISE.astype(np.uint8), NOISE.astype(np.uint16), (NOISE / 255).astype(np.float32)):
        assert remarked(image) == {}
    assert remarked(np.dstack([NOISE] * 3).astype(np.uint8)) == {}
    background = np.zeros((300, 300), np.uint8)
    background[100:160, 100:160] = NOISE[:60, :60]  # 96 % are black
    assert remarked(background) == {}


def test_a_volume_counts_voxels_from_all_over_it():
    voxels = np.zeros((50, 60, 70), np.float32)
    voxels[:2] = 0.5
    assert remarked(voxels) == {}
    voxels[1] = 0
    voxels[0, 0] = 1
    assert list(remarked(voxels)) == ["clipped"]


def test_nothing_is_kept_where_nobody_collects_and_the_first_of_a_kind_stays():
    judge(np.zeros((3, 3), np.uint8))
    with collecting() as outer:
        remark("flat", "first")
        with collecting() as inner:
            remark("clipped", "inner")
        remark("flat", "second")
    assert outer == {"flat": Remark("flat", "first")} and list(inner) == ["clipped"]
