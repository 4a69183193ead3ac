"""Colour DICOM images to 8-bit RGB (PS3.3 C.7.6.3.1.2): RGB, YBR in its variants, PALETTE COLOR, supplemental palettes.

No ICC profile is applied, and neither rescale nor window: they belong to grey images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError
from data.readers.dicom_attributes import integer, is_little_endian
from data.readers.dicom_bits import StoredPixels, decode_pixels
from data.readers.dicom_codestream import frames_of, transforms_colours
from data.readers.dicom_luts import palette, palette_colours, to_eight_bits
from data.readers.dicom_values import refuse_constant, render_grey

if TYPE_CHECKING:
    from pydicom import Dataset

# (Y - 16) and chroma of ITU-R BT.601's studio range to RGB, the inverse of the retired formula in C.7.6.3.1.2.
_PARTIAL_TO_RGB = np.array([[1.1644, 1.1644, 1.1644], [0.0, -0.3917, 2.0173], [1.5960, -0.8130, 0.0]])


def read_colour(dataset: Dataset, photometric: str) -> np.ndarray:
    """Decode to uint8 RGB [H, W, 3]; deeper colours keep their 8 highest bits, shallower ones are stretched."""
    if photometric == "PALETTE COLOR":
        return _read_palette(dataset)
    if not photometric.startswith(("RGB", "YBR")):
        raise DataError(f"photometric interpretation {photometric!r} is not known")
    _require_samples(dataset, photometric, 3)
    bits = integer(dataset, "BitsStored", 8)
    # Colours are never signed (PS3.3 C.7.6.3.1): a file that says so has ordinary values up to 255.
    if photometric == "YBR_PARTIAL_422":
        decoded = decode_pixels(dataset, pixel_representation=0, photometric_interpretation="YBR_FULL_422", raw=True)
        colours = _partial_to_rgb(one_image(decoded.values, colour=True))
    else:
        _refuse_unconverted(dataset, photometric)
        decoded = decode_pixels(dataset, pixel_representation=0)
        colours = to_eight_bits(one_image(decoded.values, colour=True), bits)
    refuse_constant(decoded.values, colours, np.ones(colours.shape[:2], bool))
    return np.ascontiguousarray(colours)


def has_supplemental_palette(dataset: Dataset) -> bool:
    """Whether values above those of the palette's beginning are colours in a grey image (PS3.3 C.7.6.19)."""
    presentation = str(dataset.get("PixelPresentation") or "").strip().upper()
    return presentation in ("COLOR", "MIXED") and "RedPaletteColorLookupTableDescriptor" in dataset


def add_supplemental_colours(pixels: StoredPixels, dataset: Dataset) -> np.ndarray:
    """uint8 RGB [H, W, 3]: grey below the first value that the palette maps, its colours from there on (C.7.6.19)."""
    tables = palette(dataset, is_little_endian(dataset), pixels.low, pixels.high)
    coloured = pixels.values >= min(table.first for table in tables)
    grey_pixels = pixels
    if coloured.any() and not coloured.all():  # colours are no values: they take no part in min–max and in guards
        values = np.where(coloured, pixels.values[~coloured].min(), pixels.values)
        grey_pixels = StoredPixels(values, values, pixels.low, pixels.high)
    if coloured.all():
        return palette_colours(tables, pixels.values)
    grey, _ = render_grey(grey_pixels, dataset)
    colours = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    colours[coloured] = palette_colours(tables, pixels.values[coloured])
    return colours


def one_image(values: np.ndarray, colour: bool) -> np.ndarray:
    """The decoded values, where they are one image; else DataError."""
    if values.ndim != (3 if colour else 2) or (colour and values.shape[2] != 3):
        kind = "colour" if colour else "grey"
        raise DataError(f"pixel data of shape {list(values.shape)} are not one {kind} image")
    return values


def _read_palette(dataset: Dataset) -> np.ndarray:
    _require_samples(dataset, "PALETTE COLOR", 1)
    pixels = decode_pixels(dataset)
    index = one_image(pixels.values, colour=False)
    colours = palette_colours(palette(dataset, is_little_endian(dataset), pixels.low, pixels.high), index)
    refuse_constant(index, colours, np.ones(index.shape, bool))
    return colours


def _require_samples(dataset: Dataset, photometric: str, samples: int) -> None:
    found = integer(dataset, "SamplesPerPixel", samples)
    if found != samples:
        raise DataError(f"{photometric} has {samples} samples per pixel, and SamplesPerPixel says {found}")


def _refuse_unconverted(dataset: Dataset, photometric: str) -> None:
    """DataError for colour spaces that the decoder would hand over as if they were RGB."""
    from pydicom.uid import JPEG2000TransferSyntaxes

    jpeg2000 = dataset.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes
    if photometric.startswith("YBR_FULL") and jpeg2000 and any(map(transforms_colours, frames_of(dataset))):
        raise DataError(  # PS3.5 8.2.4: YBR_RCT or YBR_ICT then
            f"photometric interpretation {photometric!r}, but the JPEG 2000 codestream says that it was RGB"
        )
    if photometric in ("RGB", "YBR_FULL", "YBR_FULL_422") or (photometric in ("YBR_ICT", "YBR_RCT") and jpeg2000):
        return
    raise DataError(
        f"photometric interpretation {photometric!r} is not read from {dataset.file_meta.TransferSyntaxUID.name}"
    )


def _partial_to_rgb(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.uint8:
        raise DataError(f"YBR_PARTIAL_422 is read from 8 bits, not from {8 * values.dtype.itemsize}")
    rgb = (values.astype(np.float64) - (16, 128, 128)) @ _PARTIAL_TO_RGB
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
