"""Shapley values over the columns and views of a study: how much of an output each of them accounts for.

φ_i = Σ over coalitions S without i of |S|! (p - |S| - 1)! / p! · (v(S ∪ {i}) - v(S)), v(S) being the output where only
the players in S are known. Σφ = v(all) - v(none). Sources: Shapley 1953; Štrumbelj & Kononenko, Knowledge and
Information Systems 41 (2014), for the sampling of permutations; Mitchell et al., JMLR 23 (2022), for antithetic pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.errors import ExplanationError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
# Coalitions [n, P], True: known → outputs [n, K].
Value = Callable[[Bools], Floats]

# 2^12 = 4,096 coalitions. Beyond, permutations are drawn.
MAX_EXACT = 12
PERMUTATIONS = 200


@dataclass(frozen=True)
class Attributions:
    """What each of P players adds to K outputs.

    values: [P, K]; base [K]: the output without players; output [K]: with all of them.
    standard_error: [P, K], of the sampling of permutations; 0 where exact.
    """

    values: Floats
    base: Floats
    output: Floats
    standard_error: Floats
    exact: bool

    @property
    def additivity_error(self) -> float:
        """The largest |Σφ - (output - base)| of the K outputs."""
        return float(np.abs(self.values.sum(axis=0) - (self.output - self.base)).max(initial=0.0))


def shapley_values(
    value: Value, playing: Bools, *, permutations: int = PERMUTATIONS, seed: int = 0, max_exact: int = MAX_EXACT
) -> Attributions:
    """The Shapley values of P players; exact up to `max_exact` that play, else from `permutations` random orders.

    value: coalitions [n, P] → outputs [n, K], called once, with coalitions that differ from one another.
    playing: [P]. Who does not play (nothing is known of it, or nothing can change it) is in no coalition and has
    exactly 0. permutations: an even number from 4 on, as each goes with its reverse; additive by construction,
    whichever are drawn. seed: of the permutations. Raises ExplanationError for outputs that are not finite.
    """
    playing = np.asarray(playing, bool)
    players = np.flatnonzero(playing)
    exact = len(players) <= max_exact
    if not exact and (permutations < 4 or permutations % 2):
        raise ValueError(f"permutations is an even number from 4 on, not {permutations}: each goes with its reverse")
    if exact:
        codes = np.arange(2 ** len(players))
        members = (codes[:, None] >> np.arange(len(players)) & 1).astype(bool)
        outputs = _outputs(value, members, players, len(playing))
        phi, error = _exact(outputs, len(players)), None
        base, output = outputs[0], outputs[-1]
    else:
        orders = _antithetic(len(players), permutations, np.random.default_rng(seed))
        phi, error, base, output = _sampled(value, orders, players, len(playing))
    values, errors = (np.zeros((len(playing), len(base))) for _ in range(2))
    values[players] = phi
    if error is not None:
        errors[players] = error
    return Attributions(values, base, output, errors, exact)


def _outputs(value: Value, members: Bools, players: NDArray[np.intp], total: int) -> Floats:
    """Outputs [n, K] of coalitions [n, p] of those that play."""
    coalitions = np.zeros((len(members), total), bool)
    coalitions[:, players] = members
    outputs = np.asarray(value(coalitions), np.float64)
    if outputs.ndim != 2 or len(outputs) != len(members):
        raise ValueError(f"outputs of {len(members)} coalitions are [{len(members)}, K], not {list(outputs.shape)}")
    if not np.isfinite(outputs).all():
        raise ExplanationError(
            f"the model's output is not finite for {int((~np.isfinite(outputs).all(axis=1)).sum())} of {len(outputs)} "
            "combinations of columns and views: it cannot be attributed"
        )
    return outputs


def _exact(outputs: Floats, players: int) -> Floats:
    """[2^p, K], bit i of a row's number: player i is there → [p, K]. Differences first: no effect is exactly 0."""
    codes = np.arange(len(outputs))
    sizes = (codes[:, None] >> np.arange(players) & 1).sum(axis=1)
    weights = np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    phi = np.zeros((players, outputs.shape[1]))
    for i in range(players):
        without = codes[codes >> i & 1 == 0]
        phi[i] = weights[sizes[without]] @ (outputs[without | 1 << i] - outputs[without])
    return phi


def _antithetic(players: int, permutations: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Orders [permutations, p]; the second half is the first, each from its end."""
    half = np.stack([rng.permutation(players) for _ in range(permutations // 2)])
    return np.concatenate([half, half[:, ::-1]])


def _sampled(
    value: Value, orders: NDArray[np.intp], players: NDArray[np.intp], total: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """(values [p, K], their standard errors [p, K], output of nobody [K], of all [K]).

    A coalition that several orders go through is computed once.
    """
    runs, count = orders.shape
    positions = np.argsort(orders, axis=1)
    members = positions[:, None, :] < np.arange(count + 1)[None, :, None]
    unique, index = np.unique(members.reshape(-1, count), axis=0, return_inverse=True)
    steps = _outputs(value, unique, players, total)[index.reshape(runs, count + 1)]
    gains = np.take_along_axis(np.diff(steps, axis=1), positions[:, :, None], axis=1)
    pairs = (gains[: runs // 2] + gains[runs // 2 :]) / 2
    error = pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs))
    return pairs.mean(axis=0), error, steps[0, 0], steps[0, -1]


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows."""
    return (slice(start, start + size) for start in range(0, count, max(size, 1)))
