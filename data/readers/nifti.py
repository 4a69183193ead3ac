"""NIfTI files (NIfTI-1 and -2, .nii and .nii.gz) to volumes. nibabel is imported only when one is read."""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError
from data.readers.regular_files import check_expansion, read_head
from data.readers.volumes import Volume, check_size, to_convention

if TYPE_CHECKING:
    from nibabel import Nifti1Header, Nifti2Header

_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
# sizeof_hdr → where the magic stands and what it is in a file that holds its voxels, too.
_MAGIC = {348: ((344, 348), b"n+1\0"), 540: ((4, 12), b"n+2\0\r\n\x1a\n")}
_MOST_EXTENSIONS_BYTES = _MOST_BEYOND_BYTES = 2**26
_PIECE_BYTES = 2**20

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's x goes to the right and its y to the front
_UNIT_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


def read_nifti(path: Path) -> Volume:
    """Read one volume: any byte order, scl_slope and scl_inter applied, axes in the order of data/readers/volumes.py.

    Position: the sform if its code is set, else the qform, as NIfTI-1 advises and nibabel does; lengths in metres or
    micrometres (xyzt_units) become millimetres, an unstated unit is taken for millimetres. Spacing is that of the
    affine, not pixdim, where the two differ. Further axes of length 1 are dropped. Oblique scans are not resampled.
    Voxels that are not finite become the smallest finite one.

    Stricter than NIfTI-1: a file with neither code set, whose orientation the standard calls unknown ("method 1"),
    is refused, as left and right cannot be determined.
    Raises DataError for that, for 4-D data, colours and complex numbers, more than MAX_VOXELS; nibabel's own
    exceptions for damaged files: read_volume turns them into DataError.
    """
    from nibabel.arrayproxy import ArrayProxy

    header = _read_header(path)
    shape = _spatial_shape(header.get_data_shape())
    check_size(shape)
    _check_values(header.get_data_dtype())
    affine = _affine_mm(header)
    end = header.get_data_offset() + math.prod(shape) * header.get_data_dtype().itemsize
    content = _unpack(path, end) if _is_packed(path) else path
    with np.errstate(over="ignore"):
        voxels = np.asarray(ArrayProxy(content, header), np.float32).reshape(shape)
    if (header.get_data_dtype().kind in "iu" and not np.isfinite(voxels).all()) or np.isinf(header["scl_slope"]):
        raise DataError(f"scl_slope {header['scl_slope']} makes values beyond 32-bit numbers")
    return to_convention(voxels, affine)


def is_nifti_name(name: str) -> bool:
    """Whether a file is NIfTI by its name."""
    return name.lower().endswith(NIFTI_SUFFIXES)


def _read_header(path: Path) -> Nifti1Header | Nifti2Header:
    """The header of a NIfTI-1 or NIfTI-2 file, and nothing of what follows it.

    `nibabel.load` would read extensions, as long as they say they are, and other formats that such a name may hide.
    """
    from nibabel import Nifti1Header, Nifti2Header

    with gzip.open(path) if _is_packed(path) else path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    size = next((size for size in _MAGIC if any(head[:4] == size.to_bytes(4, order) for order in ("little", "big"))), 0)
    if not size or not head[slice(*_MAGIC[size][0])] == _MAGIC[size][1]:
        raise DataError("it is not a single-file NIfTI: convert it to .nii.gz")
    header = (Nifti1Header if size == 348 else Nifti2Header)(head[:size])
    if not 0 <= header.get_data_offset() <= _MOST_EXTENSIONS_BYTES:
        raise DataError(f"its header says that its voxels begin at byte {header.get_data_offset():,}")
    return header


def _is_packed(path: Path) -> bool:
    return read_head(path)[:2] == b"\x1f\x8b"


def _unpack(path: Path, end: int) -> io.BytesIO:
    """The first `end` bytes; all are read, as gzip's checksum stands at the end and nibabel stops before it."""
    check_expansion(path.stat().st_size, end)
    with gzip.open(path) as file:
        content, beyond = file.read(end), 0
        while piece := file.read(_PIECE_BYTES):
            beyond += len(piece)
            if beyond > _MOST_BEYOND_BYTES:
                raise DataError(f"it unpacks to more than the {end:,} bytes that its header tells of")
    return io.BytesIO(content)


def _spatial_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The first three lengths; DataError unless what follows is all 1."""
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        what = "save one of its volumes as a file of its own" if len(shape) > 3 else "one image is no volume"
        raise DataError(f"its shape is {list(shape)}, a volume has three axes: {what}")
    return shape[:3]


def _check_values(dtype: np.dtype) -> None:
    if dtype.kind not in "iuf":
        raise DataError(f"its values are of type {dtype}: colours and complex numbers are not read")


def _affine_mm(header: Nifti1Header | Nifti2Header) -> np.ndarray:
    """[4, 4] from (i, j, k, 1) to millimetres in DICOM's patient coordinates."""
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
    return _TO_LPS @ scale @ np.asarray(header.get_best_affine(), np.float64)
