"""Everything that a program writes as JSON, a line an object: results, errors, log lines, what libraries print.

Python's streams are wrapped, and the descriptors under them lead through a pipe, as libraries in C write there. What is
an object already is passed on as it is; any other line becomes the message of one.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TextIO, cast

from utils.text import printable_lines

_MOST_S = 5.0  # to read what is left in the pipes
_PIPE_BYTES = 2**20  # what a library may print at once while it keeps Python from running
_active = 0


def active() -> bool:
    """Whether all output is JSON."""
    return _active > 0


def json_line(level: str, logger: str, message: str, seconds: float | None = None) -> str:
    """One object: time (UTC, ISO 8601), level, logger, message. seconds: since 1970, now where None."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    time = moment.isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "level": level, "logger": logger, "message": message}, ensure_ascii=False)


class JsonOutput:
    """A context in which stdout and stderr are lines of JSON."""

    def __enter__(self) -> JsonOutput:
        global _active
        _active += 1
        self._before = sys.stdout, sys.stderr
        self._piped: list[_Piped] = []
        streams = [self._wrap(name, stream) for name, stream in zip(("stdout", "stderr"), self._before)]
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
        self._stop, self._stopped = os.pipe()
        self._reader = threading.Thread(target=_pass_on, args=(self._piped, self._stop), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        global _active
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError):
                cast(_Lines, stream).finish()
        sys.stdout, sys.stderr = self._before
        for one in self._piped:
            os.dup2(one.saved, one.descriptor)
        os.write(self._stopped, b".")
        self._reader.join(_MOST_S)
        for descriptor in [self._stop, self._stopped, *(end for one in self._piped for end in (one.source, one.saved))]:
            os.close(descriptor)
        _active -= 1

    def _wrap(self, name: str, stream: TextIO) -> _Lines:
        with suppress(OSError, ValueError):
            stream.flush()
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):  # a notebook's stream, or a test's
            return _Lines(stream.write, name)
        one = _Piped(name, descriptor)
        self._piped.append(one)
        return _Lines(one.lines.sink, name)


class _Lines(io.TextIOBase):
    """Text in, lines of JSON out to `sink`."""

    encoding = "utf-8"

    def __init__(self, sink: Callable[[str], object], name: str) -> None:
        self.sink, self._name, self._rest = sink, name, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self.sink(_as_object(line, self._name) + "\n")
        return len(text)

    def finish(self) -> None:
        """Write a last line that has no end."""
        if self._rest:
            self.write("\n")


class _Piped:
    """A descriptor that leads into a pipe; where it led before is `saved`."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.descriptor, self.saved = descriptor, os.dup(descriptor)
        self.source, end = os.pipe()
        with suppress(ImportError, OSError, AttributeError):
            import fcntl

            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.dup2(end, descriptor)
        os.close(end)
        self.lines = _Lines(partial(_write_all, self.saved), name)


def _pass_on(piped: list[_Piped], stop: int) -> None:
    """Read the pipes, until told to stop and they are empty."""
    sources, stopping = {one.source: one for one in piped}, False
    while sources or not stopping:
        ready = select.select([*sources, *([] if stopping else [stop])], [], [], 0 if stopping else None)[0]
        for source in set(ready) - {stop}:
            found = os.read(source, 65536)
            sources[source].lines.write(found.decode(errors="backslashreplace"))
            if not found:  # nobody can write into it any more
                del sources[source]
        if stopping and not ready:  # a child may still have the other end
            break
        stopping = stopping or stop in ready
    for one in piped:
        one.lines.finish()


def _as_object(line: str, name: str) -> str:
    if line.startswith("{"):
        with suppress(ValueError, RecursionError):
            if isinstance(json.loads(line), dict):
                return line
    return json_line("WARNING" if name == "stderr" else "INFO", name, printable_lines(line))


def _write_all(descriptor: int, text: str) -> None:
    """To a descriptor; a reader that has left, or a full disk, ends nothing."""
    data = text.encode(errors="backslashreplace")
    with suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]
