"""Ranking metrics of multi-label classifiers, in NumPy and float64, with unknown labels left out.

Every figure is exact for tied scores, nan where it is undefined, and reported beside the number of
positives it rests on. scikit-learn is the oracle of the tests; it is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.text import printable

Floats = NDArray[np.float64]

# Marks a class that no image of the training split was positive for, wherever its figures stand.
NEVER_SEEN = "†"


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64 [N]; ValueError unless the scores are finite and the labels 0 or 1."""
    score = np.asarray(scores, np.float64)
    label = np.asarray(labels, np.float64)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"scores and labels must both be [N], got {score.shape} and {label.shape}")
    bad_scores = int(np.count_nonzero(~np.isfinite(score)))
    if bad_scores:
        raise ValueError(f"{bad_scores} of {score.size} scores are not finite")
    bad_labels = int(np.count_nonzero((label != 0) & (label != 1)))
    if bad_labels:
        raise ValueError(f"{bad_labels} of {label.size} labels are neither 0 nor 1; mask unknown ones out")
    return score, label


def _cumulative_counts(scores: Floats, labels: Floats) -> tuple[Floats, Floats, Floats]:
    """True positives, false positives and threshold at each distinct score, highest first, each [T]."""
    order = np.argsort(-scores)
    ordered = scores[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), ordered.size - 1)[: ordered.size]
    true_positives = np.cumsum(labels[order])[last_of_tie]
    return true_positives, last_of_tie + 1.0 - true_positives, ordered[last_of_tie]


def _auroc_of_counts(true_positives: Floats, false_positives: Floats) -> float:
    """Trapezoids under the cumulative counts, which is Mann-Whitney's U with ties counted one half."""
    if not true_positives.size or true_positives[-1] == 0 or false_positives[-1] == 0:
        return math.nan
    # Sums of half integers are exact in float64, so the one rounding is that of the final division.
    widths = np.diff(false_positives, prepend=0.0)
    heights = true_positives + np.concatenate(([0.0], true_positives[:-1]))
    return float(np.dot(widths, heights) / 2.0 / (true_positives[-1] * false_positives[-1]))


def _average_precision_of_counts(true_positives: Floats, false_positives: Floats) -> float:
    if not true_positives.size or true_positives[-1] == 0:
        return math.nan
    gained = np.diff(true_positives, prepend=0.0) / true_positives[-1]
    return float(np.dot(gained, true_positives / (true_positives + false_positives)))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    AUROC = U / (P N), with U = sum of the positives' ranks - P (P + 1) / 2, and tied scores given
    their mean rank; computed from the counts at each distinct score, which gives the same number.

    scores: [N], finite, in any unit that grows with confidence. labels: [N] of 0 and 1.
    Returns a number in [0, 1]; nan where positives or negatives are absent.
    Raises ValueError for other labels, scores that are not finite, or other shapes.
    Source: Hanley & McNeil, Radiology 143 (1982). scikit-learn instead warns where a class is absent.
    """
    return _auroc_of_counts(*_cumulative_counts(*_checked(scores, labels))[:2])


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision: sum over thresholds n of (R_n - R_{n-1}) P_n, tied scores as one threshold.

    scores, labels: [N] as for `auroc`. Returns a number in (0, 1]; nan without positives.
    Raises ValueError as `auroc` does.
    Source: scikit-learn's step-wise definition (no interpolation); it gives 0.0 without positives.
    """
    return _average_precision_of_counts(*_cumulative_counts(*_checked(scores, labels))[:2])


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """False and true positive rate of "score >= threshold" at each distinct score, highest first.

    scores, labels: [N]. Returns fpr, tpr, thresholds, each [T + 1]; the first point is (0, 0) at
    infinity. A rate whose class is absent is nan throughout. Raises ValueError as `auroc` does.
    Equals scikit-learn's with drop_intermediate=False.
    """
    true_positives, false_positives, thresholds = _cumulative_counts(*_checked(scores, labels))
    fpr, tpr = (
        np.concatenate(([0.0], counts)) / (counts[-1] if counts.size and counts[-1] else math.nan)
        for counts in (false_positives, true_positives)
    )
    return fpr, tpr, np.concatenate(([math.inf], thresholds))


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Precision and recall of "score >= threshold" at each distinct score, lowest first.

    scores, labels: [N]. Returns precision [T + 1], recall [T + 1], thresholds [T]; the last point is
    precision 1, recall 0. Without positives recall is nan before that point (scikit-learn: 1).
    Raises ValueError as `auroc` does.
    """
    true_positives, false_positives, thresholds = _cumulative_counts(*_checked(scores, labels))
    positives = true_positives[-1] if true_positives.size and true_positives[-1] else math.nan
    precision = np.append((true_positives / (true_positives + false_positives))[::-1], 1.0)
    return precision, np.append((true_positives / positives)[::-1], 0.0), thresholds[::-1]


class ClassRecord(TypedDict):
    """ClassMetrics in plain values, nan as None."""

    name: str
    auroc: float | None
    average_precision: float | None
    positives: int
    negatives: int
    no_positive_in_training: NotRequired[bool]


class MetricsRecord(TypedDict):
    """Metrics in plain values, nan as None."""

    mean_auroc: float | None
    mean_average_precision: float | None
    defined_classes: int
    per_class: list[ClassRecord]


@dataclass(frozen=True)
class ClassMetrics:
    """One class: AUROC and average precision in [0, 1] or nan, and the known labels they rest on.

    learnt: False where no image of the training split was positive, so that the figures say nothing of training.
    """

    name: str
    auroc: float
    average_precision: float
    positives: int
    negatives: int
    learnt: bool = True

    @property
    def defined(self) -> bool:
        """Whether both positives and negatives are known, so that a ranking can be judged."""
        return self.positives > 0 and self.negatives > 0

    @property
    def averaged(self) -> bool:
        """Whether means are over it."""
        return self.defined and self.learnt

    @property
    def label(self) -> str:
        """The name, marked where the class was never positive in training."""
        return self.name if self.learnt else f"{self.name} {NEVER_SEEN}"

    @property
    def count(self) -> str:
        """'3 of 20 positive', and that none was in training."""
        never = "" if self.learnt else ", none in training"
        return f"{self.positives:,} of {self.positives + self.negatives:,} positive{never}"

    def as_dict(self) -> ClassRecord:
        """Plain values for JSON, nan as None; 'no_positive_in_training' only where it is true."""
        record: ClassRecord = {
            "name": self.name,
            "auroc": _none_for_nan(self.auroc),
            "average_precision": _none_for_nan(self.average_precision),
            "positives": self.positives,
            "negatives": self.negatives,
        }
        if not self.learnt:
            record["no_positive_in_training"] = True
        return record


@dataclass(frozen=True)
class Metrics:
    """All classes, and the means over those with both positives and negatives that were learnt (nan without one).

    defined_classes: how many classes both means are over.
    """

    per_class: tuple[ClassMetrics, ...]
    mean_auroc: float
    mean_average_precision: float
    defined_classes: int

    def as_dict(self) -> MetricsRecord:
        """Plain containers for JSON, nan as None: the fields by name, per_class a list of dicts."""
        return {
            "mean_auroc": _none_for_nan(self.mean_auroc),
            "mean_average_precision": _none_for_nan(self.mean_average_precision),
            "defined_classes": self.defined_classes,
            "per_class": [one.as_dict() for one in self.per_class],
        }


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _class_metrics(name: str, scores: Floats, labels: Floats, learnt: bool) -> ClassMetrics:
    try:
        score, label = _checked(scores, labels)
    except ValueError as error:
        raise ValueError(f"class {name!r}: {error}") from None
    counts = _cumulative_counts(score, label)[:2]
    positives = int(label.sum())
    return ClassMetrics(
        name=name,
        auroc=_auroc_of_counts(*counts),
        average_precision=_average_precision_of_counts(*counts),
        positives=positives,
        negatives=label.size - positives,
        learnt=learnt,
    )


def classification_metrics(
    scores: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    class_names: Sequence[str],
    not_learnt: Collection[str] = (),
) -> Metrics:
    """AUROC and average precision of each class over its known labels, and their means.

    scores: [N, K], probabilities or logits. targets: [N, K], 0 or 1 wherever mask holds.
    mask: bool [N, K], True where the label is known; entries outside are never looked at.
    class_names: K names. not_learnt: those without a positive in training, which are listed but not averaged.

    Both means are over the classes with positives and negatives: the average precision of a class
    without negatives is 1 for all scores, so it is listed but not averaged.
    Raises ValueError for shapes that disagree, and, naming the class and the count, for known entries
    whose score is not finite or whose target is neither 0 nor 1.
    """
    score, target, known = np.asarray(scores, np.float64), np.asarray(targets), np.asarray(mask)
    if known.dtype != np.bool_:
        raise ValueError(f"mask must be bool, got {known.dtype}")
    if score.ndim != 2 or not score.shape == target.shape == known.shape:
        raise ValueError(
            f"scores, targets and mask must all be [N, K], got {score.shape}, {target.shape}, {known.shape}"
        )
    if len(class_names) != score.shape[1]:
        raise ValueError(f"{len(class_names)} class names for {score.shape[1]} columns of scores")
    per_class = tuple(
        _class_metrics(name, score[known[:, k], k], target[known[:, k], k], name not in not_learnt)
        for k, name in enumerate(class_names)
    )
    defined = [one for one in per_class if one.averaged]
    return Metrics(
        per_class=per_class,
        mean_auroc=_mean([one.auroc for one in defined]),
        mean_average_precision=_mean([one.average_precision for one in defined]),
        defined_classes=len(defined),
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def format_metrics_table(metrics: Metrics) -> str:
    """A table for people: class, AUROC, AP, positives / known labels; '–' where a figure is undefined."""
    rows = [("class", "AUROC", "AP", "positives / total")]
    for one in metrics.per_class:
        count = f"{one.positives:,} / {one.positives + one.negatives:,}"
        rows.append((printable(one.label), _figure(one.auroc), _figure(one.average_precision), count))
    total = len(metrics.per_class)
    summary = f"mean of {metrics.defined_classes} of {total} {'class' if total == 1 else 'classes'}"
    rows.append((summary, _figure(metrics.mean_auroc), _figure(metrics.mean_average_precision), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * 3)
    never = [one.name for one in metrics.per_class if not one.learnt]
    note = [f"{NEVER_SEEN} no positive image in training, so not in the means: {', '.join(never)}"] if never else []
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *note])


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
