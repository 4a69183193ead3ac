"""How stored DICOM values become modality units and shown grey values: the one place, for images and volumes alike.

Stored value → Modality LUT or rescale (PS3.3 C.11.1) → VOI LUT or the first window (C.11.2) → inversion for
MONOCHROME1 (C.7.6.3.1.2). In Enhanced objects rescale and window stand in functional groups (C.7.6.16.2.9, .10),
of one frame or of all. A Real World Value Mapping (C.7.6.16.2.11) is for measuring and is not applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError
from data.readers.dicom_attributes import (
    RESCALE,
    VOI,
    first_number,
    group_with,
    is_little_endian,
    single_number,
    values_of,
)
from data.readers.dicom_bits import StoredPixels
from data.readers.dicom_luts import LookupTable, sequence_table

if TYPE_CHECKING:
    from pydicom import Dataset

# X-Ray Angiographic and Radiofluoroscopic images: their Modality LUT is for measuring, not shown (PS3.3 C.8.7.1.1.2).
_NO_MODALITY_LUT_SHOWN = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2")


def to_units(pixels: StoredPixels, dataset: Dataset, frame: int, counted: np.ndarray) -> np.ndarray:
    """Stored values to modality units, float64: the Modality LUT, or else slope and intercept (PS3.3 C.11.1).

    counted: the pixels that are no padding. Raises DataError where the LUT or the rescale cannot be right.
    """
    table = _modality_table(pixels, dataset)
    if table is not None:
        return table.look_up(pixels.values).astype(np.float64)
    slope, intercept = _rescale(dataset, frame)
    if slope == 0.0 and _varies(pixels.values[counted]):
        raise DataError("RescaleSlope 0 makes one value of all its stored ones")
    return pixels.values.astype(np.float64) * slope + intercept


def to_display(units: np.ndarray, pixels: StoredPixels, dataset: Dataset, frame: int) -> np.ndarray | None:
    """Modality units to [0, 1], float64, by the VOI LUT or else the first window; None where there is neither.

    Where both are there, either may be used (C.11.2.1.1): the LUT has the vendor's curve. Of several windows or LUTs
    the first one is used, which is the one a viewer begins with.
    """
    item = group_with(dataset, frame, "FrameVOILUTSequence", VOI)
    if item.get("VOILUTSequence"):
        low, high = _range_of_units(pixels, dataset, frame)
        table = sequence_table(item.VOILUTSequence[0], "its VOI LUT", is_little_endian(dataset), low, high)
        return np.clip(table.look_up(units) / (2.0**table.depth - 1.0), 0.0, 1.0)
    center, width = first_number(item, "WindowCenter"), first_number(item, "WindowWidth")
    if center is None or width is None:
        return None
    function = values_of(item, "VOILUTFunction") or ["LINEAR"]
    return window(units, center, width, str(function[0]).strip().upper())


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """The window functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, from modality units to [0, 1].

    LINEAR: (x - (c - 0.5)) / (w - 1) + 0.5, clipped; LINEAR_EXACT: (x - c) / w + 0.5, clipped;
    SIGMOID: 1 / (1 + exp(-4 (x - c) / w)). Raises DataError for another function or a width it does not allow.
    """
    smallest = 1.0 if function == "LINEAR" else np.finfo(float).tiny
    if width < smallest:
        raise DataError(f"window width {width:g} is not allowed for a {function} window")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    elif function != "LINEAR_EXACT":
        raise DataError(f"VOI LUT function {function!r} is none of LINEAR, LINEAR_EXACT, SIGMOID")
    if width == 0.0:  # LINEAR of width 1 is a step
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _modality_table(pixels: StoredPixels, dataset: Dataset) -> LookupTable | None:
    if not dataset.get("ModalityLUTSequence") or str(dataset.get("SOPClassUID", "")) in _NO_MODALITY_LUT_SHOWN:
        return None
    item, little_endian = dataset.ModalityLUTSequence[0], is_little_endian(dataset)
    return sequence_table(item, "its Modality LUT", little_endian, pixels.low, pixels.high)


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float]:
    """(slope, intercept); 1 and 0 where they are absent."""
    item = group_with(dataset, frame, "PixelValueTransformationSequence", RESCALE)
    slope, intercept = first_number(item, "RescaleSlope"), first_number(item, "RescaleIntercept")
    return 1.0 if slope is None else slope, intercept or 0.0


def _range_of_units(pixels: StoredPixels, dataset: Dataset, frame: int) -> tuple[float, float]:
    """The smallest and largest value that the modality transformation can make, of what BitsStored allows."""
    table = _modality_table(pixels, dataset)
    if table is not None:
        return 0.0, 2.0**table.bits - 1.0
    slope, intercept = _rescale(dataset, frame)
    ends = sorted((pixels.low * slope + intercept, pixels.high * slope + intercept))
    return ends[0], ends[1]


# ---- padding


def padding_mask(pixels: StoredPixels, dataset: Dataset) -> np.ndarray:
    """bool [H, W]: stored values that stand for 'outside the image' (PS3.3 C.7.5.1.1.2; floats: C.7.6.24).

    Both ends of a range belong to it, in either order. The integer is compared as PixelRepresentation says whatever
    its VR is: 63536 among signed pixels is -2000. It may also lie outside BitsStored, in bits that are no pixel.
    """
    if pixels.values.dtype.kind == "f":
        return _float_padding(pixels.values, dataset)
    little_endian = is_little_endian(dataset)
    value = single_number(dataset, "PixelPaddingValue", little_endian)
    if value is None:
        return np.zeros(pixels.values.shape, bool)
    limit = single_number(dataset, "PixelPaddingRangeLimit", little_endian)
    ends = [_padding_word(end, "PixelPaddingValue") for end in (value, value if limit is None else limit)]
    as_stored = [_as_stored(end, pixels) for end in ends]
    found = np.zeros(pixels.values.shape, bool)
    if None not in as_stored:
        low, high = sorted(end for end in as_stored if end is not None)
        found |= (pixels.values >= low) & (pixels.values <= high)
    if pixels.words is not pixels.values and pixels.words.dtype.itemsize == 2:
        signed = pixels.words.dtype.kind == "i"
        low, high = sorted(_signed(end, 16) if signed else end for end in ends)
        found |= (pixels.words >= low) & (pixels.words <= high)
    return found


def _float_padding(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    names = ("DoubleFloatPixelPadding", "FloatPixelPadding") if values.dtype.itemsize == 8 else ("FloatPixelPadding",)
    for name in (*names, "PixelPadding"):
        value = single_number(dataset, f"{name}Value")
        if value is not None:
            break
    else:
        return np.zeros(values.shape, bool)
    if np.isnan(value):
        return np.isnan(values)
    limit = single_number(dataset, f"{name}RangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    with np.errstate(over="ignore"):  # rounded as the pixels are
        return (values >= values.dtype.type(low)) & (values <= values.dtype.type(high))


def _padding_word(value: float, name: str) -> int:
    """The 16 bits of a US or SS value."""
    if value != np.floor(value) or not -(2**15) <= value < 2**16:
        raise DataError(f"{name} {value:g} is no 16-bit integer")
    return int(value) & 0xFFFF


def _as_stored(word: int, pixels: StoredPixels) -> int | None:
    """A 16-bit word as a stored value; None where no pixel can have it."""
    low, high = int(pixels.low), int(pixels.high)
    if low < 0:
        # a signed value of fewer bits may have been written without its sign: 2096 of 12 bits is -2000
        readings = (_signed(word, 16), _signed(word, high.bit_length() + 1) if word < 2 * (high + 1) else None)
    else:
        eight_bits = word & 0xFF if word >= 0xFF80 and pixels.words.dtype.itemsize == 1 else None  # -1 of 8 bits is 255
        readings = (word, eight_bits)
    return next((value for value in readings if value is not None and low <= value <= high), None)


def _signed(word: int, bits: int) -> int:
    return word - 2**bits if word >= 2 ** (bits - 1) else word


# ---- grey images


def render_grey(pixels: StoredPixels, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [H, W] in [0, 1], computed in float64; bool [H, W]: the pixels that are no padding).

    Without LUT and window the min–max of the counted pixels is stretched. Padding is shown black. PresentationLUTShape
    INVERSE only repeats MONOCHROME1 (C.8.11.3.1.2): inverting for both would undo it.

    Raises DataError for values that are not finite, and where stored values vary and the image does not.
    """
    inverted = is_inverted(dataset)
    padded = padding_mask(pixels, dataset)
    counted = ~padded
    units = to_units(pixels, dataset, 0, counted)
    if padded.any():
        if not counted.any() and _varies(pixels.values.ravel()):
            raise DataError("every pixel is in the range of PixelPaddingValue, although they differ")
        units[padded] = units[counted].min() if counted.any() else 0.0
    if not np.isfinite(units).all():
        raise DataError("it holds values that are not finite")
    displayed = to_display(units, pixels, dataset, 0)
    result = (_stretch(units) if displayed is None else displayed).astype(np.float32)
    if inverted:
        result = np.float32(1.0) - result
    if not np.isfinite(result).all():
        raise DataError("it holds values that are not finite")
    result[padded] = 0.0
    refuse_constant(pixels.values, result, counted)
    return result, counted


def is_inverted(dataset: Dataset) -> bool:
    """Whether the smallest value is shown white: MONOCHROME1; DataError for MONOCHROME2 that says INVERSE."""
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    if photometric == "MONOCHROME2" and shape == "INVERSE":
        raise DataError(
            "PhotometricInterpretation MONOCHROME2 and PresentationLUTShape INVERSE contradict each other: one says "
            "that the smallest value is black, the other that it is white; correct one of them"
        )
    return photometric == "MONOCHROME1"


def _stretch(values: np.ndarray) -> np.ndarray:
    """[0, 1] by the min–max; zeros where all values are the same."""
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros(values.shape)


# ---- the guard


def check_rendering(stored: np.ndarray, rendered: np.ndarray, counted: np.ndarray) -> str | None:
    """Why a rendered image cannot be what its stored values are, None where nothing speaks against it.

    stored: [H, W] or [H, W, C]. rendered: [H, W] or [H, W, C], float in [0, 1] or uint8. counted: bool [H, W], the
    pixels that are no padding.
    """
    stored, rendered = stored[counted], rendered[counted]
    if not stored.size or not _varies(stored) or _varies(rendered):
        return None
    low, high = _as_text(stored.min()), _as_text(stored.max())
    return (
        f"its stored values run from {low} to {high}, and as an image all are {_as_text(rendered.flat[0])}: check its "
        "rescale, its window and its lookup tables"
    )


def refuse_constant(stored: np.ndarray, rendered: np.ndarray, counted: np.ndarray) -> None:
    """DataError where `check_rendering` has a reason."""
    reason = check_rendering(stored, rendered, counted)
    if reason is not None:
        raise DataError(reason)


def clipped_fraction(stored: np.ndarray, rendered: np.ndarray, counted: np.ndarray) -> float:
    """The fraction of counted pixels that lie at an end of the rendered range together with other stored values.

    Arguments as of `check_rendering`, grey images only. A mask of two values is all at the ends and loses nothing: 0.
    """
    stored, rendered = stored[counted], rendered[counted]
    top = 255 if rendered.dtype == np.uint8 else 1
    clipped = 0
    for end in (rendered <= 0, rendered >= top):
        values = stored[end]
        clipped += values.size if values.size and _varies(values) else 0
    return clipped / stored.size if stored.size else 0.0


def _varies(values: np.ndarray) -> bool:
    """Whether there are two different values; of colours [N, 3], two different rows."""
    if not values.size:
        return False
    return bool(values.min() < values.max() if values.ndim == 1 else (values != values[0]).any())


def _as_text(value: object) -> str:
    return f"{float(value):g}"  # type: ignore[arg-type]
