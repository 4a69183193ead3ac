"""Images of figures with their intervals, one below the other: classes, and the groups of a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluation.records import Results, SubgroupResults
from utils.figures import BLUE, GREY, ORANGE, caption, new_figure, tidy
from utils.fonts import display_names
from utils.intervals import IntervalRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = tuple[str, IntervalRecord]

LONGEST = 40


def classes_figure(results: Results) -> Figure:
    """AUROC of each class with its interval, and their mean; results: as `evaluate_scores` gives them."""
    classes = results["classes"]
    names = display_names([one["name"] for one in classes], LONGEST)
    rows: list[Row] = [
        (f"{name} ({one['positives']:,}{'' if one['positive_in_training'] else ', none in training'})", figure)
        for name, one in zip(names, classes)
        for figure in (one["figures"]["auroc"],)
    ]
    mean = results["mean"]
    rows.append((f"mean of {mean['defined_classes']}", mean["figures"]["auroc"]))
    figure = new_figure(7.5, 1.0 + 0.26 * len(rows))
    axes = figure.subplots()
    draw_forest(axes, rows, last_is_mean=True)
    axes.set_xlabel("AUROC")
    level = results["interval"]["level"]
    lines = [f"AUROC on {results['split']} with {level:.0%} intervals; in brackets the positives"]
    caption(figure, lines, len(rows), len(rows))
    return figure


def subgroups_figure(subgroup: SubgroupResults, level: float) -> Figure:
    """Mean AUROC of each group of one column, with its interval."""
    names = display_names([one["name"] for one in subgroup["groups"]], LONGEST)
    rows: list[Row] = [
        (f"{name} ({one['images']:,})", one["mean"]["figures"]["auroc"]) for name, one in zip(names, subgroup["groups"])
    ]
    figure = new_figure(7.5, 1.2 + 0.3 * len(rows))
    axes = figure.subplots()
    draw_forest(axes, rows)
    axes.set_xlabel("mean AUROC")
    lines = [f"Mean AUROC by {subgroup['column']} with {level:.0%} intervals; in brackets the images"]
    caption(figure, lines, len(rows), len(rows))
    return figure


def draw_forest(axes: Axes, rows: Sequence[Row], last_is_mean: bool = False) -> None:
    """One dot and interval per row, the first on top; undefined figures are labelled as such."""
    # A mean's record also says over how many classes it is.
    defined = [end for _, one in rows for end in (one["value"], one["low"], one["high"]) if end is not None]
    left = min([0.5, *defined]) - 0.02
    for position, (_, figure) in enumerate(rows):
        value, low, high = figure["value"], figure["low"], figure["high"]
        if value is None or math.isnan(value):
            axes.text(0.51, position, "undefined", color=GREY, fontsize=8, va="center")
            continue
        colour = ORANGE if last_is_mean and position == len(rows) - 1 else BLUE
        if low is not None and high is not None:
            axes.plot([low, high], [position, position], color=colour, linewidth=1.6)
        axes.plot(value, position, "o", color=colour, markersize=5)
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlim(left, 1.01)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8, parse_math=False)
    tidy(axes)
    axes.grid(visible=False, axis="y")
