"""LIME for studies: a linear model of the output around one study, fitted to studies that differ a little from it.

β = argmin Σ_s π_s (f(s) - b - β·z_s)² + α‖β‖², π_s = exp(-‖z_s - z‖² / (2 σ²)), σ = 0.75 √P, α = 1, b not penalised.
z: numeric columns standardised; 1 where a category is the study's and where a view is there, else 0.
Source: Ribeiro et al., KDD 2016, with the kernel and α of their package `lime` 0.2.0.1 (discretize_continuous=False,
sample_around_instance=True). Departures: a gap stays a gap; a category is drawn from the background, gaps included; all
columns are kept; fits of several seeds, as one alone may be unstable (Alvarez-Melis & Jaakkola 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import ExplanationError
from explain.background import ROWS_AT_ONCE, StudyInputs, StudyOutputs
from explain.shapley import Bools, Floats, chunks

SAMPLES = 2000
SEEDS = 5
ALPHA = 1.0
KERNEL_WIDTH = 0.75  # times √P


@dataclass(frozen=True)
class LinearFit:
    """Weighted ridge. coefficients: [P, K]; intercept, r_squared: [K], the latter nan where the output is constant."""

    coefficients: Floats
    intercept: Floats
    r_squared: Floats


@dataclass(frozen=True)
class LimeExplanation:
    """What K outputs gain around a study: by one standard deviation of a column, by its category, by a view.

    coefficients: [P, K], mean over seeds, 0 for who does not play; spread [P, K]: their standard deviation over seeds.
    r_squared: [K], mean over seeds: how much of the output near the study is linear at all. Below about 0.5 the
    coefficients describe something else than the model.
    """

    coefficients: Floats
    spread: Floats
    r_squared: Floats


def lime(
    outputs: StudyOutputs,
    study: StudyInputs,
    categorical: Bools,
    *,
    samples: int = SAMPLES,
    seeds: Sequence[int] = tuple(range(SEEDS)),
) -> LimeExplanation:
    """LIME's coefficients of a study's F columns, then its V views.

    categorical: [F], whose cells are codes of categories; all others are standardised numbers. samples: studies a
    seed, the study itself the first. Who does not play (`StudyInputs.playing`) is never changed and has exactly 0.
    Raises ExplanationError for outputs that are not finite.
    """
    if samples < 2 or len(seeds) < 2:
        raise ValueError(f"LIME needs two samples and two seeds at least, not {samples} and {len(seeds)}")
    playing = study.playing
    fits = []
    for seed in seeds:
        table, known, views, features = perturbed(study, categorical, samples, np.random.default_rng(seed))
        values = _in_chunks(outputs, table, known, views)
        moved = features[:, playing]
        distances = np.linalg.norm(moved - moved[0], axis=1)
        fits.append(weighted_ridge(moved, values, kernel(distances, int(playing.sum()))))
    found = np.stack([fit.coefficients for fit in fits])
    coefficients, spread = (np.zeros((len(playing), found.shape[2])) for _ in range(2))
    coefficients[playing], spread[playing] = found.mean(axis=0), found.std(axis=0, ddof=1)
    return LimeExplanation(coefficients, spread, np.mean([fit.r_squared for fit in fits], axis=0))


def perturbed(
    study: StudyInputs, categorical: Bools, samples: int, rng: np.random.Generator
) -> tuple[Floats, Bools, Bools, Floats]:
    """(table, known [n, F], views [n, V], features z [n, F + V]) of studies around one, which is the first.

    Numbers: N(the study's, 1). Categories, or gaps: as the background has them. Views: there in half of the studies.
    """
    columns, playing = len(study.table), study.playing
    known, views = np.tile(study.known, (samples, 1)), np.tile(study.views, (samples, 1))
    table: Floats = np.where(known, study.table, 0.0)
    features = np.concatenate([table, views], axis=1)
    rows = study.background
    for j in np.flatnonzero(playing[:columns]):
        if categorical[j]:
            drawn = rng.integers(len(rows.rows), size=samples - 1)
            table[1:, j], known[1:, j] = rows.rows[drawn, j], rows.known[drawn, j]
            features[:, j] = known[:, j] & (table[:, j] == study.table[j])
        else:
            table[1:, j] += rng.standard_normal(samples - 1)
            features[:, j] = table[:, j]
    for v in np.flatnonzero(study.views):
        views[1:, v] = rng.random(samples - 1) < 0.5
        features[:, columns + v] = views[:, v]
    return table, known, views, features


def kernel(distances: Floats, features: int) -> Floats:
    """Weights [n] of studies at these distances from the one that is explained."""
    return np.exp(-(distances**2) / (2 * KERNEL_WIDTH**2 * max(features, 1)))


def weighted_ridge(features: Floats, values: Floats, weights: Floats, alpha: float = ALPHA) -> LinearFit:
    """Fit values [n, K] by features [n, P] with weights [n]; the intercept is not penalised."""
    centre = weights @ features / weights.sum()
    mean = weights @ values / weights.sum()
    x, y = features - centre, values - mean
    coefficients = np.linalg.solve(
        x.T @ (weights[:, None] * x) + alpha * np.eye(x.shape[1]), x.T @ (weights[:, None] * y)
    )
    left, total = weights @ (y - x @ coefficients) ** 2, weights @ y**2
    # The mean of equal values is off by rounding, which is no variance.
    constant = np.ptp(values, axis=0) == 0
    r_squared = np.where(constant, math.nan, 1 - left / np.where(constant, 1.0, total))
    return LinearFit(coefficients, mean - centre @ coefficients, r_squared)


def _in_chunks(outputs: StudyOutputs, table: Floats, known: Bools, views: Bools) -> Floats:
    parts = [outputs(table[part], known[part], views[part]) for part in chunks(len(table), ROWS_AT_ONCE)]
    values = np.concatenate([np.asarray(part, np.float64) for part in parts])
    if not np.isfinite(values).all():
        raise ExplanationError(
            "the model's output is not finite for a study close to this one: LIME has nothing to fit"
        )
    return values
