"""Records of comma-, semicolon- or tab-separated text, with the line numbers that error messages need."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from configs.errors import DataError
from utils.csv_cells import original_cell
from utils.words import stripped

DELIMITERS = (",", ";", "\t", "|")
Record = tuple[int, list[str]]

_SEP_LINE = re.compile(r'"?sep=(?P<delimiter>[^\w"])"?[ ,;\t]*(?:\r\n?|\n|\Z)', re.IGNORECASE)
_LINES = re.compile(r"[^\r\n]+(?:\r\n?|\n|\Z)|\r\n?|\n")
_KEPT = ("'", "=")
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "'|'"}


def read_records(text: str, is_header: Callable[[Sequence[str]], bool]) -> tuple[Iterator[Record], str]:
    """((number of the last line of a record, its cells) one by one, the delimiter), blank records left out.

    A first line 'sep=;', as Excel writes and reads it, says the delimiter; else it is what the header is separated by.
    Where that may be several, the one counts with which is_header accepts the header, or else the only one with which
    all records are equally long. Raises DataError, a sentence after the file's name, where that is not certain;
    the iterator does for broken quoting, naming the line.
    """
    if found := _SEP_LINE.match(text):
        delimiter = found["delimiter"]
        return _records(text[found.end() :], delimiter, 1), delimiter
    possible = [mark for mark in DELIMITERS if len(_header(text, mark)) > 1]
    if len(possible) > 1:
        possible = [mark for mark in possible if is_header(_header(text, mark))] or possible
    if len(possible) > 1:
        possible = [mark for mark in possible if _is_even(text, mark)] or possible
    if len(possible) > 1:
        raise DataError(
            f"may be separated by {' or '.join(_NAMES[mark] for mark in possible)}: write 'sep={possible[0]}', or "
            "another delimiter, as its first line"
        )
    delimiter = possible[0] if possible else ","
    return _records(text, delimiter, 0), delimiter


def _records(text: str, delimiter: str, lines_before: int) -> Iterator[Record]:
    lines = (match[0] for match in _LINES.finditer(text))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            cleaned = [clean(cell) for cell in cells]
            if any(cleaned):
                yield reader.line_num + lines_before, cleaned
    except csv.Error as reason:
        raise DataError(f"line {reader.line_num + lines_before}: {reason}") from reason


def clean(cell: str) -> str:
    """A cell without blanks at its ends, and without what keeps spreadsheets from changing it: ="007" and '=text."""
    cell = cell.strip()
    if cell.isascii() and not cell.startswith(_KEPT):  # nearly all of a million cells
        return cell
    cell = stripped(cell)
    if cell[:2] == '="' and cell[-1] == '"' and len(cell) > 2:
        return stripped(cell[2:-1])
    return original_cell(cell)


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return next(_records(text, delimiter, 0), (0, []))[1]
    except DataError:
        return []


def _is_even(text: str, delimiter: str) -> bool:
    """Whether the first records are equally long."""
    try:
        return len({len(cells) for _, cells in islice(_records(text, delimiter, 0), 1000)}) == 1
    except DataError:
        return False
