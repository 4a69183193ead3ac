"""Which training studies an epoch is made of where rare classes are drawn more often: a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["balanced"] | Mapping[str, float]
Floats = NDArray[np.float64]
# Of multi-label data: how many of the studies a finding should be in, for `balanced`.
TARGET_PREVALENCE = 0.5


def study_weights(
    rule: Rule, target: np.ndarray, mask: np.ndarray, class_names: Sequence[str], exclusive: bool
) -> Floats:
    """How often each study of the training split is drawn, relative to the others: float64 [N], mean 1.

    target, mask: [N, K], 0 to 1 and whether that is known; above 0.5 is positive.
    balanced: exclusive classes, and the two sides of a single finding, are drawn equally often (a study whose finding
    is unknown, as often as without a rule). Of several findings, which cannot all be balanced, a study is drawn
    max over its known positives c of max(1, √(t / f_c)) times as often as one without any, f_c the prevalence of c and
    t = TARGET_PREVALENCE: repeat factor sampling (Gupta, Dollár & Girshick, CVPR 2019, arXiv:1908.03195).
    weights by class: the largest weight of the study's known positives; 1 for classes that are not named, and for
    studies without any.
    """
    positive = (target > 0.5) & mask
    if rule != "balanced":
        of_class = np.array([rule.get(name, 1.0) for name in class_names])
        weights = np.where(positive.any(1), np.where(positive, of_class, 0.0).max(1), 1.0)
    elif exclusive:
        counts = positive.sum(0)
        weights = np.where(positive, 1.0 / np.maximum(counts, 1), 0.0).sum(1)
    elif len(class_names) == 1:
        weights = _two_sides(positive[:, 0], mask[:, 0])
    else:
        prevalence = positive.sum(0) / np.maximum(mask.sum(0), 1)
        factors = np.maximum(1.0, np.sqrt(TARGET_PREVALENCE / np.maximum(prevalence, 1e-12)))
        weights = np.where(positive, factors, 1.0).max(1)
    return np.asarray(weights * (len(weights) / weights.sum()), np.float64)


def _two_sides(positive: np.ndarray, known: np.ndarray) -> Floats:
    counts = positive.sum(), (known & ~positive).sum()
    if not min(counts):
        return np.ones(len(positive))
    half = known.sum() / 2
    return np.where(known, np.where(positive, half / counts[0], half / counts[1]), 1.0)


def draw(weights: Floats, seed: int, epoch: int) -> NDArray[np.int64]:
    """N numbers of studies, 0 to N − 1, in the order in which an epoch has them.

    Systematic: each is drawn ⌊w⌋ or ⌈w⌉ times, w its weight, so that w is the mean, and those that are drawn less often
    than once take turns from epoch to epoch by chance.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order])
    ends *= len(weights) / ends[-1]
    chosen = np.searchsorted(ends, np.arange(len(weights)) + rng.random(), side="right")
    return rng.permutation(order[np.minimum(chosen, len(weights) - 1)])


def times_before(rows: np.ndarray) -> NDArray[np.int64]:
    """For each number, how often it has come before: 3, 5, 3, 3 → 0, 0, 1, 2."""
    order = np.argsort(rows, kind="stable")
    _, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
    times = np.empty(len(rows), np.int64)
    times[order] = np.arange(len(rows)) - np.repeat(first, counts)
    return times
