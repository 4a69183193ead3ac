"""How many independent images the images of a split are worth, given that those of one patient resemble each other.

An interval for independent images becomes one for clustered ones by dividing their number by the design effect: the
variance that was found, over the variance of independent images (Kish 1965; Rao & Scott, Biometrics 48, 1992). Near 0
and 1 the variance that was found says nothing, it is even 0 at the ends; there the design effect is what the
correlation of a patient's scores, which vary there too, lets expect. Between the two it is their weighted mean.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit
from scipy.stats import rankdata

from evaluation.scored_split import Floats
from utils.intervals import Interval, normal_quantile, proportion_interval

Numbers = NDArray[np.intp]

# What the expected design effect weighs, in patients times p (1 - p): half an event. Chosen by simulation, see
# benchmarks/coverage.py: without it intervals near 1 cover 0.89, with more they are too wide everywhere.
EXPECTATION_WEIGHT = 0.5


def score_correlation(scores: Floats, labels: Floats, patients: Numbers) -> float:
    """The intraclass correlation of the scores of a patient's images of one label, in [0, 1]. All [n].

    Of normal scores of the ranks, by one-way analysis of variance, positives and negatives pooled (Donner 1986). 0
    where no patient has two images of one label, and where there are no scores.
    """
    if not scores.size:
        return 0.0
    normal = ndtri((rankdata(scores) - 0.5) / scores.size)
    between = total = 0.0
    for side in (labels > 0, labels <= 0):
        values, codes = normal[side], np.unique(patients[side], return_inverse=True)[1].reshape(-1)
        sizes = np.bincount(codes)
        if sizes.size < 2 or sizes.max() < 2:
            continue
        n, groups = values.size, sizes.size
        means = np.bincount(codes, weights=values) / sizes
        within = float(np.sum((values - means[codes]) ** 2)) / (n - groups)
        among = float(np.sum(sizes * (means - values.mean()) ** 2)) / (groups - 1)
        part = (among - within) / ((n - np.sum(sizes**2) / n) / (groups - 1))
        between, total = between + n * part, total + n * (within + part)
    return min(max(between / total, 0.0), 1.0) if total > 0 else 0.0


def expected_effect(sizes: ArrayLike, correlation: float) -> float:
    """The design effect of clusters of these sizes whose members have that correlation: 1 for single images."""
    n = np.asarray(sizes, np.float64)
    return 1 + (float(np.sum(n**2) / np.sum(n)) - 1) * correlation


def design_effect(found: float, expected: float, value: float, patients: int) -> float:
    """The mean of the effect that was found and the expected one; value: the figure, in [0, 1], of so many patients."""
    information = value * (1 - value) * patients
    if not information or math.isnan(found):
        return expected
    return (information * found + EXPECTATION_WEIGHT * expected) / (information + EXPECTATION_WEIGHT)


def bounded_interval(value: float, size: float, effect: float, level: float) -> Interval:
    """The mid-P interval of a figure in [0, 1] that `size` images are the base of."""
    effective = size / effect
    return proportion_interval(min(value, 1.0) * effective, effective, level)


def clustered_proportion(
    hits: ArrayLike, totals: ArrayLike, correlation: float, level: float, least: float = 1.0
) -> Interval:
    """The proportion Σ hits / Σ totals of images, with its interval.

    hits, totals: per patient, [G]. correlation: of a patient's scores, see `score_correlation`.
    The variance is that of a ratio of sums over patients (Cochran 1977, 2.11); the design effect is at least 1, and
    made larger where it rests on few patients, see `_unsure`.
    The ends are nan where fewer than two patients have such images.
    """
    x, n = np.asarray(hits, np.float64), np.asarray(totals, np.float64)
    some = n > 0
    x, n = x[some], n[some]
    size, patients = float(n.sum()), int(some.sum())
    if not patients:
        return Interval(math.nan)
    value = float(x.sum()) / size
    if patients < 2:
        return Interval(value)
    variance = patients / (patients - 1) * float(np.sum((x - value * n) ** 2)) / size**2
    binomial = value * (1 - value) / size
    found = variance / binomial if binomial > 0 else math.nan
    effect = max(design_effect(found, expected_effect(n, correlation), value, patients), least) * _unsure(n, level)
    return bounded_interval(value, size, effect, level)


def _unsure(sizes: Floats, level: float) -> float:
    """What a design effect that few patients tell of has to be multiplied with: (t / z)², t Student's.

    Of single images it is 1: their variance is the binomial's, which nothing has to tell. Between, by the share of
    images that an image of the same patient stands beside.
    """
    excess = (stdtrit(sizes.size - 1, 0.5 + level / 2) / normal_quantile(level)) ** 2 - 1
    return 1 + float(excess) * (1 - float(sizes.sum() / np.sum(sizes**2)))
