"""Images of how well a split is ranked and sorted: ROC and precision-recall curves, confusion matrices.

Functions from a ScoredSplit to a Figure; utils.figures writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluation.curves import confusion_matrix
from evaluation.operating_points import threshold_figures
from evaluation.scored_split import ScoredSplit
from utils.figures import (
    BLUE,
    GREY,
    ORANGE,
    TITLE_LETTERS,
    caption,
    new_figure,
    panel_figure,
    panel_title,
    panels_to_show,
    say_undefined,
    unit_square,
    unit_ticks,
)
from utils.fonts import display_names
from utils.metrics import ClassMetrics, Metrics, classification_metrics, precision_recall_curve
from utils.runs.plots import roc_curves_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond so many classes the counts in a square matrix cannot be read.
MAX_MATRIX = 30


def roc_figure(split: ScoredSplit, thresholds: Sequence[float]) -> Figure:
    """A ROC panel per class, with a dot at the operating point. thresholds: K, nan where there is none."""
    metrics = ranking(split)
    rates = threshold_figures(split.confusion(thresholds))
    points = list(zip((1 - rates["specificity"]).tolist(), rates["sensitivity"].tolist()))
    title = f"ROC curves on {split.split}; the dot is {_operating_point(split)}"
    return roc_curves_figure(split.probabilities, split.targets, split.mask, metrics, title, points)


def precision_recall_figure(split: ScoredSplit, thresholds: Sequence[float]) -> Figure:
    """A precision-recall panel per class, with a dot at the operating point and the prevalence as a dashed line."""
    metrics = ranking(split)
    rates = threshold_figures(split.confusion(thresholds))
    displayed = panels_to_show([one.positives for one in metrics.per_class])
    figure, panels = panel_figure(len(displayed))
    names = display_names([split.label(k) for k in range(len(split.class_names))], TITLE_LETTERS)
    for axes, k in zip(panels, displayed):
        one = metrics.per_class[k]
        _draw_precision_recall(axes, names[k], *split.known(k)[:2], one)
        if one.defined:
            axes.plot(
                rates["sensitivity"][k], rates["ppv"][k], "o", color=ORANGE, markersize=6, zorder=5, clip_on=False
            )
    mean = "–" if not metrics.defined_classes else f"{metrics.mean_average_precision:.3f}"
    title = f"Precision-recall curves on {split.split}; the dot is {_operating_point(split)}, the dashes the prevalence"
    count = f"over {metrics.defined_classes} of {len(metrics.per_class)} {_classes(len(metrics.per_class))}"
    caption(figure, [title, f"mean average precision {mean} {count}"], len(displayed), len(metrics.per_class))
    figure.supxlabel("recall (sensitivity)", fontsize=9)
    figure.supylabel("precision (positive predictive value)", fontsize=9)
    return figure


def confusion_figure(split: ScoredSplit, thresholds: Sequence[float]) -> Figure:
    """Counts at the thresholds: two by two per class, or all exclusive classes against each other.

    Exclusive classes: the predicted class is the most probable one, thresholds play no part; rows that are not wholly
    known are left out. Of two with a positive one it is two by two, at its threshold. Of more than 30 the counts are
    not written.
    """
    if split.exclusive:
        return _matrix_figure(split)
    counts = split.confusion(thresholds)
    positives = [int((np.asarray(split.targets)[split.mask[:, k], k] == 1).sum()) for k in range(counts.shape[1])]
    displayed = panels_to_show(positives)
    figure, panels = panel_figure(len(displayed), height=2.9)
    names = display_names([split.label(k) for k in range(len(split.class_names))], TITLE_LETTERS)
    for axes, k in zip(panels, displayed):
        panel_title(axes, names[k], "threshold –" if np.isnan(thresholds[k]) else f"threshold {thresholds[k]:.3g}")
        sides = (split.other_class, split.class_names[k]) if split.other_class else ("absent", "present")
        _draw_two_by_two(axes, counts[:, k], positives[k], int(split.mask[:, k].sum()) - positives[k], sides)
    title = f"Confusion matrices on {split.split}: images, and their share of the row"
    caption(figure, [title], len(displayed), len(positives))
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("label", fontsize=9)
    return figure


def ranking(split: ScoredSplit) -> Metrics:
    """AUROC and average precision of each class over its known labels."""
    return classification_metrics(split.probabilities, split.targets, split.mask, split.class_names, split.not_learnt)


def _operating_point(split: ScoredSplit) -> str:
    """A class that is called as the most probable one has no threshold: its dot need not lie on its curve."""
    return "what the most probable class gives" if split.exclusive else "the operating point"


def _classes(count: int) -> str:
    return "class" if count == 1 else "classes"


def _draw_precision_recall(axes: Axes, name: str, scores: np.ndarray, labels: np.ndarray, one: ClassMetrics) -> None:
    total = one.positives + one.negatives
    figure = f"AP {one.average_precision:.3f}" if one.defined else "AP –"
    panel_title(axes, name, figure, one.count)
    unit_square(axes)
    if not one.defined:
        say_undefined(axes, one.positives, one.negatives)
        return
    precision, recall, _ = precision_recall_curve(scores, labels)
    axes.axhline(one.positives / total, color=GREY, linewidth=0.8, linestyle="--")
    # Average precision is the area under these steps; straight lines between the points would promise more. The last
    # point, precision 1 at recall 0, is a convention: the first step is extended to it.
    axes.step(recall, [*precision[:-1], precision[-2]], where="post", color=BLUE, linewidth=1.6)
    unit_ticks(axes)


def _draw_two_by_two(axes: Axes, counts: np.ndarray, positives: int, negatives: int, names: tuple[str, str]) -> None:
    """counts: [4], true and false positives, true and false negatives. names: of the negative and the positive."""
    if np.isnan(counts).any() or not positives + negatives:
        unit_square(axes)
        if positives + negatives:
            axes.text(0.5, 0.5, "no threshold", ha="center", va="center", color=GREY)
            axes.set_xticks([])
            axes.set_yticks([])
        else:
            say_undefined(axes, positives, negatives)
        return
    tp, fp, tn, fn = counts
    _draw_counts(axes, np.array([[tn, fp], [fn, tp]]), 10)
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks([0, 1], display_names(names, 24), fontsize=8, parse_math=False)
    for label in axes.get_yticklabels():
        label.set(rotation=90, va="center")


def _draw_counts(axes: Axes, counts: np.ndarray, font_size: float) -> None:
    """counts: [R, C]; each cell is as dark as its share of its row."""
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.zeros_like(counts, np.float64), where=totals > 0)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.spines[:].set_visible(False)
    if not font_size:
        return
    for (row, column), count in np.ndenumerate(counts):
        fraction = f"\n{fractions[row, column]:.0%}" if totals[row, 0] else ""
        colour = "white" if fractions[row, column] > 0.55 else "black"
        text = f"{int(count):,}{fraction}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font_size)


def _matrix_figure(split: ScoredSplit) -> Figure:
    counts = confusion_matrix(split)
    classes = len(counts)
    side = max(4.5, min(0.75 * classes, 14.0) + 2.5)
    figure = new_figure(side, side)
    axes = figure.subplots()
    _draw_counts(axes, counts, 0 if classes > MAX_MATRIX else 9 if classes <= 10 else 7)
    names = display_names([split.label(k) for k in range(classes)], 24)
    axes.set_xticks(range(classes), names, rotation=90 if classes > 4 else 0, fontsize=8, parse_math=False)
    axes.set_yticks(range(classes), names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted: the most probable class")
    axes.set_ylabel("label")
    right = int(np.trace(counts))
    accuracy = f"{right:,} of {int(counts.sum()):,} right ({right / counts.sum():.1%})" if counts.sum() else "no labels"
    caption(figure, [f"Confusion matrix on {split.split}", accuracy], classes, classes)
    return figure
