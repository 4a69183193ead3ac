"""steps.jsonl: the figures of optimizer steps as plain lines, beside TensorBoard's files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from utils.atomic_file import write_atomically
from utils.runs.files import STEPS
from utils.runs.json_lines import JsonObject, plain_object, read_rows, to_line


class StepFigures(NamedTuple):
    """Figures by their tags ('train/loss', as in TensorBoard); those that were not defined are left out."""

    step: int
    figures: dict[str, float]


class StepLog:
    """Appends one line for each step, {"step": 20, "train/loss": 0.61, …}; it is in the file when `add` returns.

    What could not be written is written with the next line that can.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STEPS
        self._waiting: list[str] = []
        self._whole: int | None = None  # bytes of the file before a write that failed

    def go_on_after(self, last_step: int) -> None:
        """Forget, atomically, the steps after the checkpoint that a run is resumed from. Raises OSError."""
        rows = read_rows(self.path)
        kept = [row for row in rows if _step_of(row) in range(last_step + 1)]
        if rows or self.path.exists():
            write_atomically(self.path, "".join(map(to_line, kept)).encode())

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a step's figures; NaN becomes null. Raises OSError, the lines before it whole."""
        self._waiting.append(to_line({"step": step, **plain_object(figures)}))
        if self._whole is not None:
            _cut(self.path, self._whole)
            self._whole = None
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                _write_all(file.fileno(), "".join(self._waiting).encode())
            except OSError:
                self._whole = before
                with suppress(OSError):  # else before the next write
                    _cut(self.path, before)
                    self._whole = None
                raise
        self._waiting.clear()


def read_steps(folder: Path) -> list[StepFigures]:
    """The rows of a run's steps.jsonl, without a last line that is being written. Raises OSError."""
    return [StepFigures(_step_of(row), _figures_of(row)) for row in read_rows(folder / STEPS) if _step_of(row) >= 0]


def _figures_of(row: JsonObject) -> dict[str, float]:
    return {tag: float(x) for tag, x in row.items() if tag != "step" and isinstance(x, (int, float))}


def _step_of(row: JsonObject) -> int:
    step = row.get("step")
    return step if type(step) is int else -1


def _cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
