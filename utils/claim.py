"""One process at a time with a file or a folder: a lock on the thing itself, which leaves nothing behind."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from configs.errors import HybridMedNetError

try:
    import fcntl
except ImportError:  # Windows: there is nothing to hold
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_open: set[int] = set()


@contextmanager
def claimed(path: Path, wait: str = "") -> Iterator[bool]:
    """Hold an existing file or folder until the end; False where another holder, of this process too, has it.

    wait: until it has ended, as what it is said to be doing ('drawing sample data').

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
    _open.add(descriptor)
    held = _lock(descriptor, fcntl.LOCK_NB)
    if not held and wait:
        logger.info("waiting for another process, which is %s in '%s'", wait, path)
        held = _lock(descriptor, 0)
    try:
        yield held
    finally:
        if descriptor in _open:  # not in a forked child, which has closed its copy
            _open.remove(descriptor)
            if held:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by closing alone: a forked child may have a copy
            os.close(descriptor)


@contextmanager
def claimed_alone(path: Path, error: HybridMedNetError) -> Iterator[None]:
    """The same; `error` is raised where another holder has it."""
    with claimed(path) as alone:
        if not alone:
            raise error
        yield


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except OSError as error:
        return error.errno not in _HELD_BY_ANOTHER
    return True


def _close_copies() -> None:
    """A data worker that outlives its killed parent for some seconds must not keep others out."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
