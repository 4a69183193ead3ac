"""The patient bootstrap: what figures would be had other patients been seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from evaluation.scored_split import BootstrapSettings, Floats

# weights [patients, draws] → figure → [K, draws]
Figures = Callable[[Floats], dict[str, Floats]]

# Draws computed at a time: enough to make the products long, few enough for a processor's cache.
BLOCK = 32


def draw_weights(patients: int, first: int, draws: int, seed: int) -> Floats:
    """How often each patient is in the draws first … first + draws - 1, as float64 [patients, draws].

    Each draw takes as many patients as there are, with replacement; a patient brings all images. A draw is a function
    of the seed and its number only.
    """
    weights = np.empty((patients, draws))
    for column in range(draws):
        taken = np.random.default_rng((seed, first + column)).integers(0, patients, patients)
        weights[:, column] = np.bincount(taken, minlength=patients)
    return weights


def bootstrap(figures: Sequence[Figures], patients: int, settings: BootstrapSettings) -> list[dict[str, Floats]]:
    """Every figure in every draw: for each of `figures` what it gives, with all draws, [K, settings.draws].

    All figures of one call see the same draws, so that their differences are paired. A figure that a draw leaves
    undefined is nan there. Source: Efron & Tibshirani 1993; clusters drawn whole as in Field & Welsh, JRSS B 69 (2007).
    """

    def block(first: int) -> list[dict[str, Floats]]:
        # The last block is filled up and cut afterwards: sums are then rounded alike for any number of draws.
        weights = draw_weights(patients, first, BLOCK, settings.seed)
        return [figure(weights) for figure in figures]

    firsts = range(0, settings.draws, BLOCK)
    with ThreadPoolExecutor(min(settings.threads, len(firsts))) as pool:
        blocks = list(pool.map(block, firsts))
    return [
        {name: np.concatenate([part[i][name] for part in blocks], axis=1)[:, : settings.draws] for name in blocks[0][i]}
        for i in range(len(figures))
    ]
