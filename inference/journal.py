"""Results as they come: rows that are in their files before the next batch begins, and that --resume goes on from."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from configs.errors import PredictionError
from inference.ensemble import Ensemble
from inference.results import ResultTable, Row, as_dict, cannot_write, results_csv
from utils.atomic_file import remove, write_atomically
from utils.csv_cells import BYTE_ORDER_MARK, safe_cell
from utils.runs.json_lines import JsonObject, JsonValue, plain_object, read_rows, to_line

logger = logging.getLogger(__name__)

ROWS, TABLE, SETTINGS, WHOLE = "predictions.jsonl", "predictions.csv", "resume.json", "predictions.json"
_UNFINISHED = "predictions.unfinished.jsonl"
_SHOWN = 3


class Journal:
    """predictions.jsonl, and predictions.csv where it is asked for, of one folder; `with` closes them.

    made_by: what the results depend on, the same for all rows. rows: all that will be, those filled that --resume has
    found. Earlier results stay until the first row is there.
    """

    def __init__(
        self, folder: Path, made_by: JsonObject, rows: Sequence[Row], ensemble: Ensemble, with_csv: bool
    ) -> None:
        self.folder, self.made_by, self.rows, self.names = folder, made_by, rows, ensemble.class_names
        self._ensemble, self._with_csv = ensemble, with_csv
        self._table = ResultTable(rows, ensemble)
        self._files: list[IO[str]] = []
        self._done: set[int] = set()

    def add(self, numbers: Sequence[int]) -> None:
        """Write rows that are done. Raises PredictionError where they cannot be written."""
        try:
            if not self._files:
                self._begin(frozenset(numbers))
            self._files[0].writelines(to_line(self._record(number)) for number in numbers)
            if self._with_csv:
                self._write_cells([self._table.cells(self.rows[number]) for number in numbers])
            for file in self._files:
                file.flush()
        except OSError as error:
            self._give_up()
            raise cannot_write(self.folder, error) from None
        self._done.update(numbers)

    def finish(self) -> None:
        """Write predictions.jsonl again, each row once and in order; predictions.csv is the caller's to replace."""
        self.close()
        try:
            text = "".join(to_line(self._record(number)) for number in range(len(self.rows)))
            write_atomically(self.folder / ROWS, text.encode("utf-8", "backslashreplace"))
            self._write_settings(finished=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._files = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None and self._done:
            counts = len(self._done), len(self.rows)
            logger.warning("%d of %d rows are in '%s': the same command with --resume goes on", *counts, self.folder)

    def _begin(self, coming: frozenset[int]) -> None:
        """Files with the rows that are there, for those that come."""
        done = [
            n for n, row in enumerate(self.rows) if n not in coming and (row.probabilities is not None or row.error)
        ]
        remove(self.folder / WHOLE)
        remove(self.folder / TABLE)
        self._write_settings(finished=False)
        self._files.append(self._open(ROWS))
        self._files[0].writelines(to_line(self._record(number)) for number in done)
        self._done.update(done)
        if self._with_csv:
            self._files.append(self._open(TABLE))
            # Which errors will have letters beyond ASCII is not known yet; names and tables are.
            if not results_csv(self.rows, self._ensemble).isascii():
                self._files[1].write(BYTE_ORDER_MARK)
            self._write_cells([self._table.header, *(self._table.cells(self.rows[number]) for number in done)])

    def _open(self, name: str) -> IO[str]:
        return (self.folder / name).open("w", encoding="utf-8", errors="backslashreplace", newline="")

    def _write_cells(self, rows: Sequence[Sequence[str]]) -> None:
        csv.writer(self._files[1], lineterminator="\n").writerows(map(safe_cell, cells) for cells in rows)

    def _give_up(self) -> None:
        """What cannot be written is left where rows of it may be of use, and removed where there is none."""
        try:
            self.close()
        except OSError:  # what is still to be flushed does not fit either
            self._files = []
        if not self._done:
            for name in (ROWS, TABLE, SETTINGS):
                remove(self.folder / name)

    def _record(self, number: int) -> JsonObject:
        row = self.rows[number]
        return plain_object({"row": number, "fingerprint": row.fingerprint, **as_dict(row, self.names)})

    def _write_settings(self, finished: bool) -> None:
        content = {"finished": finished, "rows": len(self.rows), "made_by": self.made_by}
        write_atomically(self.folder / SETTINGS, (json.dumps(content, indent=1) + "\n").encode())


def set_aside(folder: Path) -> None:
    """Before results that do not go on from them: rows of a pass that was not finished get another name."""
    if settings_in(folder).get("finished") is False and (folder / ROWS).is_file():
        (folder / ROWS).replace(folder / _UNFINISHED)
        logger.warning(
            "'%s' holds rows of a prediction that was not finished; without --resume it begins anew, and they are "
            "set aside as %s",
            folder,
            _UNFINISHED,
        )


def resume(folder: Path, made_by: JsonObject, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Fill those rows that an earlier pass has, where their files and what is known of them are as they were.

    Rows with an error are left to be tried again. Raises PredictionError where the earlier pass was of other models or
    settings.
    """
    settings = settings_in(folder)
    if not settings:
        logger.warning("--resume: there are no results in '%s' to go on from: it begins with the first image", folder)
        return
    check_settings(folder, settings.get("made_by"), made_by)
    earlier = {str(record.get("fingerprint")): record for record in read_rows(folder / ROWS)}
    kept = [row for row in rows if row.fingerprint in earlier and _take_over(row, earlier[row.fingerprint], names)]
    known = {_name(record) for record in earlier.values()}
    now = {row.image for row in rows}
    changed = [row.image for row in rows if row.image in known and row.fingerprint not in earlier]
    logger.info("--resume: %d of %d rows are in '%s'", len(kept), len(rows), folder)
    if changed:
        logger.warning("%d have changed since and are asked again: %s", len(changed), _some(changed))
    if added := [row.image for row in rows if row.image not in known] if len(known) >= _rows_of(settings) else []:
        logger.warning("%d are new: %s", len(added), _some(added))
    if gone := sorted({name for name in known if name not in now}):
        logger.warning("%d are gone, and their results with them: %s", len(gone), _some(gone))


def settings_in(folder: Path) -> Mapping[str, object]:
    """resume.json of a folder; {} where there is none."""
    try:
        content = json.loads((folder / SETTINGS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}


def check_settings(folder: Path, before: object, now: JsonObject) -> None:
    """PredictionError where earlier results were made otherwise, with the first difference."""
    held = before if isinstance(before, Mapping) else {}
    for name, value in now.items():
        if held.get(name) != value:
            raise PredictionError(
                f"the results in '{folder}' were made with {name} {_text(held.get(name))}, this is {_text(value)}: "
                "give the same, name another folder by --output, or (without --resume) begin anew"
            )


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _take_over(row: Row, record: JsonObject, names: Sequence[str]) -> bool:
    """Whether a record has the probabilities of a row, which it then has too."""
    found = record.get("probabilities")
    if not isinstance(found, dict) or list(found) != list(names):
        return False
    called, warned, drawn = (_texts(record.get(key)) for key in ("findings", "warnings", "heatmaps"))
    row.probabilities = np.array([found[name] for name in names], np.float64)
    row.findings = tuple(k for k, name in enumerate(names) if name in called)
    row.warnings, row.heatmaps, row.missing = warned, drawn, _texts(record.get("missing"))
    row.dicom, said = _texts(record.get("dicom")), record.get("identifiers")
    if row.identifiers is not None and isinstance(said, dict):
        row.identifiers = {name: str(text) for name, text in said.items()}
    return True


def row_from(record: JsonObject, names: Sequence[str], has_identifiers: bool) -> Row:
    """A row as it was written."""
    row = Row(_name(record), images=_texts(record["images"]) if "study" in record else None)
    row.identifiers = {} if has_identifiers else None
    _take_over(row, record, names)
    row.error, row.missing = str(record.get("error") or ""), _texts(record.get("missing"))
    said = record.get("identifiers")
    if has_identifiers and isinstance(said, dict):
        row.identifiers = {name: str(text) for name, text in said.items()}
    return row


def _texts(value: JsonValue) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _name(record: JsonObject) -> str:
    return str(record.get("study", record.get("image")))


def _rows_of(settings: Mapping[str, object]) -> float:
    count = settings.get("rows")
    return count if isinstance(count, int) else float("inf")


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
