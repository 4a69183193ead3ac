"""DICOM files made from rules, and what each must be read as: float64 arithmetic by the formulas of PS3.3 and PS3.5.

Nothing here asks the readers, and no expected value is a stored one. A case is made when it is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

SIDE = 16
NATIVE = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}


@dataclass(frozen=True)
class Case:
    """make: the file, and its pixels ([0, 1] for grey, 0 to 255 for colour) or the words of the error it must give."""

    name: str
    make: Callable[[], tuple[bytes, np.ndarray | str]]
    tolerance: float = 1e-6


def ramp(bits: int, signed: bool = False, allocated: int = 16) -> np.ndarray:
    """[SIDE, SIDE]: all of the range, evenly, with both ends."""
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.rint(np.linspace(low, low + 2**bits - 1, SIDE * SIDE)).reshape(SIDE, SIDE)
    return values.astype(f"{'i' if signed else 'u'}{allocated // 8}")


def dataset_of(words: np.ndarray, stored: int, syntax: str = ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    """A data set of these words as they stand in the file; attributes override what it says."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = words.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = 8 * words.dtype.itemsize, stored
    dataset.HighBit, dataset.PixelRepresentation = stored - 1, int(words.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = words.astype(words.dtype.newbyteorder(order)).tobytes()
    dataset.add_new("PixelData", "OW" if words.dtype.itemsize > 1 else "OB", data + bytes(len(data) % 2))
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def written(dataset: Dataset) -> bytes:
    buffer, syntax = io.BytesIO(), dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless, generate_instance_uid=False)
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def encapsulated(dataset: Dataset, syntax: str, codestream: bytes) -> Dataset:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.add_new("PixelData", "OB", encapsulate([codestream]))
    dataset["PixelData"].is_undefined_length = True
    return dataset


def jpeg2000(words: np.ndarray) -> bytes:
    """The words as unsigned samples of 8 or 16 bits."""
    buffer, unsigned = io.BytesIO(), words.view(f"u{words.dtype.itemsize}")
    Image.fromarray(unsigned).save(buffer, "JPEG2000", irreversible=False, no_jp2=True, num_resolutions=1)
    return buffer.getvalue()


# ---- what the standard says


def stretched(units: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """The product's own rule where there is neither LUT nor window: the min–max of what counts."""
    inside = units if counted is None else units[counted]
    low, high = float(inside.min()), float(inside.max())
    return np.clip((units.astype(np.float64) - low) / (high - low), 0, 1)


def linear(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """C.11.2.1.2.1, as its pseudo-code stands there, to [0, 1]."""
    inner = (x - (c - 0.5)) / (w - 1) + 0.5 if w > 1 else np.zeros(x.shape)
    return np.where(x <= c - 0.5 - (w - 1) / 2, 0.0, np.where(x > c - 0.5 + (w - 1) / 2, 1.0, inner))


def linear_exact(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """C.11.2.1.3.2."""
    return np.where(x <= c - w / 2, 0.0, np.where(x > c + w / 2, 1.0, (x - c) / w + 0.5))


def sigmoid(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """C.11.2.1.3.1."""
    return 1 / (1 + np.exp(-4 * (x - c) / w))


WINDOWS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


def looked_up(x: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """C.11.1.1.1: below the first value mapped the first entry, above the last one the last."""
    return np.array([table[min(max(int(value) - first, 0), len(table) - 1)] for value in x.flat]).reshape(x.shape)


# ---- families


HOW = {  # slope, intercept, VOI LUT function
    "stretched": (1.0, 0.0, None),
    "rescale": (2.5, -1024.0, None),
    "falling rescale": (-1.0, 7.0, None),
    "linear": (1.0, 0.0, "LINEAR"),
    "exact": (1.0, 0.0, "LINEAR_EXACT"),
    "sigmoid": (1.0, 0.0, "SIGMOID"),
    "rescale, linear": (2.5, -1024.0, "LINEAR"),
    "rescale, exact": (-0.5, 3.0, "LINEAR_EXACT"),
}


def grey() -> Iterator[Case]:
    """Depth, sign, polarity and what the values go through, each with one of the uncompressed syntaxes or RLE."""
    depths = [(8, 8), (16, 8), (16, 10), (16, 12), (16, 15), (16, 16), (32, 20)]
    syntaxes, number = [*NATIVE, "rle"], 0
    for allocated, stored in depths:
        for signed in (False, True):
            for photometric in ("MONOCHROME1", "MONOCHROME2"):
                for how in HOW:
                    label = syntaxes[number % len(syntaxes)]
                    # pydicom's encoder takes 9 to 16 bits; the order of two 16-bit words of a pixel is disputed
                    if (label == "rle" and not 8 < stored <= 16) or (label == "big" and allocated == 32):
                        label = "explicit"
                    number += 1
                    name = f"{allocated}/{stored} {'signed' if signed else 'unsigned'} {photometric[-1]} {how} {label}"
                    syntax = NATIVE.get(label, RLELossless)
                    yield Case(name, lambda a=(allocated, stored, signed, photometric, how, syntax): _grey(*a))


def _grey(
    allocated: int, stored: int, signed: bool, photometric: str, how: str, syntax: str
) -> tuple[bytes, np.ndarray]:
    pixels, (slope, intercept, function) = ramp(stored, signed, allocated), HOW[how]
    units = pixels.astype(np.float64) * slope + intercept
    attributes: dict[str, Any] = {"PhotometricInterpretation": photometric}
    if slope != 1.0:
        attributes.update(RescaleSlope=str(slope), RescaleIntercept=str(intercept))
    shown = stretched(units)
    if function is not None:
        center, width = float(np.rint(units.mean() + 3)), float(np.rint((units.max() - units.min()) / 3))
        attributes.update(WindowCenter=str(center), WindowWidth=str(width), VOILUTFunction=function)
        shown = WINDOWS[function](units, center, width)
    content = written(dataset_of(pixels, stored, syntax, **attributes))
    return content, 1 - shown if photometric == "MONOCHROME1" else shown


def unused_bits() -> Iterator[Case]:
    """PS3.5 8.1.1: anything above the pixel, and the pixel higher in the word, under every codec without a plugin."""
    syntaxes = {**NATIVE, "rle": RLELossless, "jpeg2000": JPEG2000Lossless}
    for label, syntax in syntaxes.items():
        for stored, allocated in ((5, 8), (10, 16), (12, 16), (15, 16)):
            for signed in (False, True):
                for where in ("overlay above", "shifted up", "shifted up over an overlay"):
                    name = f"{label} {stored} of {allocated} {'signed' if signed else 'unsigned'} {where}"
                    yield Case(name, lambda a=(syntax, stored, allocated, signed, where): _unused(*a))


def placed(pixels: np.ndarray, stored: int, where: str) -> tuple[np.ndarray, int]:
    """(words, HighBit): the pixels within words whose other bits hold an overlay, or zeros."""
    allocated = 8 * pixels.dtype.itemsize
    spare = allocated - stored
    field = (pixels.astype(np.int64) & (2**stored - 1)).astype(np.uint64)
    junk = np.random.default_rng(1).integers(0, 2**spare, pixels.shape).astype(np.uint64)
    if where == "overlay above":
        words, top = field | (junk << np.uint64(stored)), stored - 1
    else:
        words, top = field << np.uint64(spare), allocated - 1
        words = words | junk if where.endswith("overlay") else words
    return words.astype(f"u{allocated // 8}").view(pixels.dtype), top


def _unused(syntax: str, stored: int, allocated: int, signed: bool, where: str) -> tuple[bytes, np.ndarray]:
    pixels = ramp(stored, signed, allocated)
    words, top = placed(pixels, stored, where)
    if syntax == JPEG2000Lossless:
        dataset = encapsulated(dataset_of(words, stored, HighBit=top), syntax, jpeg2000(words))
    else:
        dataset = dataset_of(words, stored, syntax, HighBit=top)
    return written(dataset), stretched(pixels)


def floats() -> Iterator[Case]:
    for double in (False, True):
        for how in ("none", "window", "padding", "padding range", "NaN padding"):
            yield Case(f"{'double' if double else 'float'} {how}", lambda a=(double, how): _float(*a))


def _float(double: bool, how: str) -> tuple[bytes, np.ndarray]:
    kind, prefix, vr = (np.float64, "DoubleFloat", "FD") if double else (np.float32, "Float", "FL")
    pixels = (ramp(12).astype(np.float64) / 1000 - 1.7).astype(kind)
    counted = np.ones(pixels.shape, bool)
    dataset = dataset_of(ramp(12), 12, BitsAllocated=64 if double else 32)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    if "padding" in how:
        counted[:3] = False
        pixels[:3] = np.nan if how == "NaN padding" else -9999.1
        pixels[2] = pixels[2] if how != "padding range" else -9000
        dataset.add_new(f"{prefix}PixelPaddingValue", vr, float(pixels[0, 0]))
        if how == "padding range":
            dataset.add_new(f"{prefix}PixelPaddingRangeLimit", vr, -8999.5)
    shown = stretched(pixels, counted)
    if how == "window":
        dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = "0.3", "1.5", "LINEAR_EXACT"
        shown = linear_exact(pixels.astype(np.float64), 0.3, 1.5)
    dataset.add_new(f"{prefix}PixelData", "OD" if double else "OF", pixels.tobytes())
    return written(dataset), np.where(counted, shown, 0)


PADDINGS = {  # VR, sign of the pixels, value and limit as written, value and limit as the pixels have them
    "SS signed": ("SS", True, -2000, None, (-2000, -2000)),
    "US signed": ("US", True, 63536, None, (-2000, -2000)),
    "UN signed": ("UN", True, b"\x30\xf8", None, (-2000, -2000)),
    "US unsigned": ("US", False, 63536, None, (63536, 63536)),
    "SS unsigned": ("SS", False, -2000, None, (63536, 63536)),
    "US 0 unsigned": ("US", False, 0, None, (0, 0)),
    "SS range signed": ("SS", True, -2000, -1500, (-2000, -1500)),
    "SS range signed, reversed": ("SS", True, -1500, -2000, (-2000, -1500)),
    "US range signed": ("US", True, 63536, 64036, (-2000, -1500)),
    "US range unsigned": ("US", False, 60000, 65535, (60000, 65535)),
    "SS range unsigned, reversed": ("SS", False, -1, -5536, (60000, 65535)),
}


def padding() -> Iterator[Case]:
    """C.7.5.1.1.2: no part of the min–max, and black in either polarity and under a window."""
    for label in PADDINGS:
        for photometric in ("MONOCHROME1", "MONOCHROME2"):
            for how in ("none", "window"):
                yield Case(f"{label} {photometric[-1]} {how}", lambda a=(label, photometric, how): _padded(*a))
    for label, stored, signed, value, word in (
        ("12 bits signed, written without sign", 12, True, 2096, 2096),
        ("12 bits unsigned, -2000 in all 16 bits", 12, False, 63536, 63536),
        ("8 bits unsigned, -1", 8, False, -1, 255),
    ):
        yield Case(label, lambda a=(stored, signed, value, word): _narrow_padding(*a))
    yield Case("63536 is not 2096 of 12 bits", _padding_that_is_nowhere)


def _padded(label: str, photometric: str, how: str) -> tuple[bytes, np.ndarray]:
    vr, signed, value, limit, (low, high) = PADDINGS[label]
    pixels = (ramp(12).astype(np.int64) - (1024 if signed else -5)).astype(np.int16 if signed else np.uint16)
    pixels[:2], pixels[2] = low, high
    counted = (pixels < low) | (pixels > high)
    dataset = dataset_of(pixels, 16, PhotometricInterpretation=photometric)
    for name, number in (("PixelPaddingValue", value), ("PixelPaddingRangeLimit", limit)):
        if number is not None:
            dataset.add_new(name, vr, number)
    shown = stretched(pixels, counted)
    if how == "window":
        dataset.WindowCenter, dataset.WindowWidth = "500", "900"
        shown = linear(pixels.astype(np.float64), 500, 900)
    return written(dataset), np.where(counted, 1 - shown if photometric == "MONOCHROME1" else shown, 0)


def _narrow_padding(stored: int, signed: bool, value: int, word: int) -> tuple[bytes, np.ndarray]:
    allocated = 16 if stored > 8 else 8
    pixels = np.clip(ramp(stored, signed, allocated), -1900 if signed else 0, 2**stored - 2)
    words = pixels.copy().view(f"u{allocated // 8}")
    words[:3] = word
    counted = np.ones(pixels.shape, bool)
    counted[:3] = False
    dataset = dataset_of(words.view(pixels.dtype), stored)
    dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    return written(dataset), np.where(counted, stretched(pixels, counted), 0)


def _padding_that_is_nowhere() -> tuple[bytes, np.ndarray]:
    pixels = ramp(12)
    pixels[3, 3] = 2096
    dataset = dataset_of(pixels, 12)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    return written(dataset), stretched(pixels)
