"""What files contain, in 16 bytes: to see whether one has changed, or whether two are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.errors import DataError
from data.readers.regular_files import open_regular

DIGEST_BYTES = 16
_PIECE_BYTES = 2**20
_THREADS = 8  # reading and hashing leave Python's lock; beyond this a disk seeks more than it reads


def digest(path: Path) -> bytes:
    """Of all bytes of a file: the first 16 of their SHA-256, which processors compute faster than other safe hashes.

    Raises OSError as `open` does, DataError for what is no regular file.
    """
    found = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            found.update(piece)
    return found.digest()[:DIGEST_BYTES]


def digest_of_all(paths: Sequence[Path]) -> bytes:
    """Of the names and contents of the files that one image is read from; a file that cannot be read counts as such."""
    found = hashlib.sha256()
    for path in paths:
        try:
            content = digest(path)
        except (OSError, DataError) as reason:
            content = type(reason).__name__.encode()
        found.update(path.name.encode("utf-8", "surrogateescape") + b"\0" + content)
    return found.digest()[:DIGEST_BYTES]


def thread_pool() -> ThreadPoolExecutor:
    """Threads to read files with."""
    return ThreadPoolExecutor(min(_THREADS, 2 * (os.cpu_count() or 1)))


def digests_of_all(images: Iterable[Sequence[Path]]) -> list[bytes]:
    """`digest_of_all` of the files of each image, by threads."""
    with thread_pool() as pool:
        return list(pool.map(digest_of_all, images))
