"""table_explanations.csv: what each column and view of a study was taken to add to a class."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from utils.atomic_file import write_atomically
from utils.csv_cells import csv_text

COLUMNS = ("study", "class", "method", "column_or_view", "value", "attribution", "uncertainty")


@dataclass(frozen=True)
class ExplanationRow:
    """value: the cell as people wrote it, in its own unit, '' where missing; of a view what it is, 'frontal'.

    attribution: in the unit of the output, a logit. uncertainty: its standard error (shapley, 0 where exact) or its
    spread over seeds (lime); None where there is none (attention).
    """

    study: str
    class_name: str
    method: str
    column_or_view: str
    value: str
    attribution: float
    uncertainty: float | None = None


def explanations_text(rows: Iterable[ExplanationRow]) -> str:
    """The whole file: a header and a line a row; names and values cannot become formulas (`safe_cell`)."""
    return csv_text([COLUMNS, *([_cell(value) for value in astuple(row)] for row in rows)])


def write_explanations(rows: Iterable[ExplanationRow], path: str | os.PathLike[str]) -> None:
    """Written whole or not at all; the folder is made. Raises OSError."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, explanations_text(rows).encode())


def _cell(value: str | float | None) -> str:
    """Nine digits of a number: more than a float32 has."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.9g}"
