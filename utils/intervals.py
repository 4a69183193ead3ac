"""Figures with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import betainc, ndtri


class IntervalRecord(TypedDict):
    """An Interval in plain values, nan as None."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Interval:
    """A figure and the two ends of its interval, all in the figure's unit; nan where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def defined(self) -> bool:
        """Whether there are ends."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def as_dict(self) -> IntervalRecord:
        """For JSON, nan as None."""
        return {"value": plain(self.value), "low": plain(self.low), "high": plain(self.high)}


UNDEFINED = Interval(math.nan)


def plain(value: float) -> float | None:
    """A Python float for JSON; None for nan."""
    return None if math.isnan(value) else float(value)


def normal_quantile(level: float) -> float:
    """How many standard errors a two-sided interval reaches to each side: 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    return float(ndtri(0.5 + level / 2))


def proportion_interval(successes: float, total: float, level: float = 0.95) -> Interval:
    """A proportion and its mid-P interval; it stays within [0, 1] and has a width at 0 and at 1 too.

    The ends p are where P(X > x) + P(X = x) / 2 of a binomial X is (1 - level) / 2, and 1 less that (Lancaster 1961,
    Berry & Armitage 1995). Wilson's interval covers 84 % where it says 95 % at some proportions near 0 and 1, this one
    91.8 % at least and 96 % in the mean. successes, total: counts, or effective counts that are not whole; a total of
    0 leaves all undefined.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total} cannot be")
    if not total:
        return UNDEFINED
    tail, failures = (1 - level) / 2, total - successes
    normal_quantile(level)

    def beyond(p: float) -> float:
        """P(X > x) + P(X = x) / 2: the binomial tails as beta functions, which take any count."""
        with_equal = betainc(successes, failures + 1, p) if successes else 1.0
        return float(with_equal + (betainc(successes + 1, failures, p) if failures else 0.0)) / 2

    low = brentq(lambda p: beyond(p) - tail, 0.0, 1.0) if successes else 0.0
    high = brentq(lambda p: beyond(p) - (1 - tail), 0.0, 1.0) if failures else 1.0
    value = successes / total
    return Interval(value, min(float(low), value), max(float(high), value))


def wilson_interval(successes: float, total: float, level: float = 0.95) -> Interval:
    """A share and its score interval; it stays within [0, 1] and has a width at 0 and at 1 too.

    successes, total: counts; a total of 0 leaves all undefined.
    Source: Wilson, JASA 22 (1927), without continuity correction.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total} cannot be")
    if not total:
        return UNDEFINED
    fraction, z2 = successes / total, normal_quantile(level) ** 2
    centre = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (fraction * (1 - fraction) + z2 / (4 * total)) / total) / (1 + z2 / total)
    # At 0 and 1 the formula's own end is the share; rounding must not push it past.
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == total else min(centre + half, 1.0)
    return Interval(fraction, low, high)


def combined_interval(
    parts: Sequence[Interval],
    weights: ArrayLike,
    correlation: ArrayLike,
    bounds: tuple[float, float] = (0.0, 1.0),
    evened: bool = False,
) -> Interval:
    """The weighted sum of figures whose own intervals are known, and how they are correlated: MOVER.

    Each figure's distance to its end, on the side that matters, takes the place of its standard error, so that what is
    lopsided stays so. parts: n figures; one without ends counts as known to lie within the bounds only.
    weights: [n]. correlation: [n, n].
    evened: a sum is less lopsided than its parts. Hold also what an interval holds whose half width is combined as
    standard errors are, and whose leaning as third moments are: a part's by its squared correlation with the sum.
    Source: Zou & Donner, Statistics in Medicine 27 (2008); for two proportions Newcombe 1998.
    """
    w, r = np.asarray(weights, np.float64), np.asarray(correlation, np.float64)
    values = np.array([part.value for part in parts])
    below = values - [part.low if part.defined else bounds[0] for part in parts]
    above = np.array([part.high if part.defined else bounds[1] for part in parts]) - values
    value = math.fsum(w * values)
    down, up = (w * np.where(w > 0, *ends) for ends in ((below, above), (above, below)))
    low, high = value - math.sqrt(max(float(down @ r @ down), 0.0)), value + math.sqrt(max(float(up @ r @ up), 0.0))
    if not evened:
        return Interval(value, low, high)
    half, lean = w * (below + above) / 2, w * (above - below) / 2
    reach = math.sqrt(max(float(half @ r @ half), 0.0))
    shares = (r @ half / reach) ** 2 if reach else np.ones_like(half)
    centre = value + float(lean @ shares)
    return Interval(value, min(low, centre - reach), max(high, centre + reach))
