"""The figure of one study's Shapley values: from the output without columns and views to its own, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from explain.figure_labels import class_title, figure_title, row_label, row_names, signed
from explain.shapley import Floats
from utils.figures import BLUE, GREY, ORANGE, caption, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Rows of a figure; of more, the smallest are drawn as one.
MAX_ROWS = 15
UNIT = "logit (log-odds) of the class"
ROW_INCHES = 0.3


def waterfall_figure(
    names: Sequence[str],
    cells: Sequence[str],
    attributions: Floats,
    base: float,
    *,
    class_name: str,
    title: str = "",
    standard_error: Floats | None = None,
    attention: Floats | None = None,
    unit: str = UNIT,
) -> Figure:
    """From the output without columns and views, at the bottom, to the study's own: a bar for each, the largest last.

    names, cells: of P columns and views, and their values as people wrote them, '' where missing; a cell that says what
    the name does (a view) is left out. attributions,
    standard_error: [P], the latter drawn as whiskers where it is not 0. base: the output without any of them.
    attention: [P], the model's own weights, written beside; nan where a player has none. Beyond MAX_ROWS the smallest
    are one bar, their sum.
    """
    phi = np.asarray(attributions, np.float64)
    error = np.zeros_like(phi) if standard_error is None else np.asarray(standard_error, np.float64)
    order = np.argsort(-np.abs(phi), kind="stable")
    most = order if len(order) <= MAX_ROWS else order[: MAX_ROWS - 1]
    labels = [
        shown if cell == name else row_label(shown, cell) for name, shown, cell in zip(names, row_names(names), cells)
    ]
    weights = np.full(len(phi), np.nan) if attention is None else attention
    beside = [_share(weight) if cell else "" for weight, cell in zip(weights, cells)]
    rows = [(labels[i], float(phi[i]), float(error[i]), beside[i]) for i in most]
    if len(most) < len(order):
        rest = order[len(most) :]
        together = "smaller ones together" if any(cells[i] for i in rest) else "more (missing)"
        rows.append((f"{len(rest)} {together}", float(phi[rest].sum()), 0.0, ""))
    figure = new_figure(8.0, ROW_INCHES * max(len(rows), 2) + 1.9)
    axes = figure.subplots()
    _draw_waterfall(axes, rows[::-1], base)
    axes.set_xlabel(unit, fontsize=9)
    if attention is not None:
        axes.set_title("φ · attention", loc="right", fontsize=8)
    whole, without = (f"{value:.2f}".replace("-", "−") for value in (base + phi.sum(), base))
    lines = [f"{class_title(class_name)}: {whole}; without columns and views {without} (dotted)", figure_title(title)]
    caption(figure, [line for line in lines if line], 0, 0)
    return figure


def _share(weight: float) -> str:
    return "" if np.isnan(weight) else f" · {weight:.2f}"


# Of a row: its label, its attribution, the error of that, and what stands behind the number.
Row = tuple[str, float, float, str]


def _draw_waterfall(axes: Axes, rows: Sequence[Row], base: float) -> None:
    """Rows from the bottom."""
    ends = base + np.cumsum([phi for _, phi, _, _ in rows])
    starts = np.concatenate([[base], ends[:-1]])
    for y, ((_, phi, error, _), start, end) in enumerate(zip(rows, starts, ends)):
        axes.barh(y, phi, left=start, height=0.66, color=ORANGE if phi > 0 else BLUE)
        if error > 0:
            axes.errorbar(end, y, xerr=error, color="black", linewidth=0.9, capsize=2)
        if y + 1 < len(rows):
            axes.plot([end, end], [y - 0.33, y + 1.33], color=GREY, linewidth=0.7)
    for x, style in ((base, ":"), (float(ends[-1]) if len(rows) else base, "-")):
        axes.axvline(x, color=GREY, linewidth=0.9, linestyle=style, zorder=0)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=8, parse_math=False)
    # Numbers in a column of their own lie on no bar, however short or long it is.
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(rows)), [f"{signed(phi)}{beside}" for _, phi, _, beside in rows], fontsize=8)
    for ticks, (_, phi, _, _) in zip(numbers.get_yticklabels(), rows):
        ticks.set_color(ORANGE if phi > 0 else BLUE if phi < 0 else GREY)
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.use_sticky_edges = False
    axes.margins(x=0.05)
    axes.tick_params(axis="x", labelsize=8)
    tidy(axes)
    axes.grid(visible=False, axis="y")
