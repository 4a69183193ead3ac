"""Where decoded images lie, one after another: in a file with its index at the end, or in shared memory.

A file is `MAGIC`, the images' bytes, a RECORD per row, JSON, and a footer with their lengths and checksum. All
processes share one copy of it, in the page cache. Nothing in it is unpacked or executed. It is read and not mapped: a
process that has mapped a file dies of SIGBUS when somebody truncates it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import torch
from torch import Tensor

from configs.errors import CacheError
from data.readers.regular_files import open_regular

MAGIC = b"HMNcache"
_FOOTER = struct.Struct("<QQQI8s")  # bytes of images, rows, bytes of JSON, CRC-32 of records and JSON, MAGIC
_LARGEST_JSON = 2**26

# kind: 0 unreadable, else as data/cache/reader.py has it. offset, length: of its bytes among all images'. stamp: of
# the files it was read from, and content: see data/cache/stamps.py. spacing: of a volume's grid in mm.
RECORD = np.dtype(
    [("kind", "u1"), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4"), ("stamp", "<u8", 2), ("spacing", "<f8", 3)]
    + [("content", "<u8", 2)]
)


class DamagedCache(Exception):
    """A file that is no cache, or one that is cut off or altered."""


class CacheDescription(TypedDict, total=False):
    """What a cache says of itself: of which settings and library versions it is, row → why it cannot be read, and row →
    [kind, detail] of what was remarked.
    """

    settings: dict[str, object]
    libraries: dict[str, str]
    unreadable: dict[str, str]
    remarks: dict[str, list[list[str]]]


@dataclass(frozen=True)
class CacheIndex:
    """records: RECORD [rows of the dataset index]. about: as it is written; of a file not yet looked at, see `find`."""

    records: np.ndarray
    about: CacheDescription


class FileBytes:
    """The images of a cache file, opened when first asked for; pickled, it is its path and opens the file itself."""

    def __init__(self, path: Path, footer: bytes) -> None:
        self.path, self.footer = path, footer
        self._file: BinaryIO | None = None

    def __call__(self, offset: int, length: int) -> np.ndarray:
        """uint8 [length], the caller's own. Raises CacheError where the file is another one now, or shorter."""
        if self._file is None:
            self._file = self._open()
        found = _read_at(self._file, len(MAGIC) + offset, length)
        if len(found) != length:
            raise CacheError(
                f"the cache '{self.path}' was truncated while it is read: start again (--resume), and it is rebuilt"
            )
        return found

    def _open(self) -> BinaryIO:
        try:
            file = self.path.open("rb", buffering=0)
            end = file.seek(0, os.SEEK_END)
        except OSError as reason:
            raise CacheError(f"cannot open the cache '{self.path}': {reason}") from reason
        if _read_at(file, max(end - len(self.footer), 0), len(self.footer)).tobytes() != self.footer:
            file.close()
            raise CacheError(f"the cache '{self.path}' has become another one since this run began: start it again")
        return file

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _read_at(file: BinaryIO, begin: int, length: int) -> np.ndarray:
    """Up to `length` bytes, uint8; fewer at the end. The position, which forked processes share, is not used."""
    if not hasattr(os, "preadv"):  # Windows, where nothing is forked
        file.seek(begin)
        return np.frombuffer(bytearray(file.read(length)), np.uint8)
    found, count = np.empty(length, np.uint8), 0
    while count < length and (more := os.preadv(file.fileno(), [found[count:].data], begin + count)):
        count += more
    return found[:count] if count < length else found


class SharedBytes:
    """Images in memory that all workers share, forked or spawned ones.

    chunk_bytes: how much is gathered before it is shared; each chunk is an open file of every process.
    """

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self._chunks: list[Tensor] = []
        self._views: list[np.ndarray] = []
        self._starts: list[int] = []
        self._waiting: list[Tensor] = []
        self._waiting_bytes, self._end = 0, 0

    def write(self, pixels: np.ndarray) -> None:
        """Append uint8 [n]; it never lies in two chunks."""
        self._waiting.append(torch.from_numpy(pixels.copy()))
        self._waiting_bytes += len(pixels)
        if self._waiting_bytes >= self.chunk_bytes:
            self.finish()

    def finish(self) -> None:
        """Share what is not yet."""
        if self._waiting:
            chunk = torch.cat(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
            self._starts.append(self._end)
            self._chunks.append(chunk.share_memory_())
            self._end += len(chunk)

    def __call__(self, offset: int, length: int) -> np.ndarray:
        """uint8 [length], a view."""
        if len(self._views) != len(self._chunks):
            self._views = [chunk.numpy() for chunk in self._chunks]
        number = bisect_right(self._starts, offset) - 1
        begin = offset - self._starts[number]
        return self._views[number][begin : begin + length]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_views": []}  # a spawned worker would get copies of them


def write_index(file: BinaryIO, images: int, index: CacheIndex) -> None:
    """Append what makes MAGIC and so many bytes of images a cache."""
    text = json.dumps(index.about, sort_keys=True).encode()
    body = index.records.tobytes() + text
    file.write(body + _FOOTER.pack(images, len(index.records), len(text), zlib.crc32(body), MAGIC))


def open_cache_file(path: Path, rows: int) -> tuple[CacheIndex, FileBytes]:
    """Index and images of a cache file of so many rows, all but the images themselves checked.

    Raises DamagedCache where sizes or checksum do not fit, OSError where it cannot be read.
    """
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size < len(MAGIC) + _FOOTER.size:
            raise DamagedCache(f"it has {size} bytes")
        file.seek(size - _FOOTER.size)
        footer = file.read(_FOOTER.size)
        images, written, json_bytes, crc, magic = _FOOTER.unpack(footer)
        if magic != MAGIC or json_bytes > _LARGEST_JSON or written != rows:
            raise DamagedCache(f"it does not end as a cache of {rows:,} images does")
        whole = len(MAGIC) + images + rows * RECORD.itemsize + json_bytes + _FOOTER.size
        if whole != size:
            raise DamagedCache(f"it has {size:,} bytes, not {whole:,}")
        file.seek(len(MAGIC) + images)
        body = file.read(size - _FOOTER.size - len(MAGIC) - images)
    if zlib.crc32(body) != crc:
        raise DamagedCache("its index has another checksum")
    records = np.frombuffer(body, RECORD, rows)
    if (records["offset"] + records["length"] > images).any():
        raise DamagedCache("its index points outside")
    try:
        about = json.loads(body[rows * RECORD.itemsize :])
    except ValueError as reason:
        raise DamagedCache(f"its header is not JSON: {reason}") from None
    return CacheIndex(records, about), FileBytes(path, footer)


def free_memory() -> int | None:
    """Bytes that can still be shared: of the machine, of the control group, of /dev/shm; None where nothing says."""
    found = [_meminfo(), _left_to_group()]
    if Path("/dev/shm").is_dir():
        found.append(shutil.disk_usage("/dev/shm").free)
    return min((value for value in found if value is not None), default=None)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_to_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of the second version of control groups; what it keeps of files is given back when it is needed."""
    try:
        most, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or its limit is 'max'
        return None
    return most - used + int(kept.get("inactive_file", 0))
