"""A TIFF file of one image to an array: grey of up to 32 bits, integers or floating point, and colour."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from configs.errors import DataError
from data.readers.volumes import finite

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 254, 258, 262, 338, 339
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED, _UNASSOCIATED_ALPHA = 0, 1, 2, 2


def read_tiff(path: Path) -> Image.Image | np.ndarray:
    """The image upright, loaded by Pillow where that keeps all of it: 8 bits; else an array.

    Deeper grey: uint16 as stored, or float32 in [0, 1] by the image's own min–max for 32-bit, signed and floating-point
    values, of which those that are not finite become the smallest; WhiteIsZero inverted, which Pillow does for 8 bits
    only (TIFF 6.0, PhotometricInterpretation). 16-bit colour: uint16 RGB, transparency laid over black.
    Raises DataError for several pages (reduced copies of one apart) and for signed 8-bit values.
    """
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # By name, Pillow 13 would map uncompressed files with the sides of the turned image: 5 to 8 come out scrambled.
        image: TiffImageFile = Image.open(io.BytesIO(content), formats=("TIFF",))  # type: ignore[assignment]
        _check_pages(image)
        tags = dict(image.tag_v2)
        image.load()  # turns it as tag 274 says
    bits, formats = _numbers(tags.get(_BITS, 1)), _numbers(tags.get(_SAMPLE_FORMAT, _UNSIGNED))
    if max(bits) == 8 and _SIGNED in formats:
        raise DataError("its values are signed numbers of 8 bits: save them as unsigned ones, or as 16 bits")
    if max(bits) == 16 and image.mode in ("RGB", "RGBA"):
        return _deep_colour(content, tags.get(_EXTRA_SAMPLES, ()))
    if max(bits) == 16 and image.mode not in ("I", "I;16", "I;16B"):
        raise DataError(f"its colours of 16 bits ({image.mode}) are not read: save them as RGB or grey")
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO, max(bits) == 32 and _UNSIGNED in formats)
    return image


def _check_pages(image: TiffImageFile) -> None:
    full = 0
    for page in range(image.n_frames):
        image.seek(page)
        full += not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 1
    image.seek(0)
    if full > 1:
        raise DataError(f"it holds {full} pages; save the one to use as a file of its own")


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _deep_grey(image: Image.Image, inverted: bool, unsigned: bool) -> np.ndarray:
    array = np.asarray(image)
    if image.mode.startswith("I;16"):
        array = array.astype(np.uint16)
        return np.uint16(65535) - array if inverted else array
    if image.mode == "I" and unsigned:
        array = array.view(np.uint32)  # Pillow has signed numbers alone
    unit = _unit(array.astype(np.float64))
    return np.float32(1.0) - unit if inverted else unit


def _unit(values: np.ndarray) -> np.ndarray:
    """[0, 1] by min–max, float32; zeros for an image of one value."""
    values = finite(values)
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) if high > low else np.zeros(values.shape)).astype(np.float32)


def _deep_colour(content: bytes, extra: int | tuple[int, ...]) -> np.ndarray:
    """OpenCV keeps the 16 bits, of which Pillow keeps 8, and turns TIFF, too."""
    import cv2

    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16 or array.ndim != 3:
        raise DataError("OpenCV cannot decode this 16-bit colour TIFF")
    return over_black(array, _UNASSOCIATED_ALPHA in _numbers(extra))


def over_black(array: np.ndarray, transparent: bool = True) -> np.ndarray:
    """OpenCV's uint16 BGR or BGRA to uint16 RGB [H, W, 3]; transparent: whether a fourth channel is alpha."""
    colour = array[..., 2::-1]
    if array.shape[2] == 4 and transparent:
        for row, alpha in zip(colour, array[..., 3:]):  # rounded; the largest sum still fits uint32
            row[:] = (row * alpha.astype(np.uint32) + np.uint32(32767)) // np.uint32(65535)
    return np.ascontiguousarray(colour)
