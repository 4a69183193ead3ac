"""One DICOM file to one array, the way a viewing station would show it.

What the values become stands in dicom_values.py and dicom_colour.py, which bits they are in dicom_bits.py. pydicom is
imported only when a DICOM file is read.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError
from data.readers.dicom_attributes import check_frame_groups, integer
from data.readers.dicom_bits import decode_pixels
from data.readers.dicom_colour import add_supplemental_colours, has_supplemental_palette, one_image, read_colour
from data.readers.dicom_values import clipped_fraction, render_grey
from data.readers.regular_files import check_expansion
from data.readers.remarks import is_collecting, remark

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

DICOM_SUFFIXES = (".dcm", ".dicom")
# Of the pixels, air around a body included: windows for bones or brains leave more than that in between.
CLIPPED_BY_WINDOW = 0.95

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
    """Decode a single-frame DICOM image, classic or Enhanced.

    Grey: modality LUT or rescale → VOI LUT, or else the first window (LINEAR, LINEAR_EXACT, SIGMOID), or else the
    image's own min–max → inversion for MONOCHROME1; float32 [H, W] in [0, 1], computed in float64, so that 16
    bits stay 16 bits. Padding (PixelPaddingValue) is left out of the min–max and shown black. The stored window is
    applied once for FOR PRESENTATION images too, as PS3.3 C.8.11.3 and IHE RAD TF-2 4.16.4.2.2.1 ask.
    Colour (RGB, YBR, PALETTE COLOR, grey with a supplemental palette): uint8 RGB [H, W, 3].

    An image whose window clips nearly all of it is remarked (readers/remarks.py).
    A file without file meta is read in the encoding its data set shows, taken as uncompressed.

    Raises DataError for several frames, more than max_pixels pixels, a missing codec, no or unusable pixel data, and
    attributes that cannot be right, such as those that make one value of all stored ones; pydicom's own exceptions for
    the rest: read_image turns them into DataError.
    """
    dataset = read_dataset(path)
    _refuse_what_is_not_one_image(dataset, max_pixels)
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return read_colour(dataset, photometric)
    pixels = decode_pixels(dataset)
    one_image(pixels.values, colour=False)
    if has_supplemental_palette(dataset):
        return add_supplemental_colours(pixels, dataset)
    rendered, counted = render_grey(pixels, dataset)
    if is_collecting():
        clipped = clipped_fraction(pixels.values, rendered, counted)
        if clipped > CLIPPED_BY_WINDOW:
            remark("clipped", f"the window or LUT makes {clipped:.1%} of the pixels black or white, whatever they hold")
    return rendered


def read_dataset(path: Path, header_only: bool = False) -> FileDataset:
    """pydicom's data set of a file, its transfer syntax set; DataError for a deflated one that is a bomb."""
    import pydicom

    _check_deflated(path)
    dataset = pydicom.dcmread(path, force=True, stop_before_pixels=header_only)
    set_transfer_syntax(dataset)
    return dataset


def set_transfer_syntax(dataset: Dataset) -> None:
    """Where the file meta does not name one, the uncompressed syntax of the encoding that was met."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


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
    frames = integer(dataset, "NumberOfFrames", 1)
    if frames > 1:
        raise DataError(
            f"it holds {frames} frames; export the one to use as a single-frame file, or train on volumes: "
            "DATA.image_size=[depth, height, width]"
        )
    check_frame_groups(dataset)
    rows, columns = integer(dataset, "Rows", 0), integer(dataset, "Columns", 0)
    if rows < 1 or columns < 1:
        raise DataError(f"Rows {rows} and Columns {columns} describe no image")
    if max_pixels is not None and rows * columns > max_pixels:
        raise DataError(f"{rows} x {columns} pixels exceed the limit of {max_pixels:,}")
