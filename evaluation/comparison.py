"""Two models of which one may know fewer classes, or have them in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from configs.errors import EvaluationError
from evaluation.records import Comparison
from evaluation.results import compare_scores
from evaluation.scored_split import BootstrapSettings, Floats, ScoredSplit


def compare_by_name(
    scored: ScoredSplit, other: Floats, other_classes: Sequence[str], other_name: str, settings: BootstrapSettings
) -> tuple[Comparison, list[str]]:
    """(`compare_scores` over the classes that both models have, what is to be said about the others).

    other: probabilities of the same images, float64 [N, L], columns other_classes.
    Raises EvaluationError where they have no class in common, or the other's classes are not as many as its scores.
    """
    if len(other_classes) != other.shape[1]:
        raise EvaluationError(
            f"--compare: '{other_name}' has {other.shape[1]} classes and does not name them; this model has "
            f"{len(other_classes)}: it cannot be determined which are the same"
        )
    common = [name for name in scored.class_names if name in other_classes]
    if not common:
        raise EvaluationError(
            f"--compare: '{other_name}' has no class of this model ({', '.join(other_classes[:20])} against "
            f"{', '.join(scored.class_names[:20])})"
        )
    # The other of a pair is compared too: it is the same score, turned round.
    left = [name for name in (*scored.class_names, *other_classes) if name not in (*common, scored.other_class)]
    note = [f"Not compared, as only one of the two models has them: {', '.join(dict.fromkeys(left))}."] if left else []
    columns = [list(other_classes).index(name) for name in common]
    mine = with_classes(scored, common)
    return compare_scores(mine, np.ascontiguousarray(other[:, columns]), other_name, settings), note


def with_classes(scored: ScoredSplit, names: Sequence[str]) -> ScoredSplit:
    """The same images with these of their classes, in this order."""
    columns = [scored.class_names.index(name) for name in names]
    tables = (np.asarray(table)[:, columns] for table in (scored.probabilities, scored.targets, scored.mask))
    probabilities, targets, mask = tables
    return replace(scored, probabilities=probabilities, targets=targets, mask=mask, class_names=tuple(names))
