"""Results that never end: rows appended to predictions.csv and predictions.jsonl, across restarts, and a heartbeat."""

from __future__ import annotations

import csv
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from configs.errors import PredictionError
from inference.ensemble import Ensemble
from inference.journal import ROWS, SETTINGS, TABLE, check_settings, row_from, settings_in
from inference.results import ResultTable, Row, as_dict, cannot_write
from utils.atomic_file import replacing, write_atomically
from utils.csv_cells import BYTE_ORDER_MARK, safe_cell
from utils.runs.json_lines import JsonObject, plain_object, to_line

HEARTBEAT = "watch.json"
_BEAT_S = 10.0


class RowStream:
    """Of one folder; rows of an earlier process stay, and are counted. example: a row as all are, without its result.

    keys: of the files that rows are of, see data/sources/arrivals.py. predicted, errors, drawn: rows so far with
    probabilities, with an error, with heatmaps. Raises PredictionError where the earlier rows are of other models or
    settings, or are not of a watched folder.
    """

    def __init__(self, folder: Path, made_by: JsonObject, ensemble: Ensemble, example: Row) -> None:
        self.folder, self.names = folder, ensemble.class_names
        self.keys: set[str] = set()
        self.rows = self.predicted = self.errors = self.drawn = 0
        self._table = ResultTable([example], ensemble)
        self._has_identifiers = example.identifiers is not None
        self._beaten, self._state = -_BEAT_S, ""
        self._started = _now()
        before = settings_in(folder)
        if before:
            check_settings(folder, before.get("made_by"), made_by)
        elif (folder / ROWS).exists() or (folder / TABLE).exists():
            raise PredictionError(f"'{folder}' holds results of another kind: name another folder by --output")
        try:
            content = {"finished": False, "rows": None, "made_by": made_by}
            write_atomically(folder / SETTINGS, (json.dumps(content, indent=1) + "\n").encode())
            _drop_torn_line(folder / ROWS)
            self._write_table()
            self._files = [_append_to(folder / ROWS), _append_to(folder / TABLE)]
        except OSError as error:
            raise cannot_write(folder, error) from None

    def add(self, rows: Sequence[Row], keys: Sequence[str]) -> None:
        """Write the rows of some files; with the last of them the files count as done. Raises PredictionError."""
        lines, cells = [], []
        for row in rows:
            own = list(keys) if row is rows[-1] else []
            record = {"row": self.rows, "time": _now(), "keys": own, **as_dict(row, self.names)}
            lines.append(to_line(plain_object(record)))
            cells.append([safe_cell(cell) for cell in self._table.cells(row)])
            self._count(row)
        try:
            self._files[0].write("".join(lines))
            self._files[0].flush()
            csv.writer(self._files[1], lineterminator="\n").writerows(cells)
            self._files[1].flush()
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        self.keys.update(keys)

    def beat(self, state: str, watched: str, waiting: int) -> None:
        """Write watch.json where ten seconds have gone by, or something has changed: who watches what, and how far."""
        now = f"{state} {self.rows} {waiting}"
        if now == self._state and time.monotonic() - self._beaten < _BEAT_S:
            return
        self._state, self._beaten = now, time.monotonic()
        content = {
            "state": state,
            "folder": watched,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "updated": _now(),
            "rows": self.rows,
            "predicted": self.predicted,
            "errors": self.errors,
            "waiting": waiting,
        }
        try:
            write_atomically(self.folder / HEARTBEAT, (json.dumps(content, indent=1) + "\n").encode(), durable=False)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def __enter__(self) -> RowStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def _count(self, row: Row) -> None:
        self.rows += 1
        self.predicted += row.probabilities is not None
        self.errors += bool(row.error)
        self.drawn += bool(row.heatmaps)

    def _write_table(self) -> None:
        """predictions.csv anew, from the rows: it may lack the last ones of a process that was killed."""
        plain_text = (
            all(line.isascii() for line in _lines(self.folder / ROWS)) and ",".join(self._table.header).isascii()
        )
        with (
            replacing(self.folder / TABLE) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            file.write("" if plain_text else BYTE_ORDER_MARK)
            table = csv.writer(file, lineterminator="\n")
            table.writerow(map(safe_cell, self._table.header))
            for line in _lines(self.folder / ROWS):
                record: JsonObject = json.loads(line)
                row, own = row_from(record, self.names, self._has_identifiers), record.get("keys")
                self.keys.update(map(str, own) if isinstance(own, list) else ())
                self._count(row)
                table.writerow(map(safe_cell, self._table.cells(row)))


def _append_to(path: Path) -> IO[str]:
    return path.open("a", encoding="utf-8", errors="backslashreplace", newline="")


def _lines(path: Path) -> Iterator[str]:
    """One at a time, so that memory does not grow with them."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield from file


def _drop_torn_line(path: Path) -> None:
    """What a process that was killed while it wrote has left behind the last line end."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        file.truncate(end)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
