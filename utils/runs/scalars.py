"""Scalars for TensorBoard, written in the training process itself.

torch's SummaryWriter writes in a thread: a full disk shows up as a traceback there, and later as an error of another
call. Here a figure is in the file when `add` returns, or an OSError says why not.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from utils.text import printable

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class ScalarWriter:
    """Appends to a new event file in a folder (the format of TensorFlow's event.proto, records by tensorboard).

    purge_step: TensorBoard forgets what earlier files say about this step and later ones; None: nothing.
    again: (step, figures by their tags) that are written with that, as they are still true.
    Raises OSError from `add` where the file cannot be written; the next `add` begins a new file.
    """

    def __init__(
        self, folder: Path, purge_step: int | None = None, again: Sequence[tuple[int, Mapping[str, float]]] = ()
    ) -> None:
        self.folder, self.purge_step, self.again = folder, purge_step, again
        self._file: BinaryIO | None = None

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of one optimizer step, by their tags."""
        self._write([_event(step, figures)])

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, events: Sequence[Event]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = [*self._first_events(), *events] if self._file is None else events
        try:
            if self._file is None:
                self._file = self._new_file()
            records = RecordWriter(self._file)
            for event in events:
                records.write(event.SerializeToString())
            records.flush()
            self.purge_step, self.again = None, ()  # another file of this process must not make it forget this one
        except OSError:
            self._abandon()
            raise

    def _first_events(self) -> list[Event]:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        now = time.time()
        events = [Event(wall_time=now, file_version="brain.Event:2")]
        if self.purge_step is not None:
            events.append(Event(wall_time=now, step=self.purge_step, session_log=SessionLog(status=SessionLog.START)))
        return [*events, *(_event(step, figures) for step, figures in self.again)]

    def _new_file(self) -> BinaryIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        return (self.folder / name).open("ab")

    def _abandon(self) -> None:
        """A record may be half written: readers stop there, so that a new file has to follow."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:
            return


def _event(step: int, figures: Mapping[str, float]) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=printable(tag), simple_value=value) for tag, value in figures.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=values))
