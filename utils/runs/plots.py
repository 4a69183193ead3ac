"""Images of a training run and of its ROC curves, as PNG files for people.

Each plot is a function that builds a Figure and one that writes it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from configs.best_by import MEAN_AUROC, MEAN_AVERAGE_PRECISION, NAMES, VAL_LOSS
from utils.best_metric import best_row, figure_of, score_of, title_of
from utils.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    TITLE_LETTERS,
    caption,
    new_figure,
    panel_figure,
    panel_title,
    panels_to_show,
    say,
    say_undefined,
    tidy,
    unit_square,
    unit_ticks,
    write_figure,
)
from utils.fonts import display_names
from utils.listener import FileContent
from utils.metrics import ClassMetrics, Metrics, roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[FileContent]


def plot_training_curves(history: History, path: str | os.PathLike[str], best_by: str = MEAN_AUROC) -> None:
    """Write `training_curves_figure(…)` to path, atomically; ValueError for an empty history."""
    write_figure(training_curves_figure(history, best_by), path)


def plot_roc_curves(
    scores: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    metrics: Metrics,
    path: str | os.PathLike[str],
    title: str = "ROC curves",
) -> None:
    """Write `roc_curves_figure(...)` to path, atomically."""
    write_figure(roc_curves_figure(scores, targets, mask, metrics, title), path)


def training_curves_figure(history: History, best_by: str = MEAN_AUROC) -> Figure:
    """Three panels over the epochs: losses, mean validation AUROC and AP, learning rate.

    history: one mapping an epoch with 'epoch', and any of 'train_loss', 'val_loss', 'mean_auroc',
    'mean_average_precision', 'learning_rate'; a value that is missing, None or not finite is no point.
    The best epoch is the first one that is best by best_by, see utils/best_metric.py; a class has a curve of its own.
    Raises ValueError for an empty history.
    """
    if not history:
        raise ValueError("the history is empty: there is no epoch to plot")
    figure = new_figure(13.5, 4.0)
    loss, ranking, rate = figure.subplots(1, 3)
    _draw_panel(loss, history, "Loss", {"train_loss": "training", "val_loss": "validation"})
    names = {"mean_auroc": "mean AUROC", "mean_average_precision": "mean AP"}
    if best_by not in NAMES:
        names[best_by] = display_names([title_of(best_by)], TITLE_LETTERS)[0]
        history = [{**row, best_by: figure_of(row, best_by)} for row in history]
    _draw_panel(ranking, history, "Validation AUROC and average precision", names)
    _mark_best_epoch(loss if best_by == VAL_LOSS else ranking, history, best_by)
    _draw_panel(rate, history, "Learning rate", {"learning_rate": "learning rate"})
    if rate.lines:
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axes in (loss, ranking):
        if axes.lines:
            # Below the axis it can never lie on a curve.
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=9, frameon=False)
    return figure


def _points(history: History, key: str) -> tuple[list[int], list[float]]:
    """Epochs and values of the rows that have a finite value of the key."""
    rows = [(int(row["epoch"]), row.get(key)) for row in history]
    kept = [(epoch, float(value)) for epoch, value in rows if value is not None and math.isfinite(value)]
    return [epoch for epoch, _ in kept], [value for _, value in kept]


def _draw_panel(axes: Axes, history: History, title: str, series: Mapping[str, str]) -> None:
    """One line per key of series, which maps keys of the history to legend labels."""
    from matplotlib.ticker import MaxNLocator

    # Lines differ in dashes and markers too, for readers and printers that have no colours.
    styles = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREY, "-.", "^"))
    for (key, label), (colour, dashes, marker) in zip(series.items(), styles):
        epochs, values = _points(history, key)
        if epochs:
            displayed = marker if len(epochs) <= 40 else ""
            axes.plot(epochs, values, color=colour, linestyle=dashes, marker=displayed, markersize=4, label=label)
    axes.set_title(title)
    if not axes.lines:
        say(axes, "no values")
        return
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    tidy(axes)


def _mark_best_epoch(axes: Axes, history: History, best_by: str) -> None:
    best = best_row(history, best_by)
    if best is None:
        return
    epoch, value = int(best["epoch"]), abs(score_of(best, best_by))
    figure = {VAL_LOSS: "loss"}.get(best_by, "AP" if best_by == MEAN_AVERAGE_PRECISION else "AUROC")
    axes.axvline(epoch, color=GREY, linewidth=1.0, linestyle=":", zorder=1)
    label = f"best epoch {epoch}: {figure} {value:.3f}"
    axes.plot(epoch, value, "*", color=GREEN, markersize=14, linestyle="", label=label, zorder=5)


def roc_curves_figure(
    scores: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    metrics: Metrics,
    title: str = "ROC curves",
    points: Sequence[tuple[float, float]] = (),
) -> Figure:
    """One small ROC panel per class, with its AUROC and its number of positives in the panel's title.

    scores [N, K], targets [N, K] of 0 and 1, mask bool [N, K]: as metrics was computed from.
    points: where the operating point of each class lies, (false positive rate, sensitivity); none where nan.
    A class without positives or negatives is labelled undefined. Of more than 20 classes, the 20 with the most
    positives are shown, in their order, as the title states.
    Raises ValueError for shapes that disagree with each other or with metrics.
    """
    score, target, known = np.asarray(scores), np.asarray(targets), np.asarray(mask, bool)
    classes = len(metrics.per_class)
    if not score.shape == target.shape == known.shape or score.ndim != 2 or score.shape[1] != classes:
        raise ValueError(
            f"scores, targets and mask must all be [N, {classes}], got {score.shape}, {target.shape}, {known.shape}"
        )
    displayed = panels_to_show([one.positives for one in metrics.per_class])
    figure, panels = panel_figure(len(displayed))
    names = display_names([one.label for one in metrics.per_class], TITLE_LETTERS)
    for axes, k in zip(panels, displayed):
        row = known[:, k]
        _draw_roc(axes, names[k], score[row, k], target[row, k], metrics.per_class[k])
        if points and metrics.per_class[k].defined:
            axes.plot(*points[k], "o", color=ORANGE, markersize=6, zorder=5, clip_on=False)
    _label_figure(figure, metrics, title, len(displayed))
    return figure


def _draw_roc(axes: Axes, name: str, scores: np.ndarray, labels: np.ndarray, one: ClassMetrics) -> None:
    figure = f"AUROC {one.auroc:.3f}" if one.defined else "AUROC –"
    panel_title(axes, name, figure, one.count)
    unit_square(axes)
    if not one.defined:
        say_undefined(axes, one.positives, one.negatives)
        return
    fpr, tpr, _ = roc_curve(scores, labels)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    axes.plot(fpr, tpr, color=BLUE, linewidth=1.6)
    unit_ticks(axes)


def _label_figure(figure: Figure, metrics: Metrics, title: str, displayed: int) -> None:
    mean = "–" if math.isnan(metrics.mean_auroc) else f"{metrics.mean_auroc:.3f}"
    total = len(metrics.per_class)
    noun = "class" if total == 1 else "classes"
    caption(figure, [title, f"mean AUROC {mean} over {metrics.defined_classes} of {total} {noun}"], displayed, total)
    figure.supxlabel("false positive rate (1 − specificity)", fontsize=9)
    figure.supylabel("true positive rate (sensitivity)", fontsize=9)
