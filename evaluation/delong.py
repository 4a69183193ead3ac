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
from scipy.optimize import brentq
from scipy.special import erfc, stdtrit
from scipy.stats import rankdata

from evaluation.effective_size import design_effect, expected_effect, score_correlation
from utils.intervals import Interval, combined_interval
from utils.metrics import auroc

Floats = NDArray[np.float64]

# A standard error that is rounding alone: placements are means of whole and half numbers.
NO_ERROR = 1e-12
# Less than the step between two AUROCs of a million positives and a hundred negatives.
BESIDE = 1e-9
NEAR_ONE = 0.95


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


@dataclass(frozen=True)
class Variance:
    """Of a mean of placements: the whole; what positives and negatives bring, and on how many patients each rests."""

    whole: float
    sides: tuple[float, float]
    patients: tuple[int, int]

    def quantile(self, level: float) -> float:
        """Student's, with the degrees of freedom of a sum of two variances (Satterthwaite 1946), at least 1."""
        own = [part**2 / (count - 1) for part, count in zip(self.sides, self.patients)]
        freedom = sum(self.sides) ** 2 / sum(own) if sum(own) > 0 else min(self.patients) - 1
        return float(stdtrit(max(freedom, 1.0), 0.5 + level / 2))


def clustered_variance(components: Floats, labels: Floats, clusters: NDArray[np.intp]) -> Variance:
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
        return Variance(math.nan, (math.nan, math.nan), (holding[0], holding[1]))
    first, second = (h / (h - 1) * float(np.dot(s, s)) for h, s in zip(holding, sums))
    whole = max(first + second + 2 * total / (total - 1) * float(np.dot(*sums)), 0.0)
    return Variance(whole, (first, second), (holding[0], holding[1]))


def model_variance(auroc: float, positives: float, negatives: float) -> float:
    """Hanley & McNeil's variance (Radiology 143, 1982) in Newcombe's symmetric form, of so many independent images."""
    pairs = (positives + negatives) / 2 - 1
    inner = 1 + pairs * ((1 - auroc) / (2 - auroc) + auroc / (1 + auroc))
    return auroc * (1 - auroc) * inner / (positives * negatives)


def _clusters(clusters: ArrayLike | None, size: int) -> NDArray[np.intp]:
    return np.arange(size) if clusters is None else np.asarray(clusters)


def _both_sides(labels: Floats) -> bool:
    return bool(0 < labels.sum() < labels.size)


def auroc_interval(
    scores: ArrayLike, labels: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """AUROC with a score interval that stays within [0, 1] and has a width at 0 and 1 too.

    scores, labels: [n], known labels only, as for `utils.metrics.auroc`. clusters: whole numbers [n] that name each
    image's patient; without them every image stands alone.
    The ends are the AUROCs a for which (a - found)² = t² V(a): Newcombe's method 5 (Statistics in Medicine 25, 2006),
    with V not Hanley & McNeil's alone but times the ratio of Obuchowski's variance to it at the AUROC that was found
    (their design effect, see evaluation/effective_size.py), and Student's t.
    All is nan where a side is absent. The ends are nan where fewer than two patients have positives, or negatives.
    """
    value = auroc(scores, labels)
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if not _both_sides(y):
        return Interval(value)
    patients = _clusters(clusters, y.size)
    found = clustered_variance(placements(s, y), y, patients)
    if math.isnan(found.whole):
        return Interval(value)
    positives, negatives = float(y.sum()), float(y.size - y.sum())
    model = model_variance(value, positives, negatives)
    ratio = found.whole / model if model > 0 else math.nan
    effect = design_effect(ratio, _expected_ratio(s, y, patients), value, min(found.patients))
    reach = found.quantile(level) ** 2 * effect

    def excess(a: float) -> float:
        return (a - value) ** 2 - reach * model_variance(a, positives, negatives)

    # Negative beside the figure, at 0 and 1 positive; at a figure of 0 or 1 itself it is 0.
    low = brentq(excess, 0.0, value - BESIDE) if value > 0 else 0.0
    high = brentq(excess, value + BESIDE, 1.0) if value < 1 else 1.0
    return Interval(value, float(low), float(high))


def _expected_ratio(scores: Floats, labels: Floats, patients: NDArray[np.intp]) -> float:
    """The design effect of AUROC that the correlation of a patient's scores lets expect.

    Taken near 1, where alone it weighs.
    """
    correlation = score_correlation(scores, labels, patients)
    sides = [np.unique(patients[labels == side], return_counts=True)[1] for side in (1, 0)]
    sizes = [float(side.sum()) for side in sides]
    worth = [size / expected_effect(side, correlation) for size, side in zip(sizes, sides)]
    return model_variance(NEAR_ONE, *worth) / model_variance(NEAR_ONE, *sizes)


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
    it is 0, equal AUROCs give z 0 and p 1, different ones an undefined z and p. The interval is made of
    the two models' own, see `combined_interval`: near 1 it is lopsided and may hold 0 where p is small, or the reverse.
    """
    s, o, y = (np.asarray(x, np.float64) for x in (scores, other, labels))
    first, second = auroc(s, y), auroc(o, y)
    if not _both_sides(y):
        return PairedTest(first, second, Interval(math.nan), math.nan, math.nan)
    patients = _clusters(clusters, y.size)
    placed = placements(s, y), placements(o, y)
    found = clustered_variance(placed[0] - placed[1], y, patients).whole
    error, difference = math.sqrt(found), first - second
    z = difference / error if error > NO_ERROR else 0.0 if difference == 0 else math.nan
    interval = Interval(difference)
    if not math.isnan(found):
        own, others = (clustered_variance(one, y, patients).whole for one in placed)
        interval = _difference_interval(s, o, y, patients, (own, others, found), level)
    return PairedTest(first, second, interval, z, float(erfc(abs(z) / math.sqrt(2))))


def _difference_interval(
    scores: Floats,
    other: Floats,
    labels: Floats,
    patients: NDArray[np.intp],
    variances: tuple[float, float, float],
    level: float,
) -> Interval:
    """Of two AUROCs' difference, from their own intervals and their correlation; nothing where the ranks are the same.

    variances: of the first, the second, and their difference.
    """
    parts = [auroc_interval(one, labels, patients, level) for one in (scores, other)]
    if np.array_equal(rankdata(scores), rankdata(other)):
        return Interval(0.0, 0.0, 0.0)
    first, second, of_difference = variances
    product = math.sqrt(first * second)
    shared = (first + second - of_difference) / (2 * product) if product > NO_ERROR**2 else 0.0
    shared = min(max(shared, -1.0), 1.0)
    found = combined_interval(parts, [1, -1], [[1, shared], [shared, 1]])
    return Interval(parts[0].value - parts[1].value, max(found.low, -1.0), min(found.high, 1.0))


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
