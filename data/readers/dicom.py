"""One DICOM file to one array, the way a viewing station would show it (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2).

pydicom is imported only when a DICOM file is read.
"""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from configs.errors import DataError
from data.readers.regular_files import check_expansion

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

DICOM_SUFFIXES = (".dcm", ".dicom")

_CODEC_HINT = "`pip install python-gdcm` brings the missing codec"
_PIECE_BYTES = 2**20
_EXPLICIT_VRS = frozenset(b"AE AS CS DA DT IS LO LT PN SH ST TM UI UL US OB UN".split())


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file with these first bytes (132 or more) is DICOM: 'DICM' at byte 128, or a data set at byte 0.

    Old archives strip preamble and file meta; what is left begins with a tag of group 0002 or 0008, little endian.
    A file whose data set begins anywhere else is not guessed at.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    implicit_length = int.from_bytes(head[4:8], "little")
    return head[4:6] in _EXPLICIT_VRS or (head[3] == 0 and implicit_length < 1024)


def read_dicom(path: Path, max_pixels: int | None = None) -> np.ndarray:
    """Decode a single-frame DICOM image.

    Grey: modality LUT or rescale → VOI LUT, or else the first window (LINEAR, LINEAR_EXACT, SIGMOID), or else the
    image's own min–max → inversion for MONOCHROME1; float32 [H, W] in [0, 1], computed in float64, so that 16
    bits stay 16 bits. Padding (PixelPaddingValue) is left out of the min–max and shown black. The stored window is
    applied once for FOR PRESENTATION images too, as PS3.3 C.8.11.3 and IHE RAD TF-2 4.16.4.2.2.1 ask.
    Colour (RGB, YBR, PALETTE COLOR): uint8 RGB [H, W, 3].

    A file without file meta is read in the encoding its data set shows, taken as uncompressed.

    Raises DataError for several frames, more than max_pixels pixels, a missing codec, no or unusable pixel data;
    pydicom's own exceptions for the rest: read_image turns them into DataError.
    """
    dataset = read_dataset(path)
    _refuse_what_is_not_one_image(dataset, max_pixels)
    pixels = decode_pixels(dataset)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(f"pixel data of shape {list(pixels.shape)} are not one image")
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        return _render_grey(pixels, dataset, inverted=photometric == "MONOCHROME1")
    return _render_colour(pixels, dataset, photometric)


def read_dataset(path: Path, header_only: bool = False) -> FileDataset:
    """pydicom's data set of a file, its transfer syntax set; DataError for a deflated one that is a bomb."""
    import pydicom

    _check_deflated(path)
    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=header_only)
    set_transfer_syntax(dataset)
    return dataset


def rescale(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored values to modality units, float64: ModalityLUTSequence, or else slope and intercept (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(pixels, dataset.ModalityLUTSequence[0])[0]
    slope, intercept = _first(dataset, "RescaleSlope"), _first(dataset, "RescaleIntercept")
    return pixels.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def apply_voi(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Modality units to [0, 1], float64, by the VOI LUT or else the first window; None where there is neither."""
    if dataset.get("VOILUTSequence"):
        displayed, bits = _look_up(values, dataset.VOILUTSequence[0])
        return np.clip(displayed / (2.0**bits - 1.0), 0.0, 1.0)
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if center is None or width is None:
        return None
    return window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper())


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


def set_transfer_syntax(dataset: Dataset) -> None:
    """Where the file meta does not name one, the uncompressed syntax of the encoding that was met."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _check_deflated(path: Path) -> None:
    """Unpack a deflated data set (PS3.5 A.5) piece by piece, keeping nothing: pydicom unpacks it whole."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        read_preamble(file, force=True)
        if _read_file_meta_info(file).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        packer, packed, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), path.stat().st_size, 0
        while piece := packer.unconsumed_tail or file.read(_PIECE_BYTES):
            unpacked += len(packer.decompress(piece, _PIECE_BYTES))
            check_expansion(packed, unpacked)


def _refuse_what_is_not_one_image(dataset: Dataset, max_pixels: int | None) -> None:
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DataError("the DICOM file holds no pixel data")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(
            f"it holds {frames} frames; export the one to use as a single-frame file, or train on volumes: "
            "DATA.image_size=[depth, height, width]"
        )
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if rows < 1 or columns < 1:
        raise DataError(f"Rows {rows} and Columns {columns} describe no image")
    if max_pixels is not None and rows * columns > max_pixels:
        raise DataError(f"{rows} x {columns} pixels exceed the limit of {max_pixels:,}")


def decode_pixels(dataset: Dataset) -> np.ndarray:
    """[H, W], [H, W, 3] or [frames, H, W] as stored, YBR already RGB; DataError naming the codec if it is missing."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(f"no decoder for transfer syntax {syntax.name} ({syntax}): {_CODEC_HINT}")
    with warnings.catch_warnings():  # a JPEG in the file may claim to be larger than Rows and Columns say
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return pixel_array(dataset)


def _render_grey(pixels: np.ndarray, dataset: Dataset, inverted: bool) -> np.ndarray:
    padded = padding_mask(pixels, dataset)
    values = rescale(pixels, dataset)
    if not np.isfinite(values).all():
        raise DataError("it holds values that are not finite")
    displayed = apply_voi(values, dataset)
    if displayed is None:
        displayed = _stretch(values, values[~padded])
    result = displayed.astype(np.float32)
    if inverted:  # PresentationLUTShape INVERSE only repeats MONOCHROME1: inverting for both would undo it
        result = np.float32(1.0) - result
    if not np.isfinite(result).all():
        raise DataError("it holds values that are not finite")
    result[padded] = 0.0
    return result


def _stretch(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """[0, 1] by the min–max of the counted values; zeros where they are all the same."""
    low, high = (counted.min(), counted.max()) if counted.size else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros(values.shape)


def padding_mask(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """bool [H, W]: stored values that stand for 'outside the image' (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (pixels >= low) & (pixels <= high)


def _look_up(values: np.ndarray, item: Dataset) -> tuple[np.ndarray, int]:
    """The entries of a LUT item for values (float64) and the bits of an entry; beyond its ends, its end entries."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    # OW or US by the standard's choice; 0 entries means 65,536
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(np.asarray(data))
    table = table[: entries or 65536].astype(np.float64)
    if not table.size or not 1 <= bits <= 16:
        raise DataError(f"its lookup table of {table.size} entries with {bits} bits is not usable")
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, table.size - 1)
    return table[index], bits


def _first(dataset: Dataset, name: str) -> float | None:
    """The first value of a decimal attribute, or None where it is absent or empty; DataError if it is not finite."""
    value = dataset.get(name)
    if not isinstance(value, (str, int, float)) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    if not np.isfinite(float(value)):
        raise DataError(f"{name} {value} is no finite number")
    return float(value)


def _render_colour(pixels: np.ndarray, dataset: Dataset, photometric: str) -> np.ndarray:
    """uint8 RGB [H, W, 3]; deeper colours keep their 8 highest bits."""
    bits = int(dataset.get("BitsStored") or 8)
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    elif not photometric.startswith(("RGB", "YBR")):
        raise DataError(f"photometric interpretation {photometric!r} is not known")
    if pixels.ndim != 3:
        raise DataError(f"{photometric} pixel data of shape {list(pixels.shape)} are not a colour image")
    pixels = pixels[..., :3]
    return np.ascontiguousarray((pixels >> max(bits - 8, 0)).astype(np.uint8))
