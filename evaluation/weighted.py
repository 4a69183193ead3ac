"""Figures of samples in which each patient counts a whole number of times, for many such samples at once.

A patient bootstrap asks for the same figures of thousands of reweighted samples. Nothing is sorted again for them: what
a figure sums over is written once as a sparse matrix [sums, patients], and a block of draws is a product with the
patients' weights [patients, draws]. Sums of whole numbers are exact in float64, so ranks lose nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from evaluation.operating_points import threshold_figures
from evaluation.reliability import BINS, bin_edges, bin_numbers
from evaluation.scored_split import Floats, ScoredSplit

Numbers = NDArray[np.intp]


def sums_of_patients(rows: Numbers, patients: Numbers, values: Floats, shape: tuple[int, int]) -> csr_array:
    """The matrix whose product with weights [patients, draws] is Σ weight · value in each row. All [n] → shape."""
    matrix = csr_array((values, (rows, patients)), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _ratio(above: Floats, below: Floats) -> Floats:
    """nan where 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return above / below


class WeightedRanking:
    """AUROC and average precision of one class, ties exact as in utils.metrics.

    scores, labels, patients: [n], known labels only; patients are numbers below `count`.
    Called with weights [count, draws], gives both, [2, draws], or AUROC alone, [1, draws]; nan where positives or
    negatives have no weight (average precision: where positives have none).
    """

    def __init__(self, scores: Floats, labels: Floats, patients: Numbers, count: int) -> None:
        order = np.argsort(-scores)
        ordered, positive, patient = scores[order], labels[order] > 0, patients[order]
        # A level is a distinct score with a positive, highest first. Only there do both figures change.
        distinct = np.cumsum(np.diff(ordered, prepend=ordered[:1]) != 0)
        has_positive = np.zeros(int(distinct[-1]) + 1 if distinct.size else 0, bool)
        has_positive[distinct[positive]] = True
        passed = np.cumsum(has_positive)
        levels = int(passed[-1]) if passed.size else 0
        level = (passed - has_positive)[distinct]
        tied = ~positive & has_positive[distinct]
        # A negative is above the first level that its score lies above, or, tied with one level, above the next.
        above = ~positive & (level + tied < levels)

        def matrix(chosen: NDArray[np.bool_], rows: Numbers, size: int) -> csr_array:
            ones = np.ones(int(chosen.sum()))
            return sums_of_patients(rows[chosen], patient[chosen], ones, (size, count))

        self.positives = matrix(positive, level, levels)
        self.tied = matrix(tied, level, levels)
        self.above = matrix(above, level + tied, levels)
        self.negatives = matrix(~positive, np.zeros_like(level), 1)

    def __call__(self, weights: Floats, precision: bool = True) -> Floats:
        positives, negatives = self.positives @ weights, (self.negatives @ weights)[0]
        above, tied = np.cumsum(self.above @ weights, axis=0), self.tied @ weights
        total = positives.sum(axis=0)
        won = np.sum(positives * (negatives - above - tied / 2), axis=0)
        auroc = _ratio(won, total * negatives)
        return np.stack([auroc, _average_precision(positives, above + tied, total)]) if precision else auroc[None]


def _average_precision(positives: Floats, false_positives: Floats, total: Floats) -> Floats:
    """From positives at each level, false positives down to it, both [levels, draws], and all positives [draws]."""
    true_positives = np.cumsum(positives, axis=0)
    called = true_positives + false_positives
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    return np.where(total > 0, np.sum(_ratio(positives, total) * precision, axis=0), math.nan)


class RankingFigures:
    """AUROC of every class of a split and, if wanted, average precision, which doubles the work.

    Weights [patients, draws] → figure → [K, draws].
    """

    def __init__(self, scored: ScoredSplit, precision: bool = True) -> None:
        count = scored.cluster_count
        self.classes = [WeightedRanking(*scored.known(k), count) for k in range(len(scored.class_names))]
        self.names = ("auroc", "average_precision") if precision else ("auroc",)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        precision = len(self.names) == 2
        figures = np.stack([ranking(weights, precision) for ranking in self.classes], axis=1)
        return dict(zip(self.names, figures))


class ThresholdFigures:
    """Sensitivity, specificity, PPV, NPV and F1 of what is called at given thresholds [K], nan where the threshold is.

    Weights [patients, draws] → figure → [K, draws].
    """

    def __init__(self, scored: ScoredSplit, thresholds: Floats) -> None:
        present = np.asarray(scored.targets) == 1
        # true positive, false positive, true negative, false negative: the order of `threshold_figures`
        cell = np.where(scored.calls(thresholds), np.where(present, 0, 1), np.where(present, 3, 2))
        images, k = np.nonzero(scored.mask & (scored.exclusive | ~np.isnan(thresholds)))
        self.thresholds = np.asarray(thresholds, np.float64)
        rows, classes = cell[images, k] * len(thresholds) + k, len(thresholds)
        shape = (4 * classes, scored.cluster_count)
        self.cells = sums_of_patients(rows, scored.clusters[images], np.ones(rows.size), shape)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        return threshold_figures((self.cells @ weights).reshape(4, len(self.thresholds), -1))


class ReliabilityFigures:
    """Brier score and expected calibration error (15 bins of equal width) of every class.

    A draw adds noise to every bin, and the error takes its absolute value: draws of the error lie above that of the
    sample, the more so the smaller the sample, which can even lie below its own percentile interval.
    Weights [patients, draws] → figure → [K, draws].
    """

    def __init__(self, scored: ScoredSplit) -> None:
        images, k = np.nonzero(scored.mask)
        p = np.asarray(scored.probabilities, np.float64)[images, k]
        residual = np.asarray(scored.targets)[images, k] - p
        patients, count = scored.clusters[images], scored.cluster_count
        self.classes = scored.probabilities.shape[1]
        bins = k * BINS + bin_numbers(p, bin_edges(p))
        self.counts = sums_of_patients(k, patients, np.ones(p.size), (self.classes, count))
        self.squares = sums_of_patients(k, patients, residual**2, (self.classes, count))
        shape = (self.classes * BINS, count)
        self.residuals = sums_of_patients(bins, patients, residual, shape)
        self.promised = sums_of_patients(bins, patients, p * (1 - p), shape)
        self.members = sums_of_patients(bins, patients, np.ones(p.size), shape)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        counts = self.counts @ weights
        residuals = np.abs(self.residuals @ weights).reshape(self.classes, BINS, -1).sum(axis=1)
        return {"brier": _ratio(self.squares @ weights, counts), "ece": _ratio(residuals, counts)}

    def signed(self) -> Floats:
        """What ECE sums the absolute values of: Σ (label - probability) per bin, over the images. [K, bins]"""
        everyone = np.ones((self.counts.shape[1], 1))
        return _ratio((self.residuals @ everyone).reshape(self.classes, BINS), self.counts @ everyone)

    def chance(self, correlations: Floats, draws: int, seed: int) -> Floats:
        """What chance adds to `signed` in draws of it, [K, bins, draws].

        Its variance in a bin is that of the residuals, a patient's with a sign drawn at random (a wild bootstrap, Liu
        1988), or what the probabilities themselves promise, Σ p (1 - p), more for a patient's images of correlated
        outcomes; correlations: [K]. The larger of the two: the first is too small where rare outcomes did not happen,
        the second where probabilities are wrong.
        """
        rng = np.random.default_rng((seed, draws))
        patients = self.counts.shape[1]
        signs = rng.choice([-1.0, 1.0], (patients, draws))
        promised = self.promised.copy()  # as sparse as `members`, entry by entry
        rows = np.repeat(np.repeat(correlations, BINS), np.diff(promised.indptr))
        promised.data = np.sqrt(promised.data * (1 + (self.members.data - 1) * rows))
        larger = self.residuals.power(2).sum(axis=1) >= promised.power(2).sum(axis=1)
        noise = np.where(larger[:, None], self.residuals @ signs, promised @ signs)
        noise *= math.sqrt(patients / max(patients - 1, 1))
        return _ratio(noise.reshape(self.classes, BINS, -1), (self.counts @ np.ones((patients, 1)))[:, None])


class Accuracy:
    """The share of images whose called class is the right one, of exclusive classes.

    thresholds: [K], where one decides. Images whose labels are not all known are left out.
    """

    def __init__(self, scored: ScoredSplit, thresholds: Floats | None = None) -> None:
        rows = np.flatnonzero(scored.mask.all(axis=1))
        called = scored.calls(np.full(len(scored.class_names), math.nan) if thresholds is None else thresholds)
        right = (called[rows] == (np.asarray(scored.targets)[rows] == 1)).all(axis=1)
        patients, shape = scored.clusters[rows], (1, scored.cluster_count)
        zeros = np.zeros_like(rows)
        self.counts = sums_of_patients(zeros, patients, np.ones(rows.size), shape)
        self.right = sums_of_patients(zeros, patients, right.astype(np.float64), shape)

    def per_patient(self) -> tuple[Floats, Floats]:
        """Images that are right, and all, of each patient: [patients] each."""
        return self.right.toarray()[0], self.counts.toarray()[0]
