"""The figure by which one epoch is better than another: CHECKPOINT.best_by.

One run has one figure. Two scales are never compared: an epoch in which the figure is undefined is not the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.best_by import MEAN_AUROC, MEAN_AVERAGE_PRECISION, NAMES, VAL_LOSS
from utils.listener import FileContent


@dataclass(frozen=True)
class BestSoFar:
    """The best epoch of a run so far, counted from 1, 0: none yet; by which figure, and its value."""

    by: str
    epoch: int = 0
    value: float | None = None

    @classmethod
    def of(cls, by: str, epoch: int, score: float) -> BestSoFar:
        """From where training stands: the epoch counted from 0, -1: none, and its score."""
        value = None if math.isinf(score) else -score if by == VAL_LOSS else score
        return cls(by, epoch + 1, value)


def figure_of(record: Mapping[str, object], best_by: str) -> float | None:
    """The figure of an epoch, as it is reported; None where it is undefined.

    record: an EpochRecord, or a row of metrics.jsonl. best_by: one of NAMES, or a class, whose AUROC it is.
    """
    if best_by in NAMES:
        value = record.get(best_by)
    else:
        per_class = record.get("per_class")
        rows = per_class if isinstance(per_class, (list, tuple)) else ()
        found = [row.get("auroc") for row in rows if isinstance(row, Mapping) and row.get("name") == best_by]
        value = found[0] if found else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def score_of(record: Mapping[str, object], best_by: str) -> float:
    """The same so that higher is better; −inf where it is undefined, which is better than no other score."""
    value = figure_of(record, best_by)
    if value is None:
        return -math.inf
    return -value if best_by == VAL_LOSS else value


def score_of_before(record: Mapping[str, object]) -> float:
    """The score of versions without CHECKPOINT.best_by: mean AUROC, in epochs without one −loss."""
    return score_of(record, usable(record))


def usable(record: Mapping[str, object]) -> str:
    """The figure that null stands for, judged by an epoch: mean AUROC where it is defined, else the loss."""
    return VAL_LOSS if figure_of(record, MEAN_AUROC) is None else MEAN_AUROC


def title_of(best_by: str) -> str:
    """In words: 'AUROC of Effusion', 'mean AUROC'."""
    words = {MEAN_AUROC: "mean AUROC", MEAN_AVERAGE_PRECISION: "mean average precision", VAL_LOSS: "validation loss"}
    return words.get(best_by, f"AUROC of {best_by}")


def setting_of(config: object) -> str | None:
    """CHECKPOINT.best_by in the config of a checkpoint, of any type; None in those of before."""
    section = config.get("CHECKPOINT") if isinstance(config, Mapping) else None
    value = section.get("best_by") if isinstance(section, Mapping) else None
    return value if isinstance(value, str) else None


def best_row(history: Sequence[FileContent], best_by: str) -> FileContent | None:
    """The first of the rows with the highest score; None where the figure is defined in none."""
    best, score = None, -math.inf
    for row in history:
        if score_of(row, best_by) > score:
            best, score = row, score_of(row, best_by)
    return best
