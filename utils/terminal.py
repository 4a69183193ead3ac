"""Output that cannot end a program: a pipe whose reader has left (`| head`), a terminal without UTF-8, a full disk."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast


class _Tolerant:
    """A text stream that swallows failures to write; from the first one on, what is written goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lost = stream, False

    def write(self, text: str) -> int:
        if not self._lost:
            try:
                self._stream.write(text)
            except OSError:  # EPIPE: the reader has left; EIO: the terminal is gone; ENOSPC, EFBIG: it is a file
                self._give_up()
        return len(text)

    def flush(self) -> None:
        if not self._lost:
            try:
                self._stream.flush()
            except OSError:
                self._give_up()

    def _give_up(self) -> None:
        self._lost = True
        # What is buffered is flushed once more when the interpreter ends, and would fail again: with exit code 120.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Inside, writing to stdout and stderr raises nothing: results and exit code do not depend on who reads them.

    Characters that a terminal's encoding lacks are written as escapes (\\u80ba).
    """
    before = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in before]
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (cast(TextIO, _Tolerant(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
        for stream, policy in zip(before, errors):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=policy)
