"""A volume after reading, the same for all file formats: one order of axes, one direction, one unit.

The convention, for every reader and everything behind it: voxels[z, y, x] with z from the patient's feet to the head
(inferior → superior), y from the chest to the back (anterior → posterior), x from the patient's right to the left.
An axial slice voxels[z] is what radiological display shows: the front above, the patient's right on the image's
left. Spacing is in millimetres, in the same order (z, y, x). In nibabel's letters, which name where an axis goes,
(x, y, z) is ('L', 'P', 'S'): the patient coordinates of DICOM (PS3.3 C.7.6.2.1.1), not the R, A, S of NIfTI.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from configs.errors import DataError
from data.readers.remarks import remark

# Two gigabytes as float32, and more than a whole-body CT has; a header that asks for more is not believed.
MAX_VOXELS = 2**29


@dataclass(frozen=True)
class Volume:
    """One volume in the convention above.

    voxels: float32 [D, H, W] in the units of the modality (HU for CT), finite.
    affine: float64 [4, 4]; affine @ (x, y, z, 1) is the position in millimetres, DICOM's patient coordinates (x to the
    left, y to the back, z to the head), of the centre of voxels[z, y, x]. The rotation of an oblique scan stays in it.
    """

    voxels: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along (z, y, x)."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return z, y, x


@dataclass(frozen=True)
class FittedVolume:
    """A volume windowed to [0, 1] on a model's grid: float32 [D, H, W], and the grid's spacing in mm (z, y, x)."""

    voxels: np.ndarray
    spacing_mm: tuple[float, ...]


def to_convention(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    """Reorder and flip the axes of a stored array into the convention; nothing is interpolated.

    voxels: [I, J, K] in any order. affine: from (i, j, k, 1) to millimetres in DICOM's patient coordinates.
    Each axis of an oblique scan goes where it points most: the order whose direction cosines have the largest sum.
    Raises DataError for an affine that is not finite or puts different voxels at one place.
    """
    affine = np.asarray(affine, np.float64)
    _check_affine(affine)
    axes = _nearest_axes(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    affine, voxels = affine[:, [*axes, 3]], voxels.transpose(axes)
    for axis in range(3):
        if affine[axis, axis] < 0:
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1.0
            voxels = np.flip(voxels, axis)
    return Volume(finite(np.ascontiguousarray(voxels.T, np.float32)), affine)


def finite(voxels: np.ndarray) -> np.ndarray:
    """Voxels that are no numbers (a masked background, mostly) become the smallest number; DataError if none is one."""
    valid = np.isfinite(voxels)
    if valid.all():
        return voxels
    if not valid.any():
        raise DataError("not one of its voxels is a finite number")
    remark("not_finite", f"{valid.size - int(valid.sum()):,} of {valid.size:,} values")
    return np.where(valid, voxels, voxels[valid].min())


def check_size(shape: tuple[int, ...]) -> None:
    """DataError for a shape, as a header states it, that is empty or larger than is ever allocated."""
    count = 1
    for length in shape:
        count *= int(length)
    if min(shape) < 1 or count > MAX_VOXELS:
        size = " x ".join(str(length) for length in shape)
        raise DataError(f"its header says {size} voxels; 1 to {MAX_VOXELS:,} can be read")


def _check_affine(affine: np.ndarray) -> None:
    linear = affine[:3, :3]
    lengths = np.linalg.norm(linear, axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0 or abs(np.linalg.det(linear / lengths)) < 1e-3:
        rows = ", ".join(str(np.round(row, 4).tolist()) for row in affine[:3])
        raise DataError(f"the position of its voxels is not usable (affine {rows})")


def _nearest_axes(directions: np.ndarray) -> tuple[int, int, int]:
    """Which stored axis becomes x, y and z; directions [3, 3]: a unit vector per column."""
    size = np.abs(directions)
    return max(permutations(range(3)), key=lambda axes: size[0, axes[0]] + size[1, axes[1]] + size[2, axes[2]])  # type: ignore[return-value]
