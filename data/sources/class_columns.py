"""Columns of a labels table that hold a class each: which they are, and what their cells mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from configs.errors import DataError
from data.labels import nearest, parse_cell
from data.readers.tables import Table, find_column, raise_problems, some
from utils.csv_cells import is_number
from utils.words import is_missing, name_key, plain

CODES = "1, 0, -1"
# How people write that a finding is there and that it is not. A column uses one pair, whatever its case.
_PAIRS = (
    ("true", "false"),
    ("t", "f"),
    ("yes", "no"),
    ("y", "n"),
    ("positive", "negative"),
    ("pos", "neg"),
    ("present", "absent"),
    ("+", "-"),
    ("是", "否"),
    ("有", "无"),
    ("有", "無"),
    ("阳性", "阴性"),
    ("陽性", "陰性"),
    ("阳", "阴"),
)
# Columns of 1 and 0 that are no findings, by their names without case, blanks, '_', '-' and a number at the end.
_NO_CLASS_NAMES = """
    fold folds cvfold kfold index idx id row rowid rownumber number count smoker smoking smoked eversmoked
    smokinghistory sex gender male female ismale isfemale age agegroup view position lateral ap pa appa width height
    depth rows columns channels bitdepth year month day date time studydate hospital site center centre institution
    scanner device manufacturer vendor kvp train istrain intrain test istest intest val isval valid isvalid
    validation split set subset partition followup followupnumber visit weight bmi race ethnicity insurance language
    reader readerid annotator radiologist batch seed version portable inpatient outpatient quality 折 折数 索引 序号
    行号 编号 吸烟 吸烟史 是否吸烟 男 女 性别 年龄 体位 宽 高 宽度 高度 医院 中心 设备 厂商 日期 年份 随访 体重 身高
    吸煙 性別 年齡 編號 序號
"""
_NO_CLASSES = frozenset(_NO_CLASS_NAMES.split())
_MOST_DESCRIBED = 1000
_MOST_ODD = 10  # one in so many cells, or a single one, is a slip; more of them are what the column holds
HOW = "DATA.class_names names the classes, DATA.ignore_columns columns that are none"


@dataclass(frozen=True)
class Column:
    """What the cells of a column are. words: (present, absent), None: 1, 0, -1. codes: cell → code of Study.labels.

    valid: how many cells have one, beside empty ones. odd: cells that have none, each described with its line.
    mistyped: whether these are slips of the pen in a column of codes, rather than what it holds.
    """

    codes: dict[str, float]
    words: tuple[str, str] | None = None
    valid: int = 0
    odd: tuple[str, ...] = ()
    mistyped: bool = False

    @property
    def is_class(self) -> bool:
        """Whether every cell that is not empty is a code, and one is."""
        return self.valid > 0 and not self.odd

    @property
    def has_both(self) -> bool:
        """Whether there are cells for present and for absent."""
        return set(self.codes.values()) >= {0.0, 1.0}


def read_column(table: Table, index: int, named: bool = False) -> Column:
    """What a column holds: a class, a class with slips of the pen, or something else.

    named: the user says that it is a class.
    """
    counts = Counter(table.column(index))
    known = [cell for cell in counts if not is_missing(cell) or plain(cell) == "-"]
    words, codes = _best_reading(known, counts, table.decimal_comma)
    if words is None or words[1] != "-":
        known = [cell for cell in known if plain(cell) != "-"]
    odd = {cell: counts[cell] for cell in known if cell not in codes}
    valid = sum(counts[cell] for cell in codes)
    if words in (("t", "f"), ("y", "n")) and len(set(codes.values())) < 2 and not named:
        valid, odd = 0, dict(counts)  # one letter alone may be anything
    mistyped = bool(odd) and valid > 0 and _are_slips(odd, set(codes.values()), words, valid)
    codes |= {cell: np.nan for cell in counts if cell not in codes and cell not in odd}
    return Column(codes, words, valid, _describe(table, index, odd, words), mistyped)


def _best_reading(
    cells: Sequence[str], counts: Counter[str], decimal_comma: bool
) -> tuple[tuple[str, str] | None, dict[str, float]]:
    """(the pair of words, or None for numbers; cell → code) that most cells are written in."""
    readings: list[tuple[tuple[str, str] | None, dict[str, float]]] = [
        (None, {cell: code for cell in cells if (code := _code(cell, decimal_comma)) is not None})
    ]
    for pair in _PAIRS:
        if pair == ("+", "-") and not any(plain(cell) == "+" for cell in cells):
            continue  # then '-' is a missing value
        readings.append((pair, {cell: float(plain(cell) == pair[0]) for cell in cells if plain(cell) in pair}))
    return max(readings, key=lambda reading: sum(counts[cell] for cell in reading[1]))


@lru_cache(maxsize=4096)
def _code(cell: str, decimal_comma: bool) -> float | None:
    if decimal_comma:
        cell = re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", cell)
    try:
        code = parse_cell(cell)
    except ValueError:
        return None
    return None if np.isnan(code) else code


def _are_slips(odd: Mapping[str, int], codes: set[float], words: tuple[str, str] | None, valid: int) -> bool:
    """Whether odd cells, with their counts, are mistyped among codes, rather than a column of something else."""
    total = sum(odd.values())
    if words is None and not all(map(is_number, odd)):
        return total <= valid
    return codes >= {0.0, 1.0} and total <= (valid if words else max(1, valid // _MOST_ODD))


def _describe(table: Table, index: int, odd: Container[str], words: tuple[str, str] | None) -> tuple[str, ...]:
    allowed = " or ".join(map(repr, words)) if words else CODES
    found = (
        f"line {line}, column {table.header[index]!r}: {cells[index]!r} is not {allowed} or empty"
        for line, cells in table.rows
        if cells[index] in odd
    )
    return tuple(islice(found, _MOST_DESCRIBED))


def is_no_class(name: str) -> bool:
    """Whether a column of this name is no finding, though it holds 1 and 0: 'fold', 'smoker', 'Index', …"""
    return name_key(name).rstrip("0123456789") in _NO_CLASSES


def recognised_columns(
    table: Table, taken: frozenset[int], ignored: Sequence[str]
) -> tuple[dict[int, Column], tuple[str, ...]]:
    """(the columns that are classes, notes on what was taken and what was not).

    taken: columns that are known for something else. ignored: DATA.ignore_columns. Raises DataError for slips, naming
    the line, for two columns that are called alike, and where no column is a class.
    """
    left_out = {find_column(table, name, "DATA.ignore_columns") for name in ignored}
    free = [index for index in range(len(table.header)) if index not in taken and index not in left_out]
    read = {index: read_column(table, index) for index in free}
    by_name = [index for index in free if is_no_class(table.header[index]) and read[index].valid]
    candidates = {index: read[index] for index in free if index not in by_name}
    slips = [slip for column in candidates.values() if column.mistyped for slip in column.odd]
    raise_problems(table.path, [f"{slip} ({HOW})" for slip in slips])
    columns = {index: column for index, column in candidates.items() if column.is_class}
    if not columns:
        raise DataError(_no_classes(table, [table.header[index] for index in by_name if read[index].is_class]))
    _check_names(table, list(columns))
    others = [index for index in free if index not in columns]
    return columns, _notes(table, columns, others, candidates)


def _no_classes(table: Table, by_name: Sequence[str]) -> str:
    hint = f"; {some(by_name)} would be no finding by its name: {HOW}" if by_name else ""
    return (
        f"'{table.path}' has neither a column 'labels' nor one per class with 1, 0, -1 or empty "
        f"(its columns: {', '.join(table.header)}){hint}. DATA.columns.labels names the column of labels"
    )


def _check_names(table: Table, columns: Sequence[int]) -> None:
    keys: dict[str, int] = {}
    for index in columns:
        other = keys.setdefault(name_key(table.header[index]), index)
        if other != index:
            raise DataError(
                f"'{table.path}' has columns {table.header[other]!r} and {table.header[index]!r}, which differ in "
                "case, blanks or Unicode form only: rename or remove one, or name it in DATA.ignore_columns"
            )


def _notes(
    table: Table, columns: dict[int, Column], others: Sequence[int], candidates: dict[int, Column]
) -> tuple[str, ...]:
    classes = ", ".join(table.header[index] for index in columns)
    rest = f"; not as classes: {', '.join(table.header[index] for index in others)}" if others else ""
    reasons = [one.odd[0] for index in others if (one := candidates.get(index)) and one.has_both and one.odd]
    why = f" ({some(reasons, 3)})" if reasons else ""
    return (f"columns taken as classes: {classes}{rest}{why}: {HOW}", *word_notes(table, columns))


def word_notes(table: Table, columns: dict[int, Column]) -> tuple[str, ...]:
    """What was understood of cells other than 1, 0, -1, empty and 'nan'."""
    notes = []
    pairs = {(column.words, table.header[index]) for index, column in columns.items() if column.words}
    for words in sorted({words for words, _ in pairs}):
        names = [table.header[index] for index, column in columns.items() if column.words == words]
        notes.append(f"in {some(names)} {words[0]!r} was read as 1 and {words[1]!r} as 0")
    missing: Counter[str] = Counter()
    for index, column in columns.items():
        silent = {cell for cell, code in column.codes.items() if np.isnan(code) and plain(cell) not in ("", "nan")}
        missing.update(cell for cell in table.column(index) if cell in silent)
    if missing:
        listed = some([f"{cell!r} ({count} cells)" for cell, count in missing.most_common()])
        notes.append(f"read as unknown: {listed}")
    return tuple(notes)


def named_columns(table: Table, class_names: Sequence[str]) -> dict[int, Column]:
    """The columns of DATA.class_names, in their order; DataError for missing ones and for cells that are no codes."""
    keys: dict[str, list[int]] = {}
    for index, name in enumerate(table.header):
        keys.setdefault(name_key(name), []).append(index)
    found: dict[str, int] = {}
    lacking = []
    for name in class_names:
        same = [table.header.index(name)] if name in table.header else keys.get(name_key(name), [])
        if len(same) == 1:
            found[name] = same[0]
        else:
            lacking.append(f"{name!r}{nearest(name, table.header)}")
    if lacking:
        raise DataError(
            f"'{table.path}' has no column 'labels', and none for {', '.join(lacking)} of DATA.class_names "
            f"(its columns: {', '.join(table.header)})"
        )
    columns = {index: read_column(table, index, named=True) for index in found.values()}
    raise_problems(table.path, [odd for column in columns.values() for odd in column.odd])
    return columns


def column_codes(table: Table, columns: dict[int, Column]) -> np.ndarray:
    """float32 [rows, K], codes as in Study.labels."""
    codes = np.empty((len(table.rows), len(columns)), np.float32)
    for position, (index, column) in enumerate(columns.items()):
        codes[:, position] = [column.codes[cell] for cell in table.column(index)]
    return codes
