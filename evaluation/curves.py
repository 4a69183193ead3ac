"""curves.json: the numbers behind each plot, in full precision, to draw it again in any program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from evaluation.operating_points import threshold_figures
from evaluation.reliability import reliability_bins
from evaluation.scored_split import Floats, ScoredSplit
from utils.intervals import plain
from utils.metrics import precision_recall_curve, roc_curve

HISTOGRAM_BINS = 25

Numbers = list[float | None]


class RocRecord(TypedDict):
    """Corners of the curve from (0, 0) on: what lies between two of them lies on their line. threshold: at or above
    it an image is called; None where nothing is."""

    false_positive_rate: Numbers
    true_positive_rate: Numbers
    threshold: Numbers


class PrecisionRecallRecord(TypedDict):
    """From the lowest threshold to recall 0; the last point has no threshold."""

    recall: Numbers
    precision: Numbers
    threshold: Numbers


class ReliabilityRecord(TypedDict):
    """Bins that hold images: edges, how many, the mean probability, the share of positives with its interval."""

    low: Numbers
    high: Numbers
    images: list[int]
    mean_probability: Numbers
    positives: Numbers
    positives_low: Numbers
    positives_high: Numbers


class HistogramRecord(TypedDict):
    """Counts of images between HISTOGRAM_BINS + 1 edges."""

    edges: Numbers
    positives: list[int]
    negatives: list[int]


class ClassCurves(TypedDict):
    """The curves of one class. at_operating_point: sensitivity, specificity, ppv … of what is called."""

    name: str
    positives: int
    negatives: int
    roc: RocRecord
    precision_recall: PrecisionRecallRecord
    calibration: ReliabilityRecord
    calibration_before: ReliabilityRecord | None
    histogram: HistogramRecord
    at_operating_point: dict[str, float | None]


class MatrixRecord(TypedDict):
    """Of exclusive classes: images by label (rows) and call (columns)."""

    classes: list[str]
    counts: list[list[int]]


class Curves(TypedDict):
    """All of a split."""

    split: str
    classes: list[ClassCurves]
    confusion_matrix: MatrixRecord | None


def curves_of(scored: ScoredSplit, thresholds: Sequence[float], before: Floats | None) -> Curves:
    """What the plots of a split are drawn from, nan as None. thresholds: [K]. before: uncalibrated, [N, K]."""
    at_point = threshold_figures(scored.confusion(thresholds))
    return {
        "split": scored.split,
        "classes": [
            _class_curves(scored, k, before, {name: plain(float(values[k])) for name, values in at_point.items()})
            for k in range(len(scored.class_names))
        ],
        "confusion_matrix": {"classes": list(scored.class_names), "counts": confusion_matrix(scored).tolist()}
        if scored.exclusive
        else None,
    }


def confusion_matrix(scored: ScoredSplit) -> np.ndarray:
    """Of exclusive classes, int64 [K, K]: labels by calls; images whose labels are not all known are left out."""
    rows = scored.mask.all(axis=1)
    classes = len(scored.class_names)
    called = scored.calls(np.full(classes, np.nan))[rows].argmax(axis=1)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(scored.targets)[rows].argmax(axis=1), called), 1)
    return counts


def probability_histogram(scores: Floats) -> tuple[np.ndarray, Floats]:
    """(counts [HISTOGRAM_BINS], edges) of probabilities [n]."""
    return np.histogram(scores, np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1))


def _class_curves(scored: ScoredSplit, k: int, before: Floats | None, point: dict[str, float | None]) -> ClassCurves:
    scores, labels, patients = scored.known(k)
    edges = probability_histogram(scores)[1]
    counts = {side: probability_histogram(scores[labels == side])[0] for side in (0, 1)}
    old = None if before is None else np.asarray(before[scored.mask[:, k], k], np.float64)
    return {
        "name": scored.class_names[k],
        "positives": int((labels == 1).sum()),
        "negatives": int((labels == 0).sum()),
        "roc": _roc(scores, labels),
        "precision_recall": _precision_recall(scores, labels),
        "calibration": _reliability(scores, labels, patients),
        "calibration_before": None if old is None else _reliability(old, labels, patients),
        "histogram": {"edges": _numbers(edges), "positives": counts[1].tolist(), "negatives": counts[0].tolist()},
        "at_operating_point": point,
    }


def _roc(scores: Floats, labels: Floats) -> RocRecord:
    fpr, tpr, thresholds = roc_curve(scores, labels)
    # Counts, whose differences are exact: a point is left out where it lies on the line between its neighbours.
    down, right = (np.diff(rate * size) for rate, size in ((tpr, (labels == 1).sum()), (fpr, (labels == 0).sum())))
    cross = np.round(down[1:]) * np.round(right[:-1]) - np.round(down[:-1]) * np.round(right[1:])
    kept = np.concatenate(([True], ~(cross == 0), [True]))[: fpr.size]
    return {
        "false_positive_rate": _numbers(fpr[kept]),
        "true_positive_rate": _numbers(tpr[kept]),
        "threshold": _numbers(thresholds[kept]),
    }


def _precision_recall(scores: Floats, labels: Floats) -> PrecisionRecallRecord:
    precision, recall, thresholds = precision_recall_curve(scores, labels)
    return {
        "recall": _numbers(recall),
        "precision": _numbers(precision),
        "threshold": [*_numbers(thresholds), None],
    }


def _reliability(scores: Floats, labels: Floats, patients: np.ndarray) -> ReliabilityRecord:
    bins = reliability_bins(scores, labels, patients=patients)
    return {
        "low": [one.low for one in bins],
        "high": [one.high for one in bins],
        "images": [one.count for one in bins],
        "mean_probability": [plain(one.confidence) for one in bins],
        "positives": [plain(one.frequency.value) for one in bins],
        "positives_low": [plain(one.frequency.low) for one in bins],
        "positives_high": [plain(one.frequency.high) for one in bins],
    }


def _numbers(values: Floats) -> Numbers:
    return [float(value) if np.isfinite(value) else None for value in values]
