"""The interval of each figure of one class. Which method and why, with its coverage: docs/evaluation.md."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

from evaluation.delong import auroc_interval
from evaluation.effective_size import (
    Numbers,
    bounded_interval,
    clustered_proportion,
    design_effect,
    expected_effect,
    score_correlation,
)
from evaluation.scored_split import Floats
from utils.intervals import Interval, normal_quantile, proportion_interval

# Which cells of (TP, FP, TN, FN) a proportion is of, and which of these are hits. F1 is 2 J / (1 + J) with J = TP of
# TP + FP + FN.
CELLS = {
    "sensitivity": ((0,), (0, 3)),
    "specificity": ((2,), (1, 2)),
    "ppv": ((0,), (0, 1)),
    "npv": ((2,), (2, 3)),
    "f1": ((0,), (0, 1, 3)),
}
NEEDS = {
    "auroc": ("positives", "negatives"),
    "average_precision": ("positives", "negatives"),
    "sensitivity": ("positives",),
    "specificity": ("negatives",),
    "f1": ("positives",),
}
FEWEST_PATIENTS = 2
# Of fewer, most bins of a calibration error hold one image or none.
FEWEST_FOR_ERRORS = 20


class ClassIntervals:
    """Of one class. scores, labels, patients, called (whether it is at the operating point): [n], known labels only."""

    def __init__(
        self, scores: Floats, labels: Floats, patients: Numbers, called: NDArray[np.bool_], level: float
    ) -> None:
        self.scores, self.labels, self.level = scores, labels, level
        self.patients = np.unique(patients, return_inverse=True)[1].reshape(-1)
        self.correlation = score_correlation(scores, labels, self.patients)
        count = int(self.patients.max()) + 1 if self.patients.size else 0
        cell = np.where(called, np.where(labels > 0, 0, 1), np.where(labels > 0, 3, 2))
        flat = np.bincount(cell * count + self.patients, minlength=4 * count)
        self.cells = flat.reshape(4, count).astype(np.float64)
        self.positives = self.cells[0] + self.cells[3]
        self.sizes = self.cells.sum(axis=0)

    def independent_images(self) -> float:
        """How many images without relations the images are worth."""
        return float(self.sizes.sum()) / expected_effect(self.sizes, self.correlation) if self.sizes.size else 0.0

    def none_because(self, name: str) -> str:
        """Why a figure that is defined has no interval; '' where it has one."""
        fewest = FEWEST_FOR_ERRORS if name == "ece" else FEWEST_PATIENTS
        sides = {"positives": self.positives, "negatives": self.sizes - self.positives, "images": self.sizes}
        for side in NEEDS.get(name, ("images",)):
            if np.count_nonzero(sides[side]) < fewest:
                return f"fewer than {fewest} patients with {side}"
        among = self.cells[list(CELLS[name][1])].sum(axis=0) if name in CELLS else self.sizes
        if np.count_nonzero(among) < fewest:
            return f"fewer than {fewest} patients with images that count for it"
        return ""

    def at_threshold(self, name: str) -> Interval:
        """Sensitivity, specificity, PPV, NPV or F1."""
        hits, among = CELLS[name]
        found = clustered_proportion(
            self.cells[list(hits)].sum(axis=0), self.cells[list(among)].sum(axis=0), self.correlation, self.level
        )
        if name != "f1":
            return found
        return Interval(*(2 * end / (1 + end) for end in (found.value, found.low, found.high)))

    def auroc(self, level: float | None = None) -> Interval:
        """See `auroc_interval`. level: another than the usual one."""
        return auroc_interval(self.scores, self.labels, self.patients, level or self.level)

    def average_precision(self, value: float, draws: Floats) -> Interval:
        """As a proportion of the positives (Boyd, Eng & Page 2013), whose design effect is that of the draws."""
        positives = self.positives[self.positives > 0]
        if positives.size < FEWEST_PATIENTS or self.sizes.sum() == positives.sum():
            return Interval(value)
        size = float(positives.sum())
        binomial = value * (1 - value) / size
        quantile = stdtrit(positives.size - 1, 0.5 + self.level / 2) / normal_quantile(self.level)
        drawn = draws[~np.isnan(draws)]
        found = float(np.var(drawn, ddof=1)) / binomial if binomial > 0 and drawn.size > 1 else math.nan
        effect = design_effect(found, expected_effect(positives, self.correlation), value, positives.size)
        return bounded_interval(value, size, effect * quantile**2, self.level)

    def brier(self) -> Interval:
        """As a proportion whose design effect may be below 1: squares lie in [0, 1] without being 0 or 1."""
        squares = np.bincount(self.patients, weights=(self.labels - self.scores) ** 2, minlength=self.sizes.size)
        return clustered_proportion(squares, self.sizes, self.correlation, self.level, 0.0)


def error_interval(bins: Floats, noise: Floats, size: float, level: float) -> Interval:
    """A sum of absolute values Σ |b|, of which noise makes more than there is: ECE and its mean over classes.

    bins: [B], the signed sums whose absolute values are added. noise: [B, R], what chance adds to them: the patients'
    contributions with signs drawn at random (a wild bootstrap, Liu 1988). size: how many independent images.
    The interval holds those sums Σ |c b| of the same bins, larger or smaller by a factor c, to which noise would add
    up to the sum that was found in all but the outer (1 - level) / 2 of draws on each side: a test inverted. A
    calibrated model's sum is noise alone; then the lower end is 0. The upper end is at least that of a proportion.
    """
    used = np.abs(noise).sum(axis=1) + np.abs(bins) > 0
    b, noise = bins[used], noise[used]
    value = float(np.abs(bins).sum())
    least = proportion_interval(min(value, 1.0) * size, size, level).high
    if not value:
        return Interval(value, 0.0, least)

    def quantile(factor: float, share: float) -> float:
        return float(np.quantile(np.abs(factor * b[:, None] + noise).sum(axis=0), share)) - value

    tail = (1 - level) / 2
    most = 2 + float(np.abs(noise).sum(axis=0).max()) / value
    low = 0.0 if quantile(0.0, 1 - tail) >= 0 else _root(lambda c: quantile(c, 1 - tail), most)
    high = _root(lambda c: quantile(c, tail), most) if quantile(0.0, tail) < 0 else 1.0
    return Interval(value, min(low, 1.0) * value, min(max(high * value, least), 1.0))


def _root(function: Callable[[float], float], most: float) -> float:
    return float(brentq(function, 0.0, most, xtol=1e-3))
