"""The variance of AUROC without resampling, intervals from it, and the paired test of two models.

DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988), in the form of Obuchowski, Biometrics 53 (1997), for clusters:
images of one patient are not independent, and each of them may be positive or negative. Where every patient has one
image the two are the same number. Placements come from midranks (Sun & Xu, IEEE Signal Processing Letters 21, 2014):
O(N log N) instead of O(P N).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfc, expit, logit
from scipy.stats import rankdata

from utils.intervals import Interval, normal_quantile
from utils.metrics import auroc

Floats = NDArray[np.float64]

# A standard error that is rounding alone: placements are means of whole and half numbers.
NO_ERROR = 1e-12


def placements(scores: Floats, labels: Floats) -> Floats:
    """How each image fares against the other side: the share of it that is ranked the right way round. [n] → [n].

    A positive's: the share of negatives below it. A negative's: the share of positives above it. Ties count one half.
    The mean over either side is the AUROC. Both sides must be there.
    """
    positive = labels > 0
    own, among_all = np.empty(scores.size), rankdata(scores)
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    positives = int(positive.sum())
    below = among_all - own
    placed: Floats = np.where(positive, below / (scores.size - positives), 1 - below / positives)
    return placed


def clustered_variance(components: Floats, labels: Floats, clusters: NDArray[np.intp]) -> float:
    """The variance of a mean of placements, or of a difference of two models' placements; all [n].

    Obuchowski's S10 / P + S01 / N + 2 S11 / (P N), each from sums over clusters of deviations from the mean. nan where
    fewer than two clusters have positives, or negatives.
    """
    positive = labels > 0
    codes = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    total, sums, holding = int(codes.max()) + 1, list[Floats](), list[int]()
    for side in (positive, ~positive):
        deviations = components[side] - components[side].mean()
        sums.append(np.bincount(codes[side], weights=deviations, minlength=total) / side.sum())
        holding.append(np.unique(codes[side]).size)
    if min(holding) < 2:
        return math.nan
    own = sum(h / (h - 1) * float(np.dot(s, s)) for h, s in zip(holding, sums))
    return max(own + 2 * total / (total - 1) * float(np.dot(*sums)), 0.0)


def _clusters(clusters: ArrayLike | None, size: int) -> NDArray[np.intp]:
    return np.arange(size) if clusters is None else np.asarray(clusters)


def _both_sides(labels: Floats) -> bool:
    return bool(0 < labels.sum() < labels.size)


def auroc_interval(
    scores: ArrayLike, labels: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """AUROC with DeLong's interval, made on the logit scale so that it stays within (0, 1).

    scores, labels: [n], known labels only, as for `utils.metrics.auroc`. clusters: whole numbers [n] that name each
    image's patient; without them every image stands alone.
    All is nan where a side is absent. The ends are nan where fewer than two patients have positives, or negatives, and
    at an AUROC of 0 or 1, whose estimated variance is 0 and says nothing.
    The logit interval: Pepe 2003, The Statistical Evaluation of Medical Tests, 5.2.
    """
    value = auroc(scores, labels)
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if not _both_sides(y) or value in (0.0, 1.0):
        return Interval(value)
    error = math.sqrt(clustered_variance(placements(s, y), y, _clusters(clusters, y.size)))
    half = normal_quantile(level) * error / (value * (1 - value))
    centre = float(logit(value))
    return Interval(value, float(expit(centre - half)), float(expit(centre + half)))


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same images: AUROCs, first minus second, z and two-sided p; nan where undefined."""

    auroc: float
    other_auroc: float
    difference: Interval
    z: float
    p: float


def paired_test(
    scores: ArrayLike, other: ArrayLike, labels: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> PairedTest:
    """DeLong's test that two correlated AUROCs are equal.

    scores, other: [n] of the two models. labels, clusters: [n] as for `auroc_interval`.
    The variance is that of the difference of placements, which is Var a + Var b - 2 Cov without their rounding. Where
    it is 0, equal AUROCs give z 0 and p 1, different ones an undefined z and p. The interval is on the plain scale.
    """
    s, o, y = (np.asarray(x, np.float64) for x in (scores, other, labels))
    first, second = auroc(s, y), auroc(o, y)
    if not _both_sides(y):
        return PairedTest(first, second, Interval(math.nan), math.nan, math.nan)
    components = placements(s, y) - placements(o, y)
    error = math.sqrt(clustered_variance(components, y, _clusters(clusters, y.size)))
    difference = first - second
    half = normal_quantile(level) * error
    interval = Interval(difference, max(difference - half, -1.0), min(difference + half, 1.0))
    z = difference / error if error > NO_ERROR else 0.0 if difference == 0 else math.nan
    if error <= NO_ERROR and difference:
        interval = Interval(difference)
    return PairedTest(first, second, interval, z, float(erfc(abs(z) / math.sqrt(2))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values for having made several tests; nan stays nan and counts as none.

    The i-th smallest of m, from 0, becomes the largest of (m - j) p_j over j ≤ i, at most 1.
    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    values = np.asarray(p_values, np.float64)
    corrected = np.full(values.shape, math.nan)
    order = np.argsort(values)[: int(np.count_nonzero(~np.isnan(values)))]
    steps = values[order] * np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in corrected]
