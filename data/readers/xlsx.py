"""Records of an .xlsx workbook: the values that its cells show, as text, with the numbers of their rows."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from configs.errors import DataError
from data.readers.delimited import Record, clean
from data.readers.regular_files import check_expansion

if TYPE_CHECKING:
    from openpyxl.cell.cell import Cell

MAX_UNPACKED = 2**28
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell [^>]*ref="([A-Z]+)(\d+):([A-Z]+)(\d+)"')
_FORMULA = re.compile(rb"<(?:\w+:)?f[ >/]")
_EXACT_DIGITS = 15  # a spreadsheet's number has no more; of a longer one the last digits are zeros


@dataclass(frozen=True)
class _Sheet:
    """title: its name. part: its XML. rows: those that are not empty, with their numbers."""

    title: str
    part: bytes
    rows: list[Record]


def is_workbook(raw: bytes) -> bool:
    """Whether the bytes are those of an .xlsx or .xlsm file."""
    if not raw.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except zipfile.BadZipFile as reason:
        raise DataError(f"is a damaged .xlsx file: {reason}") from None


def read_workbook(raw: bytes, is_header: Callable[[Sequence[str]], bool]) -> tuple[list[Record], list[str]]:
    """(records of its one sheet that has rows, or else of the one whose header is_header accepts; notes).

    A cell is what it shows where that is sure: whole numbers without '.0', '007' where its format writes zeros in
    front, TRUE and FALSE, dates as 2026-11-29. A cell that is merged over several rows counts for each of them. Raises
    DataError, a sentence after the file's name: damaged, formulas that were never computed, no or several such sheets.
    """
    notes: list[str] = []
    try:
        sheets = [sheet for sheet in _read_sheets(raw, notes) if sheet.rows]
    except DataError:
        raise
    except Exception as reason:  # openpyxl lets whatever its parsers raise through
        raise DataError(f"cannot be read as an .xlsx file ({type(reason).__name__}: {reason})") from None
    if len(sheets) > 1:
        titles = ", ".join(f"'{sheet.title}'" for sheet in sheets)
        sheets = [sheet for sheet in sheets if is_header(sheet.rows[0][1])]
        if len(sheets) != 1:
            what = "several of them name" if sheets else "none of them names"
            raise DataError(
                f"has the sheets {titles}, and {what} the images in the first row: save the one that counts "
                "as a file of its own"
            )
        notes.append(f"of the sheets {titles} the one with a column of images was read: '{sheets[0].title}'")
    return (_unmerged(sheets[0], notes), notes) if sheets else ([], notes)


def _read_sheets(raw: bytes, notes: list[str]) -> list[_Sheet]:
    from openpyxl import load_workbook

    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        check_expansion(len(raw), size)
        if size > MAX_UNPACKED:
            raise DataError(f"unpacks to more than {MAX_UNPACKED:,} bytes, which no table of labels needs")
        parts = _parts(archive)
    values = load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
    formulas = None
    if any(_FORMULA.search(part) for part in parts.values()):
        formulas = load_workbook(io.BytesIO(raw), read_only=True)
    sheets, long = [], list[str]()
    for sheet in values.worksheets:
        sheet.reset_dimensions()  # what a file says of its own size need not be true
        rows = []
        for number, cells in enumerate(sheet.iter_rows(), start=1):
            texts = [_text(cell, sheet.title, long) for cell in cells]
            if any(texts):
                rows.append((number, texts))
        if formulas is not None:
            _check_computed(formulas[sheet.title], sheet.title, dict(rows))
        sheets.append(_Sheet(sheet.title, parts.get(sheet.title, b""), _squared(rows)))
    if long:
        notes.append(
            f"{long[0]} and {len(long) - 1} other cells are numbers of more than {_EXACT_DIGITS} digits, of which a "
            "spreadsheet keeps no more: format such a column as text before its numbers are put in"
        )
    return sheets


def _squared(rows: list[Record]) -> list[Record]:
    """Rows of equal length: in the file they end with their last cell."""
    width = max((len(cells) for _, cells in rows), default=0)
    return [(number, [*cells, *[""] * (width - len(cells))]) for number, cells in rows]


def _parts(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Title → XML of each sheet."""
    relations = ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
    targets = {relation.get("Id"): relation.get("Target", "") for relation in relations}
    names = set(archive.namelist())
    found = {}
    for sheet in ElementTree.fromstring(archive.read("xl/workbook.xml")).iter(f"{_MAIN}sheet"):
        target = targets.get(sheet.get(_RELATION), "")
        name = target.lstrip("/") if target.startswith("/") else (PurePosixPath("xl") / target).as_posix()
        if name in names:
            found[sheet.get("name", "")] = archive.read(name)
    return found


def _text(cell: Cell, title: str, long: list[str]) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (int, float)):
        return _number(value, cell, title, long)
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, (datetime, date, time)):
        return value.isoformat(sep=" ") if isinstance(value, datetime) else value.isoformat()
    return str(value) if isinstance(value, timedelta) else clean(str(value))


def _number(value: float, cell: Cell, title: str, long: list[str]) -> str:
    whole = abs(value) < 1e22 and value == int(value)
    text = str(int(value)) if whole else f"{value:.{_EXACT_DIGITS}g}"
    if whole and abs(value) >= 10**_EXACT_DIGITS:
        long.append(f"{title}!{cell.coordinate}")
    zeros = re.fullmatch(r"0{2,}", cell.number_format or "")
    return text.zfill(len(zeros[0])) if zeros and text.isdigit() else text


def _check_computed(sheet: object, title: str, rows: dict[int, list[str]]) -> None:
    """DataError for a formula without the value it had when the file was saved: other programs leave it out."""
    sheet.reset_dimensions()  # type: ignore[attr-defined]
    for number, cells in enumerate(sheet.iter_rows(), start=1):  # type: ignore[attr-defined]
        for index, cell in enumerate(cells):
            shown = rows.get(number, [])
            if cell.data_type == "f" and not (index < len(shown) and shown[index]):
                raise DataError(
                    f"sheet '{title}', line {number}: the formula in {cell.coordinate} has no value in the file: open "
                    "it in a spreadsheet program and save it there"
                )


def _unmerged(sheet: _Sheet, notes: list[str]) -> list[Record]:
    """The rows, with the value of a cell that is merged over several in each of them."""
    merged = [
        (_column(left), int(top), _column(right), int(bottom))
        for left, top, right, bottom in _MERGED.findall(sheet.part)
    ]
    rows = dict(sheet.rows)
    last, head = max(rows), min(rows)
    for left, top, right, bottom in merged:
        value = rows[top][left] if top in rows and left < len(rows[top]) else ""
        if not value:
            continue
        if left != right:
            raise DataError(f"sheet '{sheet.title}', line {top}: '{value}' is merged over several columns: undo that")
        if top <= head:
            raise DataError(f"sheet '{sheet.title}', line {top}: the header is merged with rows below it: undo that")
        for number in range(top + 1, min(bottom, last) + 1):
            if number in rows:
                rows[number][left] = value
    if merged:
        notes.append(f"{len(merged)} cells are merged over several rows, and count for each of these")
    return sorted(rows.items())


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - ord("A") + 1
    return number - 1
