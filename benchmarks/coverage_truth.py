"""The populations that benchmarks.coverage draws from, and their true figures, by formula or by quadrature.

A score is N(0, 1) without the finding and N(d, 1) with it: the binormal model, of AUROC Φ(d / √2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri
from scipy.stats import norm

from evaluation.reliability import BINS, bin_edges, bin_numbers

Floats = NDArray[np.float64]

# True AUROCs; sensitivities and accuracies too.
VALUES = (0.5, 0.7, 0.9, 0.98, 0.999)
# Slope and offset of the logit: of 'calibrated' scores the probability is what it says.
CALIBRATIONS = {"calibrated": (1.0, 0.0), "overconfident": (2.5, 0.5)}
# Scores of a model that knows nothing are all one probability, which ranks nothing; such a model believes in this much.
LEAST_BELIEF = 0.7
STEPS, BEYOND = 200_001, 9.0


def separation(auroc: float) -> float:
    """d of the binormal model."""
    return math.sqrt(2) * float(ndtri(auroc))


@dataclass(frozen=True)
class Population:
    """auroc: true. prevalence: of the finding among images. calibration: one of CALIBRATIONS."""

    auroc: float
    prevalence: float
    calibration: str = "calibrated"

    @property
    def threshold(self) -> float:
        """Where sensitivity is the value that AUROC is, as a score."""
        return separation(self.auroc) - float(ndtri(self.auroc))

    def probability(self, score: Floats) -> Floats:
        """Of a score; rises with it."""
        d = max(separation(self.auroc), LEAST_BELIEF)
        slope, offset = CALIBRATIONS[self.calibration]
        logit = d * score - d**2 / 2 + math.log(self.prevalence / (1 - self.prevalence))
        return np.asarray(expit(slope * logit + offset), np.float64)


@dataclass(frozen=True)
class Truths:
    """figure → its true value; figure → the share of all images that it is of, or that its smaller side is."""

    values: dict[str, float]
    images: dict[str, float]


def truths(of: Population) -> Truths:
    """AUROC, sensitivity, specificity, PPV, NPV and F1 by formula, the others by integration over the score."""
    d, share = separation(of.auroc), of.prevalence
    tp, fp = (float(part) for part in (share * ndtr(d - of.threshold), (1 - share) * ndtr(-of.threshold)))
    called = tp + fp
    values = {
        "auroc": of.auroc,
        "sensitivity": tp / share,
        "specificity": 1 - fp / (1 - share),
        "ppv": tp / called,
        "npv": (1 - share - fp) / (1 - called),
        "f1": 2 * tp / (share + called),
        **_integrals(of, d),
    }
    smaller = min(share, 1 - share)
    images = dict.fromkeys(values, 1.0)
    images.update(auroc=smaller, average_precision=smaller, sensitivity=share, specificity=1 - share)
    images.update(ppv=called, npv=1 - called, f1=share)
    return Truths(values, images)


def _integrals(of: Population, d: float) -> dict[str, float]:
    z = np.linspace(-BEYOND, d + BEYOND, STEPS)
    step = z[1] - z[0]
    with_it, without = of.prevalence * norm.pdf(z - d) * step, (1 - of.prevalence) * norm.pdf(z) * step
    above, false = of.prevalence * ndtr(d - z), (1 - of.prevalence) * ndtr(-z)
    p = of.probability(z)
    bins = bin_numbers(p, bin_edges(p))
    residuals = np.bincount(bins, weights=with_it * (1 - p) - without * p, minlength=BINS)
    return {
        "average_precision": float(np.sum(with_it * above / (above + false)) / of.prevalence),
        "brier": float(np.sum(with_it * (1 - p) ** 2 + without * p**2)),
        "ece": float(np.abs(residuals).sum()),
    }
