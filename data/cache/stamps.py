"""Whether the files of a cache's images are those it was made of: by what the file system says, and by content.

A stamp is made of name, size, time of change of the content (mtime) and of the file's entry (ctime). The last cannot be
set, so that it tells of content that was exchanged under the old size and time (`rsync -t`, archives with fixed times,
uncompressed DICOM, all of one size). It also changes where nothing did: by a copy, a backup, another container. So
images of another stamp are compared by content, and what is found to be the same is noted beside the cache.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.errors import ConfigError
from data.readers.digests import DIGEST_BYTES, digest_of_all, digests_of_all
from data.study import DatasetIndex
from utils.atomic_file import remove, write_atomically

logger = logging.getLogger(__name__)

SUFFIX = ".stamps"


def stamps(dataset_index: DatasetIndex) -> np.ndarray:
    """uint64 [rows, 2]: a digest of what the file system says of the files that each image is read from.

    Raises ConfigError where the source does not know its files.
    """
    seen: dict[Path, str] = {}
    found = np.empty((len(dataset_index.studies), 2), "<u8")
    for row, study in enumerate(dataset_index.studies):
        files = dataset_index.files(row)
        if not files:
            raise ConfigError(
                f"DATA.cache: the data source does not report the files of '{study.name}', so changes cannot be "
                "detected: set it to none"
            )
        text = "\n".join(seen[path] if path in seen else seen.setdefault(path, _stamp(path)) for path in files)
        found[row] = np.frombuffer(
            hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest(), "<u8"
        )
    return found


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as reason:
        return f"{path.name}\0{reason.errno}"
    return f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"


class ContentOf:
    """(dataset index, row) → uint64 [2]: of its files' names and content; a file that all share is read once."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Path, ...], np.ndarray] | None = None

    def __call__(self, dataset_index: DatasetIndex, row: int) -> np.ndarray:
        files = tuple(dataset_index.files(row))
        if self._last is None or self._last[0] != files:
            self._last = files, as_numbers(digest_of_all(files))
        return self._last[1]


def contents(dataset_index: DatasetIndex, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """uint64 [len(rows), 2]: as ContentOf, by threads."""
    files = [tuple(dataset_index.files(int(row))) for row in rows]
    once = list(dict.fromkeys(files))
    found = dict(zip(once, map(as_numbers, digests_of_all(once)), strict=True))
    return np.array([found[paths] for paths in files], "<u8").reshape(-1, 2)


def as_numbers(digest: bytes) -> np.ndarray:
    """uint64 [2]."""
    assert len(digest) == DIGEST_BYTES
    return np.frombuffer(digest, "<u8")


def changed_rows(
    dataset_index: DatasetIndex, records: np.ndarray, now: np.ndarray, path: Path, footer: bytes, by_content: bool
) -> np.ndarray:
    """The rows whose files are not those that a cache was made of.

    records: of the cache, RECORD. now: `stamps`. path, footer: of the cache. by_content: read all files, whatever the
    file system says of them.
    """
    alike = (records["stamp"] == now).all(1) | (_noted(path, footer, len(now)) == now).all(1)
    asked = np.arange(len(now)) if by_content else np.flatnonzero(~alike)
    if not len(asked):
        return asked
    logger.info("the content of the files of %s images is compared with the cache", f"{len(asked):,}")
    changed = asked[(contents(dataset_index, asked) != records["content"][asked]).any(1)]
    if not len(changed) and not alike.all():
        _note(path, footer, now)
    return changed


def _noted(path: Path, footer: bytes, rows: int) -> np.ndarray:
    """The stamps that were noted beside a cache; zeros where there are none for it."""
    try:
        content = path.with_suffix(SUFFIX).read_bytes()
    except OSError:
        content = b""
    body, crc = content[:-4], content[-4:]
    if len(body) != len(footer) + 16 * rows or body[: len(footer)] != footer or zlib.crc32(body) != _crc_of(crc):
        return np.zeros((rows, 2), "<u8")
    return np.frombuffer(body, "<u8", offset=len(footer)).reshape(rows, 2)


def _crc_of(text: bytes) -> int:
    return int.from_bytes(text, "little")


def _note(path: Path, footer: bytes, now: np.ndarray) -> None:
    body = footer + now.astype("<u8").tobytes()
    try:
        write_atomically(path.with_suffix(SUFFIX), body + zlib.crc32(body).to_bytes(4, "little"))
    except OSError as reason:  # the next run compares again
        logger.info("what was compared cannot be noted beside the cache: %s", reason)


def forget(path: Path) -> None:
    """Remove what was noted of an earlier cache of this name."""
    remove(path.with_suffix(SUFFIX))
