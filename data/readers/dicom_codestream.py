"""What the codestreams inside a DICOM file say about themselves, and whether gdcm may be given them.

gdcm decodes what nothing else does (lossless JPEG, JPEG-LS), and a damaged header ends the process in it: its C++
exceptions pass Python by. So headers are read here first; damaged entropy-coded data it survives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from configs.errors import DataError
from data.readers.dicom_attributes import integer

if TYPE_CHECKING:
    from pydicom import Dataset

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # ITU-T T.81 table B.1; F7: T.87
_HUFFMAN_TABLES, _START_OF_SCAN = 0xC4, 0xDA


def frames_of(dataset: Dataset) -> Iterator[bytes]:
    """The codestream of each frame; none for uncompressed pixels and RLE."""
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        yield from generate_frames(dataset.PixelData, number_of_frames=max(integer(dataset, "NumberOfFrames", 1), 1))


def precision_of(dataset: Dataset) -> int | None:
    """Bits of a sample in the codestream of the first frame; None where there is none or it does not say."""
    from pydicom.pixels.utils import get_j2k_parameters

    for frame in frames_of(dataset):
        return get_j2k_parameters(frame).get("precision") or _jpeg_precision(frame)
    return None


def transforms_colours(frame: bytes) -> bool:
    """Whether a JPEG 2000 codestream says that its samples were RGB before it (COD marker: T.800 A.6.1)."""
    position = frame.find(b"\xff\x52")
    return frame[:2] == b"\xff\x4f" and position > 0 and frame[position + 8 : position + 9] == b"\x01"


def check_jpeg_headers(dataset: Dataset) -> None:
    """DataError for a JPEG or JPEG-LS frame whose header is damaged or describes another image than the data set."""
    for frame in frames_of(dataset):
        problem = _problem(frame, dataset)
        if problem is not None:
            raise DataError(f"its compressed pixels are damaged: {problem}")


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of each segment up to and with the start of scan; ends early where there is no marker."""
    position = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4], "big")
        if length < 2 or position + 2 + length > len(frame):
            return
        yield marker, frame[position + 4 : position + 2 + length]
        if marker == _START_OF_SCAN:
            return
        position += 2 + length


def _jpeg_precision(frame: bytes) -> int | None:
    return next((content[0] for marker, content in _segments(frame) if marker in _FRAME_HEADERS and content), None)


def _problem(frame: bytes, dataset: Dataset) -> str | None:
    """What is wrong with the header of a frame, None if nothing is (T.81 B.2.2 to B.2.4, T.87 C.2)."""
    samples = integer(dataset, "SamplesPerPixel", 1)
    size = (integer(dataset, "Rows", 0), integer(dataset, "Columns", 0))
    described, last = False, None
    for marker, content in _segments(frame):
        last = marker
        if marker in _FRAME_HEADERS:
            described = True
            problem = _frame_header_problem(content, size, samples)
        elif marker == _HUFFMAN_TABLES:
            problem = None if _are_huffman_tables(content) else "a Huffman table of it is not valid"
        elif marker == _START_OF_SCAN:
            valid = len(content) >= 4 and 1 <= content[0] <= samples and len(content) == 4 + 2 * content[0]
            problem = None if valid and described else "its start of scan is not valid"
        else:
            problem = None
        if problem is not None:
            return problem
    return None if last == _START_OF_SCAN else "its header breaks off"


def _frame_header_problem(content: bytes, size: tuple[int, int], samples: int) -> str | None:
    if len(content) < 6 or len(content) != 6 + 3 * content[5]:
        return "its frame header is not valid"
    bits, rows, columns = content[0], int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    if (rows, columns, content[5]) != (*size, samples):
        return f"{rows} x {columns} pixels of {content[5]} samples, not {size[0]} x {size[1]} of {samples}"
    factors = [nibble for byte in content[7::3] for nibble in (byte >> 4, byte & 15)]
    if not 2 <= bits <= 16 or not all(1 <= factor <= 4 for factor in factors):
        return f"{bits} bits per sample, sampling factors {factors}"
    return None


def _are_huffman_tables(content: bytes) -> bool:
    position = 0
    while position + 17 <= len(content):
        counts = content[position + 1 : position + 17]
        codes = sum(count << (15 - place) for place, count in enumerate(counts))
        if content[position] >> 4 > 1 or content[position] & 15 > 3 or sum(counts) > 256 or codes > 2**16:
            return False
        position += 17 + sum(counts)
    return position == len(content)
