"""From a volume to a model's input: window, grid, augmentation, normalisation.

Between the steps a volume is float32 [D, H, W] in [0, 1], its axes as data/readers/volumes.py has them. The order is
fixed: window first, so that metal and air are cut off before they are averaged with their neighbours; then the model's
grid; augmentation last, which then costs the same for every scan. Whatever is random is drawn from the caller's
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch.nn import functional

from configs.errors import ConfigError, DataError
from data.readers.contrast import judge
from data.readers.volumes import FittedVolume, Volume
from data.study import DatasetIndex, Pixels
from data.transforms.images import channel_statistics
from data.transforms.input_transform import ReadBatch, ReadImage, collate_images, no_images
from utils.batch import DeviceTransform

PERCENTILES = (0.5, 99.5)
_COUNTED_VOXELS = 2**21

# (voxels [D, H, W] in [0, 1], spacing in mm (z, y, x), generator) → one random variant
VolumeAugmentation = Callable[[np.ndarray, Sequence[float], np.random.Generator], np.ndarray]


def apply_window(voxels: np.ndarray, window: Sequence[float] | None) -> np.ndarray:
    """Modality units to [0, 1], float32, clipped: window = (low, high); None: the volume's 0.5 and 99.5 percentiles.

    Of volumes beyond two million voxels every n-th counts for the percentiles, with the same n every time. A volume
    of one value becomes zeros. Raises DataError where the window leaves one value of voxels that differ.
    """
    if window is None:
        counted = voxels.reshape(-1)[:: -(-voxels.size // _COUNTED_VOXELS)]
        low, high = np.percentile(counted, PERCENTILES)
    else:
        low, high = window
    darkest, brightest = voxels.min(), voxels.max()
    if window is None and darkest == brightest:
        return np.zeros(voxels.shape, np.float32)
    if darkest < brightest and (low >= brightest or high <= darkest or not high > low):
        shown = f"the window {low:g} to {high:g}" + ("" if window else " (its 0.5 and 99.5 percentiles)")
        raise DataError(
            f"{shown} shows one value of its voxels, which run from {darkest:g} to {brightest:g}: set "
            "DATA.window to the values to be seen"
        )
    out = voxels.astype(np.float32)
    out -= np.float32(low)
    out *= np.float32(1.0 / (high - low))
    return np.clip(out, 0.0, 1.0, out=out)


def regrid(
    voxels: np.ndarray, size: Sequence[int], spacing: Sequence[float], target: Sequence[float] | None
) -> tuple[np.ndarray, tuple[float, ...]]:
    """[D, H, W] with `spacing` (z, y, x) in mm to (the model's grid, its spacing in mm), linear in each axis.

    target None: the whole volume is stretched or shrunk to `size`. Otherwise the grid has the spacing `target`, so
    that a millimetre is as long in every scan, and the same centre as the volume: what lies outside it is cut off, what
    the volume does not cover is 0.
    Axes that shrink are averaged over the wider voxel (a triangle of its width on either side), so nothing aliases.
    """
    if target is None:
        steps = [old / new for old, new in zip(voxels.shape, size)]
    else:
        steps = [new / old for old, new in zip(spacing, target)]
    for axis in np.argsort([new / old for old, new in zip(voxels.shape, size)], kind="stable").tolist():
        if size[axis] != voxels.shape[axis] or steps[axis] != 1.0:
            weights = axis_weights(voxels.shape[axis], size[axis], steps[axis])
            voxels = np.moveaxis(np.tensordot(weights, voxels, (1, axis)), 0, axis)
    return np.ascontiguousarray(voxels, np.float32), tuple(s * step for s, step in zip(spacing, steps))


def axis_weights(old: int, new: int, step: float) -> np.ndarray:
    """float32 [new, old]: linear interpolation along an axis; neighbours in the new grid are `step` old voxels apart.

    Both grids have one centre. A row sums to 1 where the centre of the new voxel lies within the old grid, its outer
    voxels' own half width included, and is 0 elsewhere.
    """
    positions = (np.arange(new) + 0.5 - new / 2) * step + old / 2 - 0.5
    reach = max(step, 1.0)
    weights = np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(old)) / reach)
    inside = (positions > -0.5 - 1e-9) & (positions < old - 0.5 + 1e-9)
    total = weights.sum(1, keepdims=True)
    return np.where(inside[:, None], weights / np.where(total > 0, total, 1.0), 0.0).astype(np.float32)


class LightVolumeAugmentation:
    """One affine resampling (rotation about z, scale, shift, perhaps a mirror image), then gain, offset and noise.

    Rotation and scale are in millimetres, so that a grid of oblong voxels shears nothing. Linear interpolation, 0
    outside. Then x → x * (1 + g) + b + noise, clipped to [0, 1]. The angle, scale - 1, the shifts, g and b are uniform
    in plus or minus their limits; the noise's standard deviation is uniform in 0 to `noise`.

    rotation_degrees: about the patient's long axis. scale, gain: of 1. translate: of depth, height and width.
    offset, noise: of the range. horizontal_flip: probability of swapping left and right; 0 by default, as the heart is
    on one side and the liver on the other. Up and down, front and back are never swapped: gravity is not symmetric.
    Raises ConfigError for limits out of range.
    """

    def __init__(
        self,
        rotation_degrees: float = 7.0,
        scale: float = 0.1,
        translate: float = 0.05,
        gain: float = 0.1,
        offset: float = 0.05,
        noise: float = 0.02,
        horizontal_flip: float = 0.0,
    ) -> None:
        limits = {"scale": (scale, 0.9), "rotation_degrees": (rotation_degrees, 180.0)} | {
            name: (value, 1.0)
            for name, value in (
                ("translate", translate),
                ("gain", gain),
                ("offset", offset),
                ("noise", noise),
                ("horizontal_flip", horizontal_flip),
            )
        }
        for name, (value, largest) in limits.items():
            if not 0.0 <= value <= largest:
                raise ConfigError(f"{name} must be from 0 to {largest:g}, got {value}")
        self.limits = np.array([rotation_degrees, scale, translate, translate, translate, gain, offset])
        self.noise, self.horizontal_flip = noise, horizontal_flip

    def __call__(self, voxels: np.ndarray, spacing_mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
        """[D, H, W] → one random variant; always draws 9 numbers, for all settings, and one per voxel."""
        angle, scale, *shift, gain, offset = rng.uniform(-1.0, 1.0, 7) * self.limits
        mirror, deviation = rng.random() < self.horizontal_flip, rng.random() * self.noise
        out = warp(voxels, affine_to_old(voxels.shape, spacing_mm, angle, 1.0 + scale, shift, mirror))
        out *= np.float32(1.0 + gain)
        out += np.float32(offset)
        out += np.float32(deviation) * rng.standard_normal(out.shape, np.float32)
        return np.clip(out, 0.0, 1.0, out=out)


def affine_to_old(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    angle: float,
    scale: float,
    shift: Sequence[float],
    mirror: bool = False,
) -> np.ndarray:
    """float64 [3, 4] from a new voxel's index (z, y, x, 1) to the place in the old volume that it shows.

    The volume is mirrored in x, scaled, turned by `angle` degrees (from x towards y: from the patient's left to the
    back), each about its centre, then shifted by `shift` of its lengths (z, y, x).
    """
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])
    spacing = np.diag(np.asarray(spacing_mm, np.float64))
    flip = np.diag([1.0, 1.0, -1.0 if mirror else 1.0])
    forward = np.linalg.inv(spacing) @ turn @ spacing @ (scale * flip)
    lengths = np.asarray(shape, np.float64)
    centre = (lengths - 1) / 2
    linear = np.linalg.inv(forward)
    return np.column_stack([linear, centre - linear @ (centre + np.asarray(shift) * lengths)])


def warp(voxels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[D, H, W] float32 resampled at matrix [3, 4] @ (z, y, x, 1): linear, 0 outside; a new array."""
    lengths = np.asarray(voxels.shape, np.float64)
    # grid_sample counts from -1 at the outer face of the first voxel to 1 at that of the last, x first.
    to_index = np.column_stack([np.diag(lengths / 2), (lengths - 1) / 2])
    index_matrix = matrix[:, :3] @ to_index
    index_matrix[:, 3] += matrix[:, 3]
    theta = np.diag(2 / lengths) @ index_matrix
    theta[:, 3] += 1 / lengths - 1
    theta = theta[::-1][:, [2, 1, 0, 3]]
    grid = functional.affine_grid(
        torch.from_numpy(theta[None].astype(np.float32)), [1, 1, *voxels.shape], align_corners=False
    )
    source = torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None, None]
    return functional.grid_sample(source, grid, mode="bilinear", align_corners=False)[0, 0].numpy()


class VolumePreprocessRecord(TypedDict):
    """A VolumePreprocess as a checkpoint carries it."""

    size: list[int]
    channels: int
    mean: list[float]
    std: list[float]
    spacing_mm: list[float] | None
    window: list[float] | None


class VolumePreprocess:
    """A volume to a model's input, for training (with an augmentation) and evaluation alike.

    Order: window to [0, 1] → the model's grid → augmentation → normalise → repeated for three channels.

    size: (depth, height, width). channels: 1 or 3. mean, std: of the windowed volume, as for images.
    spacing_mm: (z, y, x) of the model's grid, None: the whole volume is fitted to it. window: (low, high) in modality
    units, None: percentiles of each volume. augmentation: called as augmentation(voxels, spacing_mm, rng), or None.
    An ImageTransform of data/transforms/input_transform.py. Raises ConfigError for values outside these.
    """

    device_transform: DeviceTransform | None = None  # nothing is left to be done

    def __init__(
        self,
        size: Sequence[int],
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        spacing_mm: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        augmentation: VolumeAugmentation | None = None,
    ) -> None:
        if len(size) != 3 or min(size) < 1:
            raise ConfigError(f"size must be (depth, height, width), all at least 1 voxel, got {tuple(size)}")
        if channels not in (1, 3):
            raise ConfigError(f"channels must be 1 or 3, got {channels!r}")
        if spacing_mm is not None and (len(spacing_mm) != 3 or not min(spacing_mm) > 0):
            raise ConfigError(f"spacing_mm must be (z, y, x), all above 0, got {tuple(spacing_mm)}")
        if window is not None and (len(window) != 2 or not window[0] < window[1]):
            raise ConfigError(f"window must be (low, high), low below high, got {tuple(window)}")
        self.size = tuple(int(length) for length in size)
        self.channels = channels
        self.mean = tuple(channel_statistics(mean, channels, "mean").tolist())
        self.std = tuple(channel_statistics(std, channels, "std").tolist())
        self.spacing_mm = None if spacing_mm is None else tuple(float(value) for value in spacing_mm)
        self.window = None if window is None else tuple(float(value) for value in window)
        self.augmentation = augmentation

    def __call__(self, volume: Volume | FittedVolume, rng: np.random.Generator | None = None) -> np.ndarray:
        """A volume of any size, or a fitted one → float32 [channels, depth, height, width], contiguous.

        rng: needed by an augmentation, see `sample_rng`; ValueError if there is one and rng is None.
        """
        fitted = self.fit(volume)
        out = fitted.voxels
        if self.augmentation is not None:
            if rng is None:
                raise ValueError("an augmentation needs a generator: pass rng=sample_rng(seed, epoch, index)")
            out = self.augmentation(out, fitted.spacing_mm, rng)
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1, 1) for values in (self.mean, self.std))
        return np.ascontiguousarray((out[None] - mean) / std)

    def apply(
        self,
        dataset_index: DatasetIndex,
        index: int,
        rng: np.random.Generator | None = None,
        full: Pixels | None = None,
    ) -> ReadImage:
        """Read a volume and make the model's input of it; full: see `read`."""
        return ReadImage(torch.from_numpy(self(self._fitted(dataset_index, index, full), rng)))

    def collate(self, values: Sequence[ReadImage]) -> ReadBatch:
        """See `collate_images`."""
        return collate_images(values)

    def no_images(self) -> ReadBatch:
        """See ImageTransform."""
        return no_images(self.channels, self.size)

    def fitted(self, dataset_index: DatasetIndex, index: int) -> FittedVolume:
        """Read a volume and do all before the augmentation."""
        return self._fitted(dataset_index, index)

    def _fitted(self, dataset_index: DatasetIndex, index: int, full: Pixels | None = None) -> FittedVolume:
        volume = self.read(dataset_index, index, full)
        try:
            return self.fit(volume)
        except DataError as reason:
            raise DataError(f"cannot use volume '{dataset_index.studies[index].name}': {reason}") from reason

    def fit(self, volume: Volume | FittedVolume) -> FittedVolume:
        """All before the augmentation; what it gives it leaves as it is. Remarks what shows nothing, see `judge`.

        Raises DataError where voxels differ and nothing of that is left in the window or on the grid.
        """
        if isinstance(volume, FittedVolume):
            return volume
        windowed = apply_window(volume.voxels, self.window)
        judge(windowed)
        voxels, spacing = regrid(windowed, self.size, volume.spacing_mm, self.spacing_mm)
        if np.ptp(voxels) == 0 and np.ptp(windowed) > 0:
            grid = " x ".join(f"{count * step:.4g}" for count, step in zip(self.size, spacing))
            raise DataError(
                f"one value is left of it on the model's grid, {grid} mm about its centre: set "
                "DATA.spacing_mm and DATA.image_size so that it covers what is to be seen"
            )
        return FittedVolume(voxels, spacing)

    def read(self, dataset_index: DatasetIndex, index: int, full: Pixels | None = None) -> Volume | FittedVolume:
        """The volume to call it with; full: the result of dataset_index.read(index), if already read."""
        volume = dataset_index.read(index) if full is None else full
        assert isinstance(volume, (Volume, FittedVolume)), "a source of volumes"
        return volume

    def as_dict(self) -> VolumePreprocessRecord:
        """What a checkpoint carries, in plain lists, numbers and None; without the augmentation."""
        return {
            "size": list(self.size),
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "window": None if self.window is None else list(self.window),
        }

    @classmethod
    # Any: values of a file; the constructor checks them.
    def from_dict(cls, values: Mapping[str, Any], augmentation: VolumeAugmentation | None = None) -> VolumePreprocess:
        """The inverse of `as_dict`; ConfigError names keys that are missing or unknown."""
        expected = {"size", "channels", "mean", "std", "spacing_mm", "window"}
        missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
        if missing or unknown:
            raise ConfigError(f"preprocessing of volumes: missing keys {missing}, unknown keys {unknown}")
        return cls(**values, augmentation=augmentation)
