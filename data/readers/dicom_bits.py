"""Which bits of a decoded word are the pixel (PS3.5 8.1.1), the same for every transfer syntax.

Unused bits may hold anything (overlays, in old files), and since 2014 the pixel lies in the lowest BitsStored bits;
older files may have it elsewhere, which HighBit tells. pydicom 3.0 does not look at HighBit, nor at unused bits in
JPEG 2000 and JPEG-LS.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np
from PIL import Image

from configs.errors import DataError
from data.readers.dicom_attributes import integer
from data.readers.dicom_codestream import check_jpeg_headers, precision_of

if TYPE_CHECKING:
    from pydicom import Dataset

_CODEC_HINT = "`pip install python-gdcm` brings the missing codec"


class DecoderOptions(TypedDict, total=False):
    """Options of pydicom's decoders; the attributes among them override what the data set says."""

    raw: bool
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    photometric_interpretation: str


@dataclass(frozen=True)
class StoredPixels:
    """Decoded pixels: [H, W], [H, W, 3] or [frames, H, W].

    values: stored values, signed as PixelRepresentation says. words: what was there before unused bits were removed,
    the same array where there were none. low, high: what BitsStored allows; minus and plus infinity for floats.
    """

    values: np.ndarray
    words: np.ndarray
    low: float
    high: float

    def frame(self, index: int) -> StoredPixels:
        """One frame of [frames, H, W]."""
        return StoredPixels(self.values[index], self.words[index], self.low, self.high)


def decode_pixels(dataset: Dataset, **options: Unpack[DecoderOptions]) -> StoredPixels:
    """Decode the pixel data.

    Raises DataError for a missing codec and for HighBit, BitsStored and pixels that contradict each other; pydicom's
    own exceptions for the rest.
    """
    words = _decode(dataset, options)
    if words.dtype.kind == "f":
        return StoredPixels(words, words, -np.inf, np.inf)
    stored = min(integer(dataset, "BitsStored", 8 * words.dtype.itemsize), 8 * words.dtype.itemsize)
    signed = words.dtype.kind == "i"
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    return StoredPixels(_pixel_bits(words, dataset, stored), words, low, high)


def _decode(dataset: Dataset, options: DecoderOptions) -> np.ndarray:
    from pydicom.pixels import pixel_array
    from pydicom.uid import JPEG2000TransferSyntaxes

    plugin, syntax = _plugin(dataset), dataset.file_meta.TransferSyntaxUID
    if plugin == "gdcm" and syntax not in JPEG2000TransferSyntaxes:
        check_jpeg_headers(dataset)
        options["bits_stored"] = _samples_in_words(dataset)
    if _is_narrow_jpeg(dataset):
        options["bits_allocated"], options["bits_stored"] = 8, min(integer(dataset, "BitsStored", 8), 8)
    with warnings.catch_warnings():  # a JPEG in the file may claim to be larger than Rows and Columns say
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return pixel_array(dataset, correct_unused_bits=False, decoding_plugin=plugin, **options)


def _samples_in_words(dataset: Dataset) -> int:
    """BitsStored, or more where the codestream has deeper samples: gdcm clears the bits above, wherever HighBit is."""
    allocated = integer(dataset, "BitsAllocated", 16)
    return min(max(precision_of(dataset) or 0, integer(dataset, "BitsStored", allocated)), allocated)


def _plugin(dataset: Dataset) -> str:
    """The name of pydicom's plugin that decodes the pixels, '' for uncompressed ones.

    One for all files of a kind, whatever else is installed, and gdcm last: damaged JPEG ends the process in it, by a
    C++ exception that Python cannot catch. Pillow keeps 8 bits of deeper colours (pydicom refuses them in it).
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise DataError(f"no decoder for transfer syntax {syntax.name} ({syntax}): {_CODEC_HINT}")
    deep_colours = syntax in JPEG2000TransferSyntaxes and integer(dataset, "SamplesPerPixel", 1) > 1
    rank = {"gdcm": 1, "pillow": 2 if deep_colours and (precision_of(dataset) or 8) > 8 else 0}
    return min(decoder.available_plugins, key=lambda name: (rank.get(name, 0), name), default="")


def _pixel_bits(words: np.ndarray, dataset: Dataset, stored: int) -> np.ndarray:
    """Shift the pixel to the lowest bits and extend its sign; the words themselves where nothing is to be done."""
    allocated = 8 * words.dtype.itemsize
    top = integer(dataset, "HighBit", stored - 1)
    if top != stored - 1 and stored < integer(dataset, "BitsAllocated", allocated):
        precision = precision_of(dataset)
        if precision is not None and precision <= stored:  # the codec's samples are the pixels, wherever they lay
            top = stored - 1
    if top != stored - 1:
        top = _checked_high_bit(words, stored, top, allocated)
    if top == stored - 1 and _fits(words, stored):
        return words
    return (words << (allocated - 1 - top)) >> (allocated - stored)  # arithmetic for signed words


def _checked_high_bit(words: np.ndarray, stored: int, top: int, allocated: int) -> int:
    """The position of the highest bit where HighBit is not BitsStored - 1; DataError where the pixels contradict it."""
    said = f"HighBit {top}, BitsStored {stored} and BitsAllocated {allocated}"
    if top >= allocated:
        if stored < allocated:
            raise DataError(f"{said} contradict each other: HighBit must be less than BitsAllocated")
        return stored - 1  # all bits are the pixel, so that there is one reading only
    if top < stored - 1:
        if not _fits(words, top + 1):
            raise DataError(f"{said} contradict each other, and its pixels use bits above HighBit")
        return stored - 1
    below = (1 << (top - stored + 1)) - 1
    if _fits(words, stored) and (words & below).any():
        raise DataError(f"{said}, but its pixels lie in the lowest {stored} bits: correct HighBit to {stored - 1}")
    return top


def _fits(words: np.ndarray, bits: int) -> bool:
    """Whether all words are what they are in their lowest bits alone, with their sign."""
    if bits >= 8 * words.dtype.itemsize or not words.size:
        return True
    low, high = int(words.min()), int(words.max())
    half = 2 ** (bits - 1)
    return -half <= low and high < half if words.dtype.kind == "i" else high < 2 * half


def _is_narrow_jpeg(dataset: Dataset) -> bool:
    """Whether 8-bit JPEG samples are said to be 16-bit words: pydicom takes two samples for one pixel then."""
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

    syntaxes = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
    if dataset.file_meta.TransferSyntaxUID not in syntaxes or integer(dataset, "BitsAllocated", 8) != 16:
        return False
    return (precision_of(dataset) or 16) <= 8
