"""Whether attention weights rank columns and views as their Shapley values do.

Attention is no explanation by itself (Jain & Wallace, NAACL 2019): shown beside, with this figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.stats import rankdata, spearmanr

from explain.shapley import Bools, Floats

# Two ranks agree or disagree, whatever the weights.
MIN_PLAYERS = 3
# 8! = 40,320 orders are counted out; beyond, the t distribution is close enough.
MAX_COUNTED = 8


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ, of how many players, and how often a random order is at least as far from 0.

    nan where undefined: fewer than three players, or all of them tied in one of the two. p_value: exact up to eight
    players, with ties. ρ of few is coarse: of three it is ±1 or ±0.5, and ±1 in a third of random orders.
    """

    value: float
    players: int
    p_value: float

    @property
    def defined(self) -> bool:
        """Whether there is a figure."""
        return not math.isnan(self.value)


def rank_correlation(weights: Floats, attributions: Floats, playing: Bools) -> RankCorrelation:
    """Spearman's ρ of attention weights [P] and of the size of attributions [P], which have a sign, weights have none.

    playing: [P]; who does not play is left out, as agreement about what is not there is none. A player without a weight
    of its own (nan) is left out too. Ties have mean ranks.
    """
    used = playing & ~np.isnan(weights)
    sizes = np.abs(attributions[used])
    # Twins differ in the last bits: digits that do not count must not order them.
    a, b = (rankdata(_rounded(part)) for part in (weights[used].astype(np.float64), sizes))
    count = int(used.sum())
    if count < MIN_PLAYERS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return RankCorrelation(math.nan, count, math.nan)
    rho = float(np.corrcoef(a, b)[0, 1])
    if count > MAX_COUNTED:
        return RankCorrelation(rho, count, float(spearmanr(a, b).pvalue))
    x, y = a - a.mean(), b - b.mean()
    orders = np.array(list(permutations(y))) @ x
    return RankCorrelation(rho, count, float((np.abs(orders) >= abs(x @ y) - 1e-9).mean()))


def _rounded(values: Floats) -> Floats:
    """To 1e-9 of the largest."""
    step = float(np.abs(values).max(initial=0.0)) * 1e-9
    return np.round(values / step) if step else values
