"""One training at a time in a run's folder.

flock, not lockf: it belongs to the open file, so that a second training of the same process is refused as well, and
closing another descriptor of the lock file (to look at it) does not drop it, as it does with POSIX record locks.
"""

from __future__ import annotations

import errno
import os
import random
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Literal
from weakref import WeakSet

from configs.errors import CheckpointError
from utils.runs.files import LOCK

try:
    import fcntl
except ImportError:  # Windows: there is nothing to hold
    fcntl = None  # type: ignore[assignment]

# A reader holds a shared lock for some microseconds while it looks, on a busy machine until it is given its next turn.
_SECONDS_FOR_READERS = 30.0
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_held: WeakSet[FolderLock] = WeakSet()


class FolderLock:
    """Holds a run's folder until it is released or this process ends, however it ends.

    Forked children (data workers) close their copy, so that one which outlives a killed parent does not keep the folder
    locked. On file systems without locks, and on Windows, nothing is held and nothing refused.
    Raises CheckpointError where a training is going on in the folder, or its lock file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._file: IO[str] | None = None
        if fcntl is None:
            return
        if any(lock.folder == self.folder for lock in _held):
            raise CheckpointError(f"this process is training in '{folder}' already: wait for it, or stop it")
        try:
            file = (folder / LOCK).open("a+")
        except OSError as error:
            raise CheckpointError(f"cannot write to the run's folder '{folder}': {error.strerror}") from None
        if not _acquire(file):
            file.close()
            raise CheckpointError(f"another process is training in '{folder}': wait for it, or stop it")
        self._file = file
        _held.add(self)

    def release(self) -> None:
        """Let the folder go; again: nothing."""
        _held.discard(self)
        if self._file is not None and not self._file.closed:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_UN)  # not by closing: a child that was forked just now has a copy
            self._file.close()
        self._file = None

    def close_copy(self) -> None:
        """In a forked child: forget the lock without unlocking it for the parent."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_state(folder: Path) -> Literal["held", "free", "unknown"]:
    """Whether a training, also of this process, is running in a folder; nothing is written, no lock is dropped.

    unknown: there is no lock file that can be read, or the file system has no locks.
    """
    if fcntl is None:
        return "unknown"
    try:
        with (folder / LOCK).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return "held" if error.errno in _HELD_BY_ANOTHER else "unknown"
    return "free"


def in_use(folder: Path) -> bool:
    """Whether a training is known to be running in a run's folder."""
    return lock_state(folder) == "held"


def _acquire(file: IO[str]) -> bool:
    """False where another holds the lock; those who only look are waited for, however many there are."""
    deadline = time.monotonic() + _SECONDS_FOR_READERS
    while not _lock(file, fcntl.LOCK_EX):
        # A shared lock beside it is refused by a holder alone.
        if not _lock(file, fcntl.LOCK_SH) or time.monotonic() > deadline:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(random.uniform(0.001, 0.02))  # never in step with another that waits likewise
    return True


def _lock(file: IO[str], kind: int) -> bool:
    """Whether it is held now, or a network file system without locks has nothing to hold."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD_BY_ANOTHER
    return True


def _close_copies() -> None:
    for lock in list(_held):
        lock.close_copy()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
