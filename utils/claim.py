"""One process at a time with a file or a folder: a lock on the thing itself, which leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there is nothing to hold
    fcntl = None  # type: ignore[assignment]

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold an existing file or folder until the end; False where another holder, of this process too, has it.

    It belongs to the inode: a file that is replaced meanwhile can be held by another. On file systems without locks and
    on Windows nothing is held, and nothing refused.
    """
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # whoever reads or writes it says what is wrong
        yield True
        return
    held = _lock(descriptor)
    try:
        yield held
    finally:
        if held:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by closing alone: a forked child may have a copy
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD_BY_ANOTHER
    return True
