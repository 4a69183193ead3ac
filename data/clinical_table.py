"""Clinical columns: what cells of a table say of studies. How a network is given them: data/table_encoding.py."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from utils.text import printable, visible
from utils.words import is_missing, is_spreadsheet_error, name_key

Kind = Literal["numeric", "categorical"]

# PS3.5, 6.2: PatientAge, which NIH's tables of ages have as well.
_AGE = re.compile(r"(\d{3})([DWMY])")
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class NumericColumn:
    """values: float64 [N], NaN where unknown."""

    name: str
    values: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """bool [N]."""
        return ~np.isnan(self.values)


@dataclass(frozen=True)
class CategoricalColumn:
    """words: of N studies as they are displayed, '' where unknown; two that are alike by `name_key` are one."""

    name: str
    words: tuple[str, ...]

    @property
    def known(self) -> np.ndarray:
        """bool [N]."""
        return np.array([bool(word) for word in self.words], bool)


@dataclass(frozen=True)
class ClinicalTable:
    """F columns of N studies, in the order of a dataset index. has_row: bool [N], whether the table has them at all."""

    columns: tuple[NumericColumn | CategoricalColumn, ...]
    has_row: np.ndarray

    @property
    def kinds(self) -> dict[str, Kind]:
        """Column → its kind, as DATA.table.columns has it."""
        return {one.name: "numeric" if isinstance(one, NumericColumn) else "categorical" for one in self.columns}

    def without(self, names: Collection[str]) -> ClinicalTable:
        """The same studies with these columns unknown; with all of them, no study has a row."""
        columns = tuple(_unknown(one) if one.name in names else one for one in self.columns)
        left = any(one.name not in names for one in self.columns)
        return ClinicalTable(columns, self.has_row & left)

    def rows(self, rows: Sequence[int] | np.ndarray) -> ClinicalTable:
        """Of some studies."""
        index = np.asarray(rows, np.int64)
        columns = tuple(
            NumericColumn(one.name, one.values[index])
            if isinstance(one, NumericColumn)
            else CategoricalColumn(one.name, tuple(one.words[row] for row in index.tolist()))
            for one in self.columns
        )
        return ClinicalTable(columns, self.has_row[index])


def _unknown(one: NumericColumn | CategoricalColumn) -> NumericColumn | CategoricalColumn:
    if isinstance(one, NumericColumn):
        return NumericColumn(one.name, np.full_like(one.values, np.nan))
    return CategoricalColumn(one.name, ("",) * len(one.words))


def read_column(
    name: str, cells: Sequence[tuple[str, str]], kind: Kind | None, decimal_comma: bool = False
) -> tuple[NumericColumn | CategoricalColumn, list[str]]:
    """(a column, problems in words: cells of a numeric column that are no numbers).

    cells: (where, text) for each study, where for the message: 'line 17'. kind: None: numeric where at least half of
    the cells with a value are numbers. Words for missing are gaps; units are never guessed, so '37.5 C' is no number.
    """
    numbers = [_number(text, decimal_comma) for _, text in cells]
    if kind is None:
        known = [number for number, (_, text) in zip(numbers, cells) if not is_gap(text)]
        kind = "numeric" if sum(number is not None for number in known) * 2 >= max(1, len(known)) else "categorical"
    if kind == "categorical":
        return CategoricalColumn(name, tuple("" if is_missing(text) else visible(text) for _, text in cells)), []
    wrong = Counter[str]()
    problems = []
    for number, (where, text) in zip(numbers, cells):
        if number is None and not is_gap(text):
            wrong[text] += 1
            if wrong[text] == 1:
                problems.append(
                    f"{where}, column {name!r}: '{printable(text)}' is no number: write the number alone (units are "
                    "never guessed), leave it empty where unknown, or train with DATA.table.columns."
                    f"{name}: categorical"
                )
    values = [math.nan if number is None else number for number in numbers]
    return NumericColumn(name, np.array(values, np.float64)), problems


def is_gap(text: str) -> bool:
    """Whether a numeric cell has no value: a word for missing, 'None' as pandas writes it, a formula's error."""
    return is_missing(text) or visible(text).casefold() == "none" or is_spreadsheet_error(text)


def _number(text: str, decimal_comma: bool) -> float | None:
    shown = visible(text).replace("\u2212", "-")
    if (age := _AGE.fullmatch(shown.upper())) is not None:
        return float(age[1]) / _PER_YEAR[age[2]]
    if decimal_comma and shown.count(",") == 1 and "." not in shown:
        shown = shown.replace(",", ".")
    if _NUMBER.fullmatch(shown) is None:
        return None
    number = float(shown)
    return number if math.isfinite(number) else None


def equal_to_labels(
    table: ClinicalTable, labels: np.ndarray, class_names: Sequence[str], share: float = 0.99, least: int = 20
) -> list[str]:
    """A sentence for each column that says what a label says in more than `share` of the studies where both are known.

    labels: [N, K], codes of Study.labels. least: of fewer such studies nothing is said.
    """
    found = []
    for column in table.columns:
        codes = _two_values(column)
        for name, label in zip(class_names, labels.T) if codes is not None else ():
            assert codes is not None
            both = column.known & np.isin(label, (0.0, 1.0))
            if both.sum() < least or len({*label[both].tolist()}) < 2:
                continue
            same = float((codes[both] == label[both]).mean())
            if max(same, 1 - same) > share:
                found.append(
                    f"column {column.name!r} of the table says the same as class {name!r} in "
                    f"{max(same, 1 - same):.1%} of {int(both.sum())} studies: a label under another name?"
                )
    return found


def _two_values(column: NumericColumn | CategoricalColumn) -> np.ndarray | None:
    """float64 [N] of 0 and 1, where a column has two values; None where it has more or fewer."""
    keys: Iterable[object] = (
        column.values.tolist() if isinstance(column, NumericColumn) else map(name_key, column.words)
    )
    listed = list(keys)
    there = sorted({key for key, known in zip(listed, column.known) if known}, key=str)
    return np.array([float(key == there[1]) for key in listed]) if len(there) == 2 else None
