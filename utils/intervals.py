"""Figures with a confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri


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


def percentile_interval(value: float, draws: ArrayLike, level: float = 0.95) -> Interval:
    """The percentile bootstrap: the quantiles (1 - level) / 2 and (1 + level) / 2 of the draws, interpolated.

    value: the figure of the whole sample. draws: [R], nan where a draw leaves the figure undefined; these are left out.
    The ends are nan where the value is undefined, or more than half of the draws are: what remains would be
    conditional on too much.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; not bias-corrected.
    """
    normal_quantile(level)
    defined = np.asarray(draws, np.float64)
    defined = defined[~np.isnan(defined)]
    if math.isnan(value) or 2 * defined.size < np.size(draws) or not defined.size:
        return Interval(float(value))
    low, high = np.quantile(defined, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(value), float(low), float(high))


def shifted_interval(value: float, draws: ArrayLike, level: float = 0.95) -> Interval:
    """The percentile interval moved so that the draws' mean lies on the value, cut at 0: for figures that noise raises.

    A draw adds noise to every bin of an expected calibration error, whose draws then lie above the sample's own value,
    all of them even. How far above is the bootstrap's estimate of that bias (Efron & Tibshirani 1993, chapter 10); the
    sample's value has such a bias too, which is left in it, as is usual. Arguments as for `percentile_interval`.
    """
    defined = np.asarray(draws, np.float64)
    known = defined[~np.isnan(defined)]
    bias = float(known.mean()) - value if known.size else 0.0
    return percentile_interval(value, np.maximum(defined - bias, 0.0), level)


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
