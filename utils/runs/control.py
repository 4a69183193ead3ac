"""Requests to a training to save and leave: by SIGTERM and SIGINT, or by a file in the run's folder.

A request says 'pause' or 'stop'. Both save last.pth at the end of the running step and leave; --resume goes on from
there with the same weights, bit for bit. They differ in what status.json then says, paused or stopped: a queue goes on
with what is paused by itself, and leaves what is stopped until somebody asks for it.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, TypeAlias, get_args

from utils.runs.files import CONTROL

Request: TypeAlias = Literal["pause", "stop"]
LeftAs: TypeAlias = Literal["paused", "stopped"]
REQUESTS: tuple[Request, ...] = get_args(Request)
LEFT_AS: dict[Request, LeftAs] = {"pause": "paused", "stop": "stopped"}
_SIGNALS: dict[Request, signal.Signals] = {"pause": signal.SIGTERM, "stop": signal.SIGINT}
_MOST_BYTES = 100

logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """Training leaves because it was asked to. Not an error.

    saved: whether a checkpoint was written for that; not where there is nothing to save, or after a second signal.
    """

    def __init__(self, request: Request, saved: bool = True, reason: str = "") -> None:
        super().__init__(reason or LEFT_AS[request])
        self.request, self.saved = request, saved

    @property
    def left_as(self) -> LeftAs:
        return LEFT_AS[self.request]

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal that means this request: 143 for a pause, 130 for a stop."""
        return 128 + _SIGNALS[self.request]


class Control:
    """What one training was asked for; ask it between two steps.

    seconds_between_looks: the file is looked for at most this often.
    """

    def __init__(self, seconds_between_looks: float = 1.0) -> None:
        self.seconds_between_looks = seconds_between_looks
        self.reason = ""
        self._asked: Request | None = None
        self._files: list[Path] = []
        self._looked = -float("inf")
        self._warned_of: dict[Path, str] = {}
        self._has_to_save = False
        self._owner = os.getpid()

    def install(self) -> Control:
        """Take over SIGINT and SIGTERM of this process; in its main thread only, and for scripts only.

        The first signal is noted, the second leaves at once. Where there is nothing to save, the first does.
        """
        for number in _SIGNALS.values():
            signal.signal(number, self._handle)
        return self

    @contextmanager
    def watching(self, folder: Path) -> Iterator[Control]:
        """Look at the file in this folder too, beside those of folders around it; it is removed when the training ends,
        so that the next one runs.
        """
        self._files.append(folder / CONTROL)
        try:
            yield self
        finally:
            self._files.remove(folder / CONTROL)
            discard_request(folder)

    @contextmanager
    def saving_first(self) -> Iterator[None]:
        """While whoever asks `request` saves before leaving, so that the first signal is only noted.

        Raises Interrupted at the end, where a request came after it was last asked for: then all was saved before.
        """
        self._has_to_save = True
        try:
            yield
        finally:
            self._has_to_save = False
        if self._asked is not None:
            raise Interrupted(self._asked)

    def request(self) -> Request | None:
        """What was asked for; None where nothing was, and outside `saving_first`, where a signal raises Interrupted.

        Cheap: usually it looks at the clock only.
        """
        if not self._has_to_save:
            return None
        if self._asked is None and self._files:
            now = time.monotonic()
            if now - self._looked >= self.seconds_between_looks:
                self._looked = now
                for file in self._files:
                    if self._asked is None:
                        self._look(file)
        return self._asked

    def _look(self, file: Path) -> None:
        text = _read(file)
        word = (text or "").strip().lower()
        for request in REQUESTS:
            if word == request:
                self._asked, self.reason = request, f"{LEFT_AS[request]} by the file '{file}'"
                return
        if word and word != self._warned_of.get(file, ""):
            logger.warning("'%s' says %r: it may say %s; nothing was done", file, word, " or ".join(REQUESTS))
        self._warned_of[file] = word

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data worker inherits the handler, not the duty
            os._exit(128 + number)
        request: Request = "pause" if number == signal.SIGTERM else "stop"
        reason = f"stopped by {signal.Signals(number).name}"
        if self._asked is not None or not self._has_to_save:
            raise Interrupted(request, saved=False, reason=reason)
        self._asked, self.reason = request, reason


def discard_request(folder: Path) -> None:
    """Remove the file that asks for something, if there is one: no training is running, or it was carried out."""
    try:
        (folder / CONTROL).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot remove '%s': %s", folder / CONTROL, error.strerror)


def _read(file: Path) -> str | None:
    """The beginning of a file; None where there is none, without waiting for what is no regular file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            return os.read(descriptor, _MOST_BYTES).decode("utf-8", "replace")
        finally:
            os.close(descriptor)
    except OSError:
        return None
