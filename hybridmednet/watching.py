"""predict.py --watch: files of a folder are predicted as they arrive, each once, until the process has to leave."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from configs.errors import CacheError, DataError, PredictionError
from data.asked import AskedModel
from data.sources.arrivals import Arrivals, Unit
from data.sources.unlabelled import FilesBelow
from data.sources.watched import Kind, WatchedFolder
from hybridmednet.asking import (
    REFUSED,
    AnyAsked,
    check_dicom,
    dicom_writer,
    draw_row,
    drawer,
    fill,
    heatmaps_asked,
    open_asked,
    rows_of,
    settings_of,
    write_dicom_row,
)
from inference.dicom_output import DicomOutput
from inference.ensemble import Ensemble
from inference.results import Row, make_folder
from inference.stream import RowStream
from utils.claim import claimed_alone

logger = logging.getLogger("predict")

LOOK_S = 2.0  # between two looks at the folder
QUIET_S, QUIET_GROUP_S = 5.0, 30.0
_TELL_S = 600.0


def watch(options: argparse.Namespace, ensemble: Ensemble, models: Sequence[AskedModel]) -> int:
    """Until SIGTERM (0) or Ctrl-C (130). Raises PredictionError for folders that cannot be, or that another has."""
    folder, output = Path(options.watch), Path(options.output)
    _check(folder, output)
    kind: Kind = "images"
    if models[0].of_studies:
        kind = "studies"
    elif models[0].config.has_volumes():
        kind = "volumes"
    watched = WatchedFolder(folder, kind)
    quiet = options.quiet if options.quiet is not None else QUIET_S if kind == "images" else QUIET_GROUP_S
    arrivals = Arrivals(watched.files, watched.takes, watched.group_of, quiet)
    writer = dicom_writer(options.dicom_output, output, ensemble)
    example = Row("", images=() if kind == "studies" else None, identifiers=None if options.no_identifiers else {})
    make_folder(options.output)
    taken = PredictionError(f"another process is writing into '{output}': wait for it, or name another by --output")
    settings = settings_of(options, ensemble)
    with claimed_alone(output, taken), RowStream(output, settings, ensemble, example) as stream, _leaving() as leave:
        arrivals.handled |= stream.keys
        if stream.rows:
            logger.info("'%s' holds %d rows of before: their files are not predicted again", output, stream.rows)
        _Watch(options, ensemble, models, watched, arrivals, stream, writer).until(leave)
    return 0


def _check(folder: Path, output: Path) -> None:
    if not folder.is_dir():
        raise PredictionError(f"--watch: there is no folder '{folder}'")
    if output.resolve().is_relative_to(folder.resolve()):
        raise PredictionError(
            f"--output '{output}' is inside '{folder}', which is watched: what is written would be predicted in turn"
        )


@contextmanager
def _leaving() -> Iterator[threading.Event]:
    """An event that the first SIGTERM sets; the second ends the process at once."""
    leave = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        leave.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield leave
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Watch:
    """writer: of --dicom-output. told: when the log last said how far it is."""

    options: argparse.Namespace
    ensemble: Ensemble
    models: Sequence[AskedModel]
    watched: WatchedFolder
    arrivals: Arrivals
    stream: RowStream
    writer: DicomOutput | None
    told: float = 0.0
    away: str = ""

    def until(self, leave: threading.Event) -> None:
        """Look, predict and wait in turn; on the way out the heartbeat says how it ended."""
        state = "failed"
        try:
            while not leave.is_set():
                for units in self._parts(self._look()):
                    if not leave.is_set():
                        self._predict(units)
                        self._tell("watching")
                self._tell("watching")
                leave.wait(min(LOOK_S, self.arrivals.quiet))
            state = "stopped"
        except KeyboardInterrupt:
            state = "stopped"
            raise
        finally:
            self.stream.beat(state, self._name, self.arrivals.waiting)
        logger.info("left after %d rows, %d of them with an error", self.stream.rows, self.stream.errors)

    @property
    def _name(self) -> str:
        return "the watched folder" if self.options.no_identifiers else str(self.watched.folder)

    def _look(self) -> list[Unit]:
        try:
            found = self.arrivals.poll()
        except OSError as error:  # a drive that is away comes back
            if self.away != str(error.strerror):
                self.away = str(error.strerror)
                logger.warning("'%s' cannot be read (%s): it is looked at again and again", self._name, self.away)
            return []
        if self.away:
            self.away = ""
            logger.info("'%s' can be read again", self._name)
        return found

    def _parts(self, units: Sequence[Unit]) -> Iterator[list[Unit]]:
        """What is predicted in one go: as many images as a batch has, studies one by one."""
        size = 1 if self.watched.kind == "studies" else self.options.batch_size
        yield from (list(units[first : first + size]) for first in range(0, len(units), size))

    def _predict(self, units: list[Unit]) -> None:
        """The rows of some units into the files; what cannot be read is tried again later before that is written."""
        paths = [path for unit in units for path in self.watched.asked(unit.paths)]
        try:
            asked = open_asked(self.options, self.models, FilesBelow(self.watched.folder, tuple(paths)))
            rows = rows_of(asked)
            if self.writer is not None:
                check_dicom(asked)
            fill(self.options, self.ensemble, asked, rows, lambda batch: None)
        except CacheError:
            raise
        except (DataError, PredictionError) as error:
            if len(units) > 1:  # whichever it is
                for unit in units:
                    self._predict([unit])
                return
            self._write(units[0], [self._failed(units[0], str(error))], None)
            return
        if self.watched.kind == "studies":
            self._write(units[0], rows, asked, range(len(rows)))
            return
        for number, (unit, row) in enumerate(zip(units, rows, strict=True)):
            self._write(unit, [row], asked, [number])

    def _failed(self, unit: Unit, reason: str) -> Row:
        hidden = self.options.no_identifiers
        inner = unit.paths[0].relative_to(self.watched.folder).as_posix()
        row = Row(f"{self.stream.rows:05d}" if hidden else inner, error="it cannot be predicted" if hidden else reason)
        if self.watched.kind == "studies":
            row.images = ()
        return row

    def _write(self, unit: Unit, rows: Sequence[Row], asked: AnyAsked | None, numbers: Sequence[int] = ()) -> None:
        if not any(path.exists() for path in unit.paths):
            logger.info("%d files were gone before they were read", len(unit.paths))
            return
        unread = [row for row in rows if row.error and not row.error.startswith(REFUSED)]
        if len(unread) == len(rows) and self.arrivals.postpone(unit):
            if not self.options.no_identifiers:
                logger.warning("'%s' is tried once more: %s", rows[0].image, rows[0].error)
            return
        for place, row in enumerate(rows, self.stream.rows):
            if self.options.no_identifiers:
                row.image = f"{place:05d}"
                row.images = (
                    None if row.images is None else tuple(f"{place:05d}-{k}" for k, _ in enumerate(row.images, 1))
                )
        draw = drawer(self.options.heatmaps, self.stream.folder, self.ensemble, asked) if asked is not None else None
        limit = heatmaps_asked(self.options.heatmaps)[1]
        for place, (row, number) in enumerate(zip(rows, numbers), self.stream.rows):
            if row.probabilities is None or asked is None:
                continue
            if draw is not None and (limit is None or (row.findings and self.stream.drawn < limit)):
                draw_row(draw, number, row, place)
            if self.writer is not None:
                write_dicom_row(self.writer, number, row, asked)
        self.stream.add(rows, unit.keys)
        self.arrivals.done(unit)

    def _tell(self, state: str) -> None:
        """The heartbeat, and now and then a line of the log."""
        self.stream.beat(state, self._name, self.arrivals.waiting)
        counts = self.stream.rows, self.stream.errors, self.arrivals.waiting
        if time.monotonic() - self.told > _TELL_S or (counts[0] and not self.told):
            self.told = time.monotonic()
            logger.info("watching: %d rows, %d of them with an error; %d files wait", *counts)
