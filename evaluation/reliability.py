"""How far probabilities can be taken at their word: Brier score, calibration error, reliability diagrams."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.effective_size import clustered_proportion, score_correlation
from utils.intervals import Interval

Floats = NDArray[np.float64]

BINS = 15


def bin_edges(probabilities: ArrayLike, bins: int = BINS, equal: str = "width") -> Floats:
    """The edges of probability bins from 0 to 1, rising.

    equal: 'width', bins + 1 edges; or 'mass', quantiles of the probabilities [N], so that each bin holds as many,
    with fewer bins where ties would have to be split.
    """
    if bins < 1 or equal not in ("width", "mass"):
        raise ValueError(f"bins must be at least 1 and equal 'width' or 'mass', not {bins} and {equal!r}")
    if equal == "width" or not np.size(probabilities):
        return np.linspace(0.0, 1.0, bins + 1)
    inner = np.quantile(np.asarray(probabilities, np.float64), np.arange(1, bins) / bins)
    return np.concatenate(([0.0], np.unique(inner[(inner > 0) & (inner < 1)]), [1.0]))


def bin_numbers(probabilities: ArrayLike, edges: Floats) -> NDArray[np.intp]:
    """The bin of each probability: [low, high), the last one closed. [N] → [N] of 0 … bins - 1."""
    numbers = np.searchsorted(edges, np.asarray(probabilities, np.float64), side="right") - 1
    return np.clip(numbers, 0, edges.size - 2)


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean of (probability - label)², in [0, 1], of one class; nan without images.

    probabilities, labels: [N]. Source: Brier 1950, of the event alone (half of his sum over both outcomes).
    """
    errors = np.asarray(probabilities, np.float64) - np.asarray(labels, np.float64)
    return float(np.mean(errors**2)) if errors.size else math.nan


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS, equal: str = "width"
) -> float:
    """Sum over bins of (fraction of images) · |mean probability - share of positives|, in [0, 1]; nan without images.

    probabilities, labels: [N], of one class. bins, equal: see `bin_edges`.
    Source: Naeini et al., AAAI 2015, with the 15 equal bins of Guo et al. 2017. Theirs bins the probability of the
    predicted class; this bins that of the finding, which is what a multi-label classifier states (class-wise ECE).
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if not p.size:
        return math.nan
    edges = bin_edges(p, bins, equal)
    residuals = np.bincount(bin_numbers(p, edges), weights=y - p, minlength=edges.size - 1)
    return float(np.abs(residuals).sum() / p.size)


@dataclass(frozen=True)
class ReliabilityBin:
    """Probabilities in [low, high): how many, their mean, the share of positives with its interval."""

    low: float
    high: float
    count: int
    confidence: float
    frequency: Interval


def reliability_bins(
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int = BINS,
    equal: str = "width",
    level: float = 0.95,
    patients: ArrayLike | None = None,
) -> list[ReliabilityBin]:
    """The bins of a reliability diagram that hold anything, lowest first.

    probabilities, labels: [N], of one class. bins, equal: see `bin_edges`. patients: whole numbers [N] that name each
    image's patient, without which every image stands alone. The intervals are mid-P, of an effective number of images;
    where one patient has all images of a bin there is none.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    clusters = np.arange(p.size) if patients is None else np.asarray(patients)
    edges = bin_edges(p, bins, equal)
    numbers = bin_numbers(p, edges)
    shared = score_correlation(p, y, clusters)
    found = []
    for b in np.unique(numbers):
        rows = numbers == b
        codes = np.unique(clusters[rows], return_inverse=True)[1].reshape(-1)
        hits, totals = np.bincount(codes, weights=y[rows]), np.bincount(codes)
        frequency = clustered_proportion(hits, totals, shared, level)
        confidence = float(np.mean(p[rows]))
        found.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), int(rows.sum()), confidence, frequency))
    return found
