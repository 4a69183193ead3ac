"""The checksums of a PNG, which Pillow and OpenCV leave unread where the pixels are."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

from configs.errors import DataError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PIECE_BYTES = 2**20


def check_png(path: Path) -> None:
    """DataError unless each chunk, from the signature to IEND, is whole and has the CRC-32 that it should have.

    A CRC-32 notices every change within 32 bits and all but one in 4e9 of the others (PNG, third edition, 5.5).
    What follows IEND is left alone.
    """
    with path.open("rb") as file:
        file.seek(len(PNG_MAGIC))
        while _check_chunk(file) != b"IEND":
            pass


def _check_chunk(file: BinaryIO) -> bytes:
    """Read one chunk, return its type."""
    start = file.read(8)
    length, kind = int.from_bytes(start[:4], "big"), start[4:]
    crc = _crc_of(file, length, zlib.crc32(kind))
    stored = file.read(4)
    if len(stored) < 4:
        raise DataError("the PNG is truncated: it ends before its IEND chunk does")
    if int.from_bytes(stored, "big") != crc:
        raise DataError(f"the PNG is damaged: its chunk {kind!r} has another checksum")
    return kind


def _crc_of(file: BinaryIO, length: int, crc: int) -> int:
    while length > 0:
        piece = file.read(min(length, _PIECE_BYTES))
        if not piece:
            break
        crc, length = zlib.crc32(piece, crc), length - len(piece)
    return crc
