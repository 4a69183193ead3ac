"""A study whose columns and views are taken away and put back: what Shapley values and LIME ask a model about.

A column that is away has the value, or the gap, of training studies in its place, each of the background in turn, and
the output is their mean: the interventional expectation, which does not follow how columns go together (Janzing et al.,
AISTATS 2020; Lundberg et al., Nature Machine Intelligence 2 (2020)). A view that is away is an empty slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from explain.shapley import Bools, Floats, Value, chunks

# (table float64 [n, F], known bool [n, F], views bool [n, V]) → outputs [n, K] of the same study with these inputs.
# A table's cells are as a model is given them, 0 where unknown. Who wires a model computes the views' vectors once.
StudyOutputs = Callable[[Floats, Bools, Bools], Floats]

BACKGROUND_ROWS = 100
# So many rows of a table at once.
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Background:
    """Rows of training studies, as a model is given them. rows: [R, F], 0 where unknown; known: bool [R, F].
    numbers: which of the training studies they are, where that is known."""

    rows: Floats
    known: Bools
    numbers: tuple[int, ...] = ()

    @classmethod
    def of_training(cls, rows: Floats, known: Bools, *, limit: int = BACKGROUND_ROWS, seed: int = 0) -> Background:
        """At most `limit` of the training studies, drawn without replacement, in their order."""
        if rows.ndim != 2 or not len(rows) or rows.shape != known.shape:
            raise ValueError(f"a background is rows [R, F] and known [R, F], not {rows.shape} and {known.shape}")
        drawn = np.sort(np.random.default_rng(seed).choice(len(rows), min(limit, len(rows)), replace=False))
        kept = known[drawn].astype(bool)
        return cls(np.where(kept, rows[drawn], 0.0).astype(np.float64), kept, tuple(drawn.tolist()))


@dataclass(frozen=True)
class StudyInputs:
    """One study and what stands in for its columns. Its players are the F columns, then the V views.

    table: [F]; known: bool [F]; views: bool [V], which slots have an image.
    """

    table: Floats
    known: Bools
    views: Bools
    background: Background

    def __post_init__(self) -> None:
        columns = self.background.rows.shape[1]
        if self.table.shape != (columns,) or self.known.shape != (columns,):
            raise ValueError(f"a study of {len(self.table)} columns, a background of {columns}")

    @property
    def playing(self) -> Bools:
        """[F + V]: columns with a value that some row of the background differs from, and views that are there."""
        rows, known = self.background.rows, self.background.known
        differs = ((rows != self.table) | ~known).any(axis=0)
        return np.concatenate([self.known & differs, self.views])

    def inputs(self, coalitions: Bools) -> tuple[Floats, Bools, Bools]:
        """Coalitions [n, F + V] → (table, known [n · R, F], views [n · R, V]): per coalition, the R rows.

        What the study lacks is lacking in each, whatever the background has there.
        """
        columns, rows = len(self.table), len(self.background.rows)
        fixed, there = coalitions[:, None, :columns] | ~self._varying, coalitions[:, columns:] & self.views
        known = np.where(fixed, self.known, self.background.known)
        table = np.where(known, np.where(fixed, self.table, self.background.rows), 0.0)
        shape = (len(coalitions) * rows, columns)
        return table.reshape(shape), known.reshape(shape), there.repeat(rows, axis=0)

    def value(self, outputs: StudyOutputs) -> Value:
        """The game of `shapley_values`: coalitions [n, F + V] → the mean output over the background, [n, K]."""
        study = self if self._varying.any() else self._without_rows()
        rows = len(study.background.rows)

        def mean_outputs(coalitions: Bools) -> Floats:
            means = []
            for part in chunks(len(coalitions), ROWS_AT_ONCE // rows):
                found = np.asarray(outputs(*study.inputs(coalitions[part])), np.float64)
                means.append(found.reshape(-1, rows, found.shape[-1]).mean(axis=1))
            return np.concatenate(means)

        return mean_outputs

    @property
    def _varying(self) -> Bools:
        return self.playing[: len(self.table)]

    def _without_rows(self) -> StudyInputs:
        """All rows of the background would be the same: one does."""
        one = Background(self.background.rows[:1], self.background.known[:1])
        return StudyInputs(self.table, self.known, self.views, one)
