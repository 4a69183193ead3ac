"""Images of what probabilities are worth: reliability diagrams, and how scores of positives and negatives lie.

Functions from a ScoredSplit to a Figure; utils.figures writes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluation.curves import probability_histogram
from evaluation.plots import ranking
from evaluation.reliability import expected_calibration_error, reliability_bins
from evaluation.scored_split import ScoredSplit
from utils.figures import (
    BLUE,
    GREY,
    ORANGE,
    TITLE_LETTERS,
    caption,
    panel_figure,
    panel_title,
    panels_to_show,
    say_undefined,
    tidy,
    unit_square,
    unit_ticks,
)
from utils.fonts import display_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 5


def calibration_figure(split: ScoredSplit, before: NDArray[np.float64] | None = None) -> Figure:
    """A reliability diagram per class: the share of positives in each of 15 bins of probability, with intervals.

    Bins of fewer than 5 images are faint.
    before: uncalibrated probabilities [N, K] of the same images, drawn beside, where split's are calibrated.
    """
    metrics = ranking(split)
    displayed = panels_to_show([one.positives for one in metrics.per_class])
    figure, panels = panel_figure(len(displayed))
    names = display_names([split.label(k) for k in range(len(split.class_names))], TITLE_LETTERS)
    for axes, k in zip(panels, displayed):
        one = metrics.per_class[k]
        scores, labels, patients = split.known(k)
        old = None if before is None else before[split.mask[:, k], k]
        panel_title(axes, names[k], _errors(scores, labels, old), one.count)
        unit_square(axes)
        if labels.size:
            _draw_reliability(axes, scores, labels, patients, old)
        else:
            say_undefined(axes, 0, 0)
    what = "" if before is None else "; blue dots after calibration, orange crosses before"
    title = f"Reliability on {split.split}{what}; faint: fewer than {FEW} images in the bin"
    caption(figure, [title], len(displayed), len(metrics.per_class))
    figure.supxlabel("mean probability in the bin", fontsize=9)
    figure.supylabel("share of positives in the bin", fontsize=9)
    return figure


def histogram_figure(split: ScoredSplit, thresholds: Sequence[float]) -> Figure:
    """How the probabilities of positives and of negatives lie, each as shares of its own kind, with the threshold."""
    metrics = ranking(split)
    displayed = panels_to_show([one.positives for one in metrics.per_class])
    figure, panels = panel_figure(len(displayed))
    names = display_names([split.label(k) for k in range(len(split.class_names))], TITLE_LETTERS)
    for axes, k in zip(panels, displayed):
        one = metrics.per_class[k]
        scores, labels, _ = split.known(k)
        panel_title(axes, names[k], one.count)
        axes.set_box_aspect(1)
        if labels.size:
            _draw_histogram(axes, scores, labels, thresholds[k])
        else:
            say_undefined(axes, 0, 0)
    title = f"Probabilities on {split.split}: positives orange, negatives blue, the threshold dashed"
    caption(figure, [title], len(displayed), len(metrics.per_class))
    figure.supxlabel("probability", fontsize=9)
    figure.supylabel("share of the positives, of the negatives", fontsize=9)
    return figure


def _errors(scores: np.ndarray, labels: np.ndarray, old: np.ndarray | None) -> str:
    """The ECE, and the one before calibration."""
    after = expected_calibration_error(scores, labels)
    if math.isnan(after):
        return "ECE –"
    return f"ECE {after:.3f}" if old is None else f"ECE {expected_calibration_error(old, labels):.3f} → {after:.3f}"


def _draw_reliability(
    axes: Axes, scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, old: np.ndarray | None
) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    if old is not None:
        for one in reliability_bins(old, labels):
            x, y, alpha = one.confidence, one.frequency.value, _opacity(one.count)
            axes.plot(x, y, "x", color=ORANGE, alpha=alpha, markersize=5, markeredgewidth=1.2, zorder=3)
    for one in reliability_bins(scores, labels, patients=patients):
        x, y, alpha = one.confidence, one.frequency.value, _opacity(one.count)
        axes.plot([x, x], [one.frequency.low, one.frequency.high], color=BLUE, linewidth=1, alpha=alpha, zorder=4)
        axes.plot(x, y, "o", color=BLUE, markersize=4, alpha=alpha, zorder=4)
    unit_ticks(axes)


def _opacity(count: int) -> float:
    """Bins of a few images are shown, as they are in the ECE, but not so that they catch the eye."""
    return 1.0 if count >= FEW else 0.25


def _draw_histogram(axes: Axes, scores: np.ndarray, labels: np.ndarray, threshold: float) -> None:
    for present, colour in ((0, BLUE), (1, ORANGE)):
        of_kind = scores[labels == present]
        if of_kind.size:
            counts, edges = probability_histogram(of_kind)
            fractions = counts / of_kind.size
            axes.stairs(fractions, edges, color=colour, fill=True, alpha=0.35)
            axes.stairs(fractions, edges, color=colour, linewidth=1.2)
    if not math.isnan(threshold):
        axes.axvline(threshold, color=GREY, linewidth=1.0, linestyle="--")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(bottom=0)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.locator_params(axis="y", nbins=3)
    tidy(axes)
