"""NIfTI files (NIfTI-1 and -2, .nii and .nii.gz) to volumes. nibabel is imported only when one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from data.volumes import Volume, check_size, to_convention

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's x goes to the right and its y to the front
_UNIT_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


def read_nifti(path: Path) -> Volume:
    """Read one volume: any byte order, scl_slope and scl_inter applied, axes in the order of data/volumes.py.

    Position: the sform if its code is set, else the qform, as NIfTI-1 advises and nibabel does; lengths in metres or
    micrometres (xyzt_units) become millimetres, an unstated unit is taken for millimetres. Spacing is that of the
    affine, not pixdim, where the two differ. Further axes of length 1 are dropped. Oblique scans are not resampled.
    Voxels that are not finite become the smallest finite one.

    Stricter than NIfTI-1: a file with neither code set, whose orientation the standard calls unknown ("method 1"),
    is refused, since nobody could tell left from right.
    Raises DataError for that, for 4-D data, colours and complex numbers, more than MAX_VOXELS; nibabel's own
    exceptions for damaged files: read_volume turns them into DataError.
    """
    import nibabel

    image: Any = nibabel.load(path)
    if not isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti2Image)):
        raise DataError(f"it is no NIfTI file in one piece, but {type(image).__name__}: convert it to .nii.gz")
    shape = _spatial_shape(image.shape)
    check_size(shape)
    _check_values(image.get_data_dtype())
    affine = _affine_mm(image)
    voxels = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    return to_convention(voxels, affine)


def is_nifti_name(name: str) -> bool:
    """Whether a file is NIfTI by its name."""
    return name.lower().endswith(NIFTI_SUFFIXES)


def _spatial_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The first three lengths; DataError unless what follows is all 1."""
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        what = "save one of its volumes as a file of its own" if len(shape) > 3 else "one picture is no volume"
        raise DataError(f"its shape is {list(shape)}, a volume has three axes: {what}")
    return shape[:3]


def _check_values(dtype: np.dtype) -> None:
    if dtype.kind not in "iuf":
        raise DataError(f"its values are of type {dtype}: colours and complex numbers are not read")


def _affine_mm(image: Any) -> np.ndarray:
    """[4, 4] from (i, j, k, 1) to millimetres in DICOM's patient coordinates."""
    header = image.header
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise DataError(
            "neither sform_code nor qform_code is set, so that left and right are unknown: find out how it was "
            "acquired and set one (nibabel: image.set_sform(affine, code=1))"
        )
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        unit = f"code {int(header['xyzt_units']) % 8}"
    if unit not in _UNIT_MM:
        raise DataError(f"its lengths are in a unit that is not known ({unit}): mm, meter or micron")
    scale = np.diag([_UNIT_MM[unit]] * 3 + [1.0])
    return _TO_LPS @ scale @ np.asarray(image.affine, np.float64)
