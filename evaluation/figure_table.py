"""The figures of all classes of a split, their means, and the intervals of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Figures
from evaluation.class_intervals import ClassIntervals, error_interval
from evaluation.operating_points import threshold_figures
from evaluation.records import ClassFigures, MeanFigure, MeanFigures
from evaluation.reliability import brier_score, expected_calibration_error
from evaluation.scored_split import BootstrapSettings, Floats, ScoredSplit
from evaluation.weighted import RankingFigures, ReliabilityFigures, ThresholdFigures
from utils.intervals import UNDEFINED, Interval, combined_interval
from utils.metrics import classification_metrics

RANKING = ("auroc", "average_precision")
AT_THRESHOLD = ("sensitivity", "specificity", "ppv", "npv", "f1")
RELIABILITY = ("brier", "ece")
ALL = (*RANKING, *AT_THRESHOLD, *RELIABILITY)
# Figures that few images make larger or smaller than they are. A mean over classes averages chance out, but not that,
# so the end towards which the truth lies is moved by it (Efron & Tibshirani 1993, 10).
BIASED = ("average_precision", "f1")
# Products of deviations that are rounding alone.
ROUNDING = 1e-24


def drawn_figures(scored: ScoredSplit, thresholds: Floats, names: Sequence[str] = ALL) -> list[Figures]:
    """What to hand to `bootstrap` for these figures; others of their kind may come along."""
    wanted = set(names)
    figures: list[Figures] = []
    if wanted & set(RANKING):
        figures.append(RankingFigures(scored, "average_precision" in wanted))
    if wanted & set(AT_THRESHOLD):
        figures.append(ThresholdFigures(scored, thresholds))
    if wanted & set(RELIABILITY):
        figures.append(ReliabilityFigures(scored))
    return figures


@dataclass(frozen=True)
class CalibrationErrors:
    """Of each class: the signed sums whose absolute values make ECE, [K, bins], and what chance adds, [K, bins, R]."""

    bins: Floats
    chance: Floats


@dataclass(frozen=True)
class FigureTable:
    """values: figure → [K]. draws: figure → [K, draws]. positives, negatives: images, [K]. classes: K."""

    values: Mapping[str, Floats]
    draws: Mapping[str, Floats]
    positives: np.ndarray
    negatives: np.ndarray
    confusion: Floats
    level: float
    classes: Sequence[ClassIntervals]
    errors: CalibrationErrors | None
    learnt: NDArray[np.bool_]

    @property
    def defined(self) -> NDArray[np.bool_]:
        """Whether means are over a class: it has positives and negatives, and had positives in training; bool [K]."""
        return np.asarray((self.positives > 0) & (self.negatives > 0) & self.learnt)

    def interval(self, name: str, k: int) -> Interval:
        """One figure of one class; without ends where `no_interval` says why."""
        value = float(self.values[name][k])
        if math.isnan(value) or self.classes[k].none_because(name):
            return Interval(value)
        found = self._interval(name, k, value)
        return Interval(value, found.low, found.high)

    def _interval(self, name: str, k: int, value: float) -> Interval:
        one = self.classes[k]
        if name == "auroc":
            return one.auroc()
        if name == "average_precision":
            return one.average_precision(value, self.draws[name][k])
        if name == "brier":
            return one.brier()
        if name == "ece":
            assert self.errors is not None
            return error_interval(self.errors.bins[k], self.errors.chance[k], one.independent_images(), self.level)
        return one.at_threshold(name)

    def no_interval(self, names: Sequence[str], k: int) -> dict[str, str]:
        """Why figures of a class that are defined have no interval: figure → reason."""
        reasons = {name: self.classes[k].none_because(name) for name in names if not np.isnan(self.values[name][k])}
        return {name: reason for name, reason in reasons.items() if reason}

    def mean(self, name: str) -> Interval:
        """The mean over the classes with both sides where the figure is defined.

        Its interval is made of the classes' own, with the correlation of their draws; a class without one counts as
        known to lie in [0, 1] only. Without ends where no class has any.
        """
        chosen = np.flatnonzero(self.averaged(name))
        if not chosen.size:
            return UNDEFINED
        value = math.fsum(self.values[name][chosen]) / chosen.size
        parts = [self.interval(name, int(k)) for k in chosen]
        if not any(part.defined for part in parts) or (name == "ece" and not all(part.defined for part in parts)):
            return Interval(value)
        if name == "ece":
            return self._mean_error(value, chosen)
        weights, together = np.full(chosen.size, 1 / chosen.size), correlation(self.draws[name][chosen])
        found = combined_interval(parts, weights, together, evened=True)
        bias = self._bias(name, chosen) if name in BIASED else 0.0
        return Interval(value, max(found.low - max(bias, 0.0), 0.0), min(found.high - min(bias, 0.0), 1.0))

    def _bias(self, name: str, chosen: np.ndarray) -> float:
        """How much larger a mean is in draws than in the sample: about as much as in the sample than in truth."""
        draws = self.draws[name][chosen]
        known = ~np.isnan(draws)
        own = np.where(known, draws, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        return float(np.mean(np.where(known.any(axis=1), own - self.values[name][chosen], 0.0)))

    def _mean_error(self, value: float, chosen: np.ndarray) -> Interval:
        """Of all bins of all classes at once: noise raises each class's error, and their mean no less."""
        assert self.errors is not None
        bins, chance = self.errors.bins[chosen] / chosen.size, self.errors.chance[chosen] / chosen.size
        size = min(self.classes[k].independent_images() for k in chosen)
        found = error_interval(bins.reshape(-1), chance.reshape(bins.size, -1), size, self.level)
        return Interval(value, found.low, found.high)

    def averaged(self, name: str) -> np.ndarray:
        """The classes that a mean is over, bool [K]."""
        return self.defined & ~np.isnan(self.values[name])

    def undefined_draws(self, k: int) -> dict[str, int]:
        """Figures that some draws leave undefined for class k, and in how many; those never defined are left out."""
        counts = {name: int(np.isnan(draws[k]).sum()) for name, draws in self.draws.items() if name in self.values}
        return {name: n for name, n in counts.items() if n and not math.isnan(self.values[name][k])}

    def row(self, k: int, names: Sequence[str]) -> ClassFigures:
        """A class's counts and figures, for JSON."""
        return {
            "positives": int(self.positives[k]),
            "negatives": int(self.negatives[k]),
            "figures": {name: self.interval(name, k).as_dict() for name in names},
            "no_interval": self.no_interval(names, k),
        }

    def mean_row(self, names: Sequence[str]) -> MeanFigures:
        """The means, each with the number of classes it is over, for JSON."""
        figures: dict[str, MeanFigure] = {
            name: {**self.mean(name).as_dict(), "classes": int(self.averaged(name).sum())} for name in names
        }
        return {"defined_classes": int(self.defined.sum()), "figures": figures}


def correlation(draws: Floats) -> Floats:
    """How figures vary together over the draws, [n, R] → [n, n]; 0 where one does not vary, nan counts as its mean."""
    defined = ~np.isnan(draws)
    counts = np.maximum(defined.sum(axis=1, keepdims=True), 1)
    centred = np.where(defined, draws - np.where(defined, draws, 0.0).sum(axis=1, keepdims=True) / counts, 0.0)
    norms = np.sqrt(np.sum(centred**2, axis=1))
    products = centred @ centred.T
    scale = np.outer(norms, norms)
    found: Floats = np.divide(products, scale, out=np.zeros_like(products), where=scale > ROUNDING * draws.shape[1])
    np.fill_diagonal(found, 1.0)
    return found


def figure_table(
    scored: ScoredSplit, thresholds: Floats, drawn: Sequence[dict[str, Floats]], settings: BootstrapSettings
) -> FigureTable:
    """The whole sample's figures beside those of the draws that `bootstrap` made of `drawn_figures`.

    thresholds: [K], nan where undefined. AUROC and average precision are those of utils.metrics.
    """
    metrics = classification_metrics(
        scored.probabilities, scored.targets, scored.mask, scored.class_names, scored.not_learnt
    )
    confusion = scored.confusion(thresholds)
    known = [scored.known(k) for k in range(len(scored.class_names))]
    values = {
        "auroc": np.array([one.auroc for one in metrics.per_class]),
        "average_precision": np.array([one.average_precision for one in metrics.per_class]),
        **threshold_figures(confusion),
        "brier": np.array([brier_score(p, y) for p, y, _ in known]),
        "ece": np.array([expected_calibration_error(p, y) for p, y, _ in known]),
    }
    draws = {name: figures for part in drawn for name, figures in part.items()}
    calls = scored.calls(thresholds)
    classes = [
        ClassIntervals(*of_class, calls[scored.mask[:, k], k], settings.level) for k, of_class in enumerate(known)
    ]
    return FigureTable(
        values={name: values[name] for name in draws if name in values},
        draws=draws,
        positives=np.array([one.positives for one in metrics.per_class]),
        negatives=np.array([one.negatives for one in metrics.per_class]),
        confusion=confusion,
        level=settings.level,
        classes=classes,
        errors=_errors(scored, classes, settings) if "ece" in draws else None,
        learnt=scored.learnt,
    )


def _errors(scored: ScoredSplit, classes: Sequence[ClassIntervals], settings: BootstrapSettings) -> CalibrationErrors:
    figures = ReliabilityFigures(scored)
    correlations = np.array([one.correlation for one in classes])
    return CalibrationErrors(figures.signed(), figures.chance(correlations, settings.draws, settings.seed))
