"""Files that are complete or not there: written beside, flushed to disk, renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = ".tmp"


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to; at the end that file is flushed to disk and renamed to `path`.

    durable: False renames without flushing, which is quicker; after a loss of power the file may be empty.

    The name is no other process's, on another machine with the same folder neither.
    On an error, of the caller's too, `path` stays as it was and nothing is left behind. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable and os.name == "posix":
            _sync(path.parent)
    finally:
        remove(temporary)


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace a small file. durable: see `replacing`. Raises OSError, the old file intact."""
    with replacing(path, durable) as temporary:
        temporary.write_bytes(content)


def keep_as(path: Path, other: Path) -> None:
    """The file at `path` under a second name, replacing what had that; there is a file at `path` at any time."""
    link = other.with_name(f".{other.name}.{os.getpid()}{_TEMPORARY}")
    try:
        remove(link)
        os.link(path, link)
        link.replace(other)
    except OSError:  # a file system without hard links: for a moment there is only the other name
        path.replace(other)
    finally:
        remove(link)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        remove(path)


def remove(path: Path) -> None:
    """Delete a file if it is there and can be; a folder that has become read-only keeps it."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
