"""The figures of all classes of a split, their means, and the intervals of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Figures
from evaluation.operating_points import threshold_figures
from evaluation.records import ClassFigures, MeanFigure, MeanFigures
from evaluation.reliability import brier_score, expected_calibration_error
from evaluation.scored_split import BootstrapSettings, Floats, ScoredSplit
from evaluation.weighted import RankingFigures, ReliabilityFigures, ThresholdFigures
from utils.intervals import UNDEFINED, Interval, percentile_interval, shifted_interval
from utils.metrics import classification_metrics

RANKING = ("auroc", "average_precision")
AT_THRESHOLD = ("sensitivity", "specificity", "ppv", "npv", "f1")
RELIABILITY = ("brier", "ece")
ALL = (*RANKING, *AT_THRESHOLD, *RELIABILITY)
# Whose number an interval rests on: with fewer than two patients of that side no draw can tell how they differ.
NEEDS_POSITIVES = {"auroc", "average_precision", "sensitivity", "f1"}
NEEDS_NEGATIVES = {"auroc", "average_precision", "specificity"}
FEWEST_PATIENTS = 2
RAISED_BY_NOISE = {"ece"}


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
class FigureTable:
    """values: figure → [K]. draws: figure → [K, draws]. The counts, [K], are of images and of their patients."""

    values: Mapping[str, Floats]
    draws: Mapping[str, Floats]
    positives: np.ndarray
    negatives: np.ndarray
    positive_patients: np.ndarray
    negative_patients: np.ndarray
    confusion: Floats
    level: float
    learnt: NDArray[np.bool_]

    @property
    def defined(self) -> NDArray[np.bool_]:
        """Whether means are over a class: it has positives and negatives, and had positives in training; bool [K]."""
        return np.asarray((self.positives > 0) & (self.negatives > 0) & self.learnt)

    def interval(self, name: str, k: int) -> Interval:
        """One figure of one class."""
        value, draws = float(self.values[name][k]), self.draws[name][k]
        positives, negatives = self.positive_patients[k], self.negative_patients[k]
        enough = (
            positives + negatives >= FEWEST_PATIENTS
            and (positives >= FEWEST_PATIENTS or name not in NEEDS_POSITIVES)
            and (negatives >= FEWEST_PATIENTS or name not in NEEDS_NEGATIVES)
        )
        return self._interval(name, value, draws) if enough else Interval(value)

    def mean(self, name: str) -> Interval:
        """The mean over the classes with both sides where the figure is defined; so in each draw."""
        chosen = self.averaged(name)
        if not chosen.any():
            return UNDEFINED
        value = math.fsum(self.values[name][chosen]) / int(chosen.sum())
        return self._interval(name, value, self.mean_draws(name, chosen))

    def _interval(self, name: str, value: float, draws: Floats) -> Interval:
        return (shifted_interval if name in RAISED_BY_NOISE else percentile_interval)(value, draws, self.level)

    def averaged(self, name: str) -> np.ndarray:
        """The classes that a mean is over, bool [K]."""
        return self.defined & ~np.isnan(self.values[name])

    def mean_draws(self, name: str, classes: np.ndarray) -> Floats:
        """The mean of some classes, bool [K], in each draw: over those of them that have both sides in the draw. [R]"""
        defined = ~np.isnan(self.draws["auroc"][classes])
        return mean_of_defined(np.where(defined, self.draws[name][classes], math.nan))

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
        }

    def mean_row(self, names: Sequence[str]) -> MeanFigures:
        """The means, each with the number of classes it is over, for JSON."""
        figures: dict[str, MeanFigure] = {
            name: {**self.mean(name).as_dict(), "classes": int(self.averaged(name).sum())} for name in names
        }
        return {"defined_classes": int(self.defined.sum()), "figures": figures}


def mean_of_defined(values: Floats) -> Floats:
    """The mean over the first axis of what is not nan; nan where all is. [K, R] → [R]."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=0)
    sums = np.where(defined, values, 0.0).sum(axis=0)
    means: Floats = np.divide(sums, counts, out=np.full(counts.shape, math.nan), where=counts > 0)
    return means


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
    return FigureTable(
        values={name: values[name] for name in draws if name in values},
        draws=draws,
        positives=np.array([one.positives for one in metrics.per_class]),
        negatives=np.array([one.negatives for one in metrics.per_class]),
        positive_patients=np.array([np.unique(patients[y > 0]).size for _, y, patients in known]),
        negative_patients=np.array([np.unique(patients[y == 0]).size for _, y, patients in known]),
        confusion=confusion,
        level=settings.level,
        learnt=scored.learnt,
    )
