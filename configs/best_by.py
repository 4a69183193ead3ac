"""CHECKPOINT.best_by: the names of figures that decide which epoch of a run is the best, and what may be asked for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from configs.errors import ConfigError

MEAN_AUROC, MEAN_AVERAGE_PRECISION, VAL_LOSS = "mean_auroc", "mean_average_precision", "val_loss"
NAMES = (MEAN_AUROC, MEAN_AVERAGE_PRECISION, VAL_LOSS)


def best_by_problems(best_by: str | None, class_names: Sequence[str] | None) -> list[str]:
    """A name that is neither a figure nor a class."""
    if best_by is None or best_by in NAMES or class_names is None or best_by in class_names:
        return []
    known = {name.lower(): name for name in (*NAMES, *class_names)}
    close = difflib.get_close_matches(best_by.lower(), known, n=1, cutoff=0.6)
    hint = f": did you mean {known[close[0]]!r}?" if close else ""
    listed = ", ".join(class_names[:20])
    return [f"CHECKPOINT.best_by {best_by!r} is neither {', '.join(NAMES)} nor a class ({listed}){hint}"]


def settle_best_by(best_by: str | None, class_names: Sequence[str], judged: Sequence[bool]) -> str:
    """The figure of a run. judged: whether a class has positives and negatives in the validation split and a positive
    in the training split, so that its AUROC is defined and says something.

    Raises ConfigError where a figure was asked for that is undefined there.
    """
    if best_by is None:
        return MEAN_AUROC if any(judged) else VAL_LOSS
    without = "the validation split needs positives and negatives, the training split a positive one"
    instead = "leave CHECKPOINT.best_by null, or set it to val_loss"
    if best_by == VAL_LOSS or (best_by in NAMES and any(judged)):
        return best_by
    if best_by in NAMES:
        raise ConfigError(f"CHECKPOINT.best_by '{best_by}' is undefined for every class ({without}): {instead}")
    if not judged[list(class_names).index(best_by)]:
        raise ConfigError(f"CHECKPOINT.best_by: the AUROC of {best_by!r} is undefined ({without}): {instead}")
    return best_by
