"""Text tables and lists as they come (CSV, .gz, BOM, CRLF), with the line numbers that error messages need."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from configs.errors import DataError
from data.readers.regular_files import check_expansion, read_head

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

# What a column is for, by its name in lower case without blanks, '_', '-' and '.'.
_ROLES = {
    "image": ("image", "imageindex", "path", "filename", "file", "imagepath", "filepath"),
    "labels": ("labels", "label", "findinglabels", "findings"),
    "patient_id": ("patientid", "patient", "subjectid", "subject"),
    "split": ("split",),
    "view": ("view", "viewposition"),
    "age": ("age", "patientage"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
}
_MAX_DISPLAYED = 5
MAX_TEXT_BYTES = 2**28  # 2.6 million rows of 100 characters
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Table:
    """A CSV file in memory: header without unnamed columns, and (line number, cells) a row, cells as the header."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def column(self, index: int) -> list[str]:
        """The cells of one column, top to bottom."""
        return [cells[index] for _, cells in self.rows]


def read_text(path: Path) -> str:
    """A UTF-8 text file, .gz or not, BOM dropped; DataError naming the file if it is neither, or beyond 256 MiB."""
    try:
        packed = read_head(path)[:2] == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            raw = _read_all(file, path.stat().st_size)
        return raw.decode("utf-8-sig")
    except DataError as reason:
        raise DataError(f"cannot read '{path}': {reason}") from None
    except UnicodeDecodeError as reason:
        raise DataError(f"'{path}' is not UTF-8 (byte {reason.start}): save it as UTF-8") from reason
    except (OSError, EOFError, zlib.error) as reason:
        raise DataError(f"cannot read '{path}': {reason}") from reason


def _read_all(file: IO[bytes] | gzip.GzipFile, stored: int) -> bytes:
    pieces, count = [], 0
    while piece := file.read(_PIECE_BYTES):
        pieces.append(piece)
        count += len(piece)
        check_expansion(stored, count)
        if count > MAX_TEXT_BYTES:
            raise DataError(f"it has more than {MAX_TEXT_BYTES:,} bytes, which no table of labels needs")
    return b"".join(pieces)


def read_table(path: Path) -> Table:
    """Read a comma-separated table with a header.

    Blank lines are skipped, surrounding blanks of cells dropped, as are columns without a name (a pandas index, the
    comma at the end of NIH's 2017 header); at the end of a row they may be missing, as in NIH's list of boxes. Raises
    DataError naming the file, and the line where there is one: no rows, a row of another length, a column named twice,
    broken quoting, another separator, not UTF-8.
    """
    lines = _csv_lines(path)
    try:
        line, header = next(lines)
    except StopIteration:
        raise DataError(f"'{path}' is empty: it needs a header and a row per image") from None
    kept = [index for index, name in enumerate(header) if name and not name.startswith("Unnamed: ")]
    names = tuple(header[index] for index in kept)
    least = 1 + max(kept, default=-1)
    _check_header(path, names)
    rows = []
    for line, cells in lines:
        if not least <= len(cells) <= len(header):
            raise DataError(f"'{path}' line {line} has {len(cells)} cells, the header has {len(header)}")
        rows.append((line, tuple(cells[index] for index in kept)))
    if not rows:
        raise DataError(f"'{path}' holds a header and no rows")
    return Table(path, names, tuple(rows))


def read_list(path: Path) -> list[str]:
    """The names in a text file of one name a line."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def column_roles(table: Table) -> dict[str, int]:
    """Which column is 'image', 'labels', 'patient_id', 'split', 'view', 'age', 'sex', by its name in any case.

    Of several candidates the first in the order of aliases counts ('image' before 'path'); DataError where two
    differ in case or separators only.
    """
    roles: dict[str, int] = {}
    plain = ["".join(name.lower().split()).translate(str.maketrans("", "", "_-.")) for name in table.header]
    for role, aliases in _ROLES.items():
        alias = next((alias for alias in aliases if alias in plain), None)
        if alias is None:
            continue
        if plain.count(alias) > 1:
            raise DataError(f"'{table.path}' has two columns that mean {role!r}: rename one")
        roles[role] = plain.index(alias)
    return roles


def parse_split(text: str) -> str | None:
    """'train', 'Valid', 'validation', 'TEST', … to 'train', 'val' or 'test'; '' to None; else ValueError."""
    text = text.strip().lower()
    if not text:
        return None
    if text not in SPLIT_NAMES:
        raise ValueError(f"{text!r} is not train, val (valid, validation) or test")
    return SPLIT_NAMES[text]


def some(items: Sequence[object], limit: int = _MAX_DISPLAYED) -> str:
    """The first few of many, for a message: 'a, b, c and 12 more'."""
    head = ", ".join(str(item) for item in items[:limit])
    return head if len(items) <= limit else f"{head} and {len(items) - limit} more"


def raise_problems(path: Path, problems: Sequence[str]) -> None:
    """DataError that lists the first few problems of a file and counts the rest; nothing where there are none."""
    if problems:
        head = "\n  ".join(problems[:_MAX_DISPLAYED])
        more = f"\n  and {len(problems) - _MAX_DISPLAYED} more" if len(problems) > _MAX_DISPLAYED else ""
        raise DataError(f"'{path}':\n  {head}{more}")


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line of a record, its stripped cells), blank lines left out."""
    lines = (match[0] for match in re.finditer(r"[^\r\n]+(?:\r\n?|\n|\Z)|\r\n?|\n", read_text(path)))
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if len(stripped) > 1 or any(stripped):
                yield reader.line_num, stripped
    except csv.Error as reason:
        raise DataError(f"'{path}' line {reader.line_num}: {reason}") from reason


def _check_header(path: Path, names: tuple[str, ...]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"'{path}' names column {', '.join(map(repr, twice))} more than once")
    if len(names) == 1 and any(separator in names[0] for separator in ";\t"):
        raise DataError(f"'{path}' is not separated by commas; its header is {names[0]!r}")
