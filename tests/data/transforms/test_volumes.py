"""Window, grid, warp and the whole preprocessing, against scipy, torch's own antialiasing and slow loops."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from configs.errors import ConfigError
from data.readers.volumes import Volume
from data.transforms.images import sample_rng
from data.transforms.volumes import (
    LightVolumeAugmentation,
    VolumePreprocess,
    affine_to_old,
    apply_window,
    axis_weights,
    regrid,
    warp,
)

rng = np.random.default_rng(0)
NOISE = rng.random((6, 9, 11), np.float32)
PLAIN = {"size": (6, 9, 11), "channels": 1, "mean": [0.0], "std": [1.0]}


def volume_of(voxels: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> Volume:
    return Volume(voxels.astype(np.float32), np.diag([*spacing[::-1], 1.0]))


def smooth(shape=(12, 20, 24)) -> np.ndarray:
    noise = np.random.default_rng(3).random(shape)
    return ndimage.gaussian_filter(noise, 2).astype(np.float32)


# ---- window


def test_a_window_is_linear_between_its_ends():
    values = np.array([[[-2000.0, -1000, -300, 400, 3000]]])
    np.testing.assert_allclose(apply_window(values, (-1000, 400)), [[[0, 0, 0.5, 1, 1]]])
    assert apply_window(values, (-1000, 400)).dtype == np.float32


def test_without_a_window_the_percentiles_count():
    values = rng.normal(40, 300, (20, 30, 40)).astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(apply_window(values, None), np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    large = np.zeros((3, 1000, 1000), np.float32)
    large[:] = np.arange(1000)
    got = apply_window(large, None)
    assert abs(float(got[0, 0, 500]) - 0.5) < 0.01 and got.min() == 0 and got.max() == 1


def test_a_volume_of_one_value_becomes_zeros_and_the_source_stays():
    values = np.full((2, 2, 2), 7.0, np.float32)
    assert (apply_window(values, None) == 0).all() and (values == 7).all()


# ---- grid


@pytest.mark.parametrize("old, new", [(10, 10), (10, 7), (10, 3), (7, 12), (5, 20), (64, 1), (1, 4)])
def test_fitting_an_axis_is_torchs_antialiased_interpolation(old, new):
    line = torch.from_numpy(rng.random((1, 1, old, 3)))
    want = torch.nn.functional.interpolate(line, (new, 3), mode="bilinear", antialias=True, align_corners=False)
    np.testing.assert_allclose(axis_weights(old, new, old / new) @ line[0, 0].numpy(), want[0, 0].numpy(), atol=1e-6)


@pytest.mark.parametrize("old, new, step", [(9, 14, 0.7), (9, 5, 1.0), (9, 9, 1.0), (9, 20, 1.0), (30, 8, 2.5)])
def test_an_axis_by_hand(old, new, step):
    """A loop over new voxels: a triangle as wide as the larger voxel, cut at the ends, nothing outside."""
    weights = axis_weights(old, new, step)
    for index in range(new):
        position = (index - (new - 1) / 2) * step + (old - 1) / 2
        row = [max(0.0, 1 - abs(position - k) / max(step, 1.0)) for k in range(old)]
        total = sum(row) if -0.5 <= round(position, 9) <= old - 0.5 else 0
        want = [value / total if total else 0.0 for value in row]
        np.testing.assert_allclose(weights[index], want, atol=1e-6)


def test_the_same_spacing_only_crops_and_pads():
    out, spacing = regrid(NOISE, (8, 9, 5), (2.0, 1.0, 0.5), (2.0, 1.0, 0.5))
    want = np.zeros((8, 9, 5), np.float32)
    want[1:7] = NOISE[:, :, 3:8]
    np.testing.assert_allclose(out, want, atol=1e-6)
    assert spacing == (2.0, 1.0, 0.5) and out.dtype == np.float32


def test_without_a_target_the_whole_volume_fits_the_grid():
    out, spacing = regrid(NOISE, (3, 18, 11), (2.0, 1.0, 0.5), None)
    np.testing.assert_allclose(spacing, (4.0, 0.5, 0.5))
    np.testing.assert_allclose(out.mean(), NOISE.mean(), atol=0.02)
    same, _ = regrid(NOISE, NOISE.shape, (2.0, 1.0, 0.5), None)
    np.testing.assert_array_equal(same, NOISE)


def test_growing_is_scipys_linear_interpolation():
    voxels, old, new = smooth(), np.array([3.0, 1.5, 1.0]), np.array([1.7, 1.0, 0.8])
    out, _ = regrid(voxels, (16, 20, 22), old, new)
    positions = [
        (np.arange(n) - (n - 1) / 2) * b / a + (m - 1) / 2 for n, m, a, b in zip(out.shape, voxels.shape, old, new)
    ]
    want = ndimage.map_coordinates(voxels, np.meshgrid(*positions, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_what_is_small_does_not_vanish_when_the_grid_shrinks():
    """A single bright voxel about keeps its mass wherever it lies; picking each fourth voxel would lose it."""
    for position in range(4, 12):
        voxels = np.zeros((16, 16, 16), np.float32)
        voxels[position, position, position] = 64
        assert 0.75 < regrid(voxels, (4, 4, 4), (1, 1, 1), None)[0].sum() < 1.25


def test_a_ball_has_the_same_size_in_millimetres_whatever_the_file_has():
    size, target = (32, 48, 48), (3.0, 2.0, 2.0)
    seen = []
    for shape, spacing in (
        ((40, 60, 60), (2.0, 1.5, 1.5)),
        ((16, 90, 45), (5.0, 1.0, 2.0)),
        ((80, 40, 64), (1.0, 2.2, 1.4)),
    ):
        grid = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing)), indexing="ij")
        ball = np.clip(0.5 + (20 - np.sqrt(sum(axis**2 for axis in grid))) / 2, 0, 1).astype(np.float32)
        out, _ = regrid(ball, size, spacing, target)
        seen.append(out.sum() * np.prod(target) / (4 / 3 * np.pi * 20**3))
    np.testing.assert_allclose(seen, 1, atol=0.02)


# ---- warp


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "angle, scale, shift", [(0, 1, (0, 0, 0)), (10, 1.1, (0.05, -0.1, 0.03)), (-75, 0.8, (0, 0, 0))]
)
def test_a_warp_is_scipys_affine_transform(angle, scale, shift, mirror):
    voxels = smooth()
    voxels[[0, -1]] = voxels[:, [0, -1]] = voxels[:, :, [0, -1]] = 0  # the two differ in the outermost half voxel
    matrix = affine_to_old(voxels.shape, (3.0, 1.0, 2.0), angle, scale, shift, mirror)
    want = ndimage.affine_transform(voxels, matrix[:, :3], matrix[:, 3], order=1, mode="constant")
    np.testing.assert_allclose(warp(voxels, matrix), want, atol=2e-5)


def test_shift_mirror_and_turn_go_where_they_say():
    voxels = np.zeros((8, 10, 10), np.float32)
    voxels[2, 4, 7] = 1
    for options, position in (
        ({"shift": (0.25, 0, -0.1)}, (4, 4, 6)),
        ({"mirror": True}, (2, 4, 2)),
        ({"angle": 90.0}, (2, 7, 5)),  # left (7) turns to the back
    ):
        matrix = affine_to_old(voxels.shape, (5, 1, 1), **{"angle": 0.0, "scale": 1.0, "shift": (0, 0, 0), **options})
        assert np.unravel_index(warp(voxels, matrix).argmax(), voxels.shape) == position


def test_a_turn_of_oblong_voxels_shears_nothing():
    """In millimetres lengths and angles stay: the matrix is a rotation there."""
    spacing = np.diag([4.0, 2.0, 0.5])
    linear = spacing @ affine_to_old((9, 9, 9), (4.0, 2.0, 0.5), 30, 1.0, (0, 0, 0))[:, :3] @ np.linalg.inv(spacing)
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-12)


# ---- augmentation


def test_augmentation_is_a_function_of_the_generator_and_stays_in_range():
    augment, voxels = LightVolumeAugmentation(horizontal_flip=0.5), smooth()
    before = voxels.copy()
    first = augment(voxels, (2, 1, 1), sample_rng(0, 3, 7))
    np.testing.assert_array_equal(first, augment(voxels, (2, 1, 1), sample_rng(0, 3, 7)))
    np.testing.assert_array_equal(voxels, before)
    assert first.shape == voxels.shape and first.dtype == np.float32 and first.min() >= 0 and first.max() <= 1
    others = [augment(voxels, (2, 1, 1), sample_rng(*key)) for key in ((1, 3, 7), (0, 4, 7), (0, 3, 8))]
    assert all(np.abs(first - other).mean() > 1e-3 for other in others)


def test_without_limits_nothing_changes():
    augment = LightVolumeAugmentation(0, 0, 0, 0, 0, 0)
    np.testing.assert_allclose(augment(NOISE, (1, 2, 3), np.random.default_rng(0)), NOISE, atol=1e-5)


def test_left_and_right_are_swapped_only_where_asked_for():
    for flip in (0.0, 1.0):
        augment = LightVolumeAugmentation(0, 0, 0, 0, 0, 0, horizontal_flip=flip)
        out = augment(NOISE, (1, 1, 1), np.random.default_rng(0))
        np.testing.assert_allclose(out, NOISE[:, :, ::-1] if flip else NOISE, atol=1e-5)


def test_up_down_and_front_back_are_never_swapped():
    step = np.zeros((12, 16, 16), np.float32)
    step[:6, :8] = 1  # below and in front
    augment = LightVolumeAugmentation(horizontal_flip=1.0)
    for seed in range(30):
        out = augment(step, (1, 1, 1), np.random.default_rng(seed))
        assert out[:6, :8].mean() > 0.5 > out[6:, 8:].mean() + 0.3


@pytest.mark.parametrize(
    "name, value",
    [("scale", 1.0), ("rotation_degrees", 181), ("noise", -0.1), ("horizontal_flip", 2), ("gain", np.nan)],
)
def test_limits_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        LightVolumeAugmentation(**{name: value})


# ---- the whole


@pytest.mark.parametrize(
    "channels, mean, std", [(1, [0.5], [0.25]), (3, [0.1, 0.2, 0.3], [1, 2, 4]), (1, [0.1, 0.2, 0.3], [1, 2, 3])]
)
def test_preprocess_by_hand(channels, mean, std):
    values = rng.normal(0, 500, (6, 9, 11))
    preprocess = VolumePreprocess((6, 9, 11), channels, mean, std, window=(-1000, 400))
    out = preprocess(volume_of(values, (3, 1, 2)))
    unit = np.clip((values + 1000) / 1400, 0, 1)
    if channels == 1 and len(mean) == 3:
        mean, std = [np.mean(mean)], [np.mean(std)]
    want = np.stack([(unit - m) / s for m, s in zip(mean, std)])
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert out.dtype == np.float32 and out.flags.c_contiguous and out.flags.writeable


def test_the_spacing_of_the_volume_counts():
    preprocess = VolumePreprocess((6, 9, 11), 1, [0], [1], spacing_mm=(2, 2, 2), window=(0, 1))
    out = preprocess(volume_of(np.ones((6, 9, 11)), (1.0, 2.0, 4.0)))[0]
    np.testing.assert_allclose(out[:, 4, 5], [0, 1, 1, 1, 1, 0][:6] if out[1, 4, 5] else [0, 0, 1, 1, 0, 0])
    assert (out.sum(axis=(0, 1)) > 0).all() and out[2, 0, 0] == 1  # 44 mm wide: the grid's 22 mm are covered


def test_augmented_in_training_only_and_with_a_generator():
    preprocess = VolumePreprocess(**PLAIN, augmentation=LightVolumeAugmentation())
    volume = volume_of(NOISE)
    with pytest.raises(ValueError, match="sample_rng"):
        preprocess(volume)
    out = preprocess(volume, sample_rng(0, 0, 0))
    np.testing.assert_array_equal(out, preprocess(volume, sample_rng(0, 0, 0)))
    assert out.shape == (1, 6, 9, 11) and not np.allclose(out, VolumePreprocess(**PLAIN)(volume))


@pytest.mark.parametrize("options", [{}, {"spacing_mm": (2.0, 1.0, 1.0), "window": (-1000.0, 400.0)}])
def test_what_a_checkpoint_carries_makes_the_same_preprocessing(options):
    preprocess = VolumePreprocess(**PLAIN, **options)
    again = VolumePreprocess.from_dict(preprocess.as_dict())
    assert again.as_dict() == preprocess.as_dict()
    np.testing.assert_array_equal(again(volume_of(NOISE)), preprocess(volume_of(NOISE)))
    with pytest.raises(ConfigError, match=r"missing keys \['std'\], unknown keys \['sdt'\]"):
        VolumePreprocess.from_dict({("sdt" if key == "std" else key): v for key, v in preprocess.as_dict().items()})


@pytest.mark.parametrize(
    "options",
    [
        {"size": (64, 64)},
        {"size": (0, 64, 64)},
        {"channels": 2},
        {"std": [0.0]},
        {"spacing_mm": (1.0, 1.0)},
        {"spacing_mm": (1.0, 0.0, 1.0)},
        {"window": (400, -1000)},
        {"window": (1.0, 1.0)},
    ],
    ids=str,
)
def test_settings_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        VolumePreprocess(**{**PLAIN, **options})
