"""The figure of a split's Shapley values: how far each column and view moves the output in each study (beeswarm)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from explain.figure_labels import class_title, figure_title, row_names
from explain.shapley import Bools, Floats
from explain.waterfall import UNIT
from utils.figures import BLUE, GREY, ORANGE, caption, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

# Rows of a figure; of more, the strongest.
MAX_ROWS = 20
ROW_INCHES = 0.35
# From the lowest value to the highest.
COLOURS = (BLUE, "#C4B5A8", ORANGE)


def summary_figure(
    names: Sequence[str],
    values: Floats,
    attributions: Floats,
    playing: Bools,
    *,
    class_name: str,
    title: str = "",
    unit: str = UNIT,
) -> Figure:
    """A row per column or view, a dot per study that has it: how far it moves the output, coloured by its value.

    names: P. values: [N, P], nan where a value has no size (a view, a category), drawn grey; colours go by rank within
    the row. attributions [N, P]; playing: bool [N, P], others get no dot. Rows by their mean |attribution| over all
    N studies, at most MAX_ROWS; on the right, that mean and in how many studies it is known.
    """
    phi = np.where(playing, np.asarray(attributions, np.float64), 0.0)
    strength = np.abs(phi).mean(axis=0) if len(phi) else np.zeros(len(names))
    order = np.argsort(-strength, kind="stable")[:MAX_ROWS]
    figure = new_figure(8.0, ROW_INCHES * max(len(order), 2) + 2.0)
    axes = figure.subplots()
    noun = "study" if len(phi) == 1 else "studies"
    more = f"; the {len(order)} strongest of {len(names)}" if len(order) < len(names) else ""
    lines = [class_title(class_name), f"what columns and views add in {len(phi):,} {noun}{more}", figure_title(title)]
    caption(figure, [line for line in lines if line], 0, 0)
    if not playing.any():
        say(axes, "no study has a value or a view that could change anything")
        return figure
    labels = row_names(names)
    for y, i in enumerate(order[::-1]):
        _draw_swarm(axes, y, values[playing[:, i], i], phi[playing[:, i], i], float(np.abs(phi).max()))
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=0)
    axes.set_yticks(range(len(order)), [labels[i] for i in order[::-1]], fontsize=8, parse_math=False)
    numbers = axes.secondary_yaxis("right")
    texts = [f"{_two_digits(strength[i])} · {int(playing[:, i].sum()):,}" for i in order[::-1]]
    numbers.set_yticks(range(len(order)), texts, fontsize=8)
    numbers.tick_params(length=0)
    numbers.spines["right"].set_visible(False)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.margins(x=0.05)
    axes.set_title("mean |φ| · in so many studies", loc="right", fontsize=8)
    axes.set_xlabel(f"moves the {unit} by", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    tidy(axes)
    if (playing & ~np.isnan(values)).any():
        _colour_bar(figure, axes)
    return figure


def _two_digits(value: float) -> str:
    return "0" if not value else f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def _draw_swarm(axes: Axes, y: float, values: Floats, phi: Floats, largest: float) -> None:
    """Dots of one row: those that would lie on one another are spread up and down."""
    offsets = _spread(phi, largest)
    sized = ~np.isnan(values)
    size = 14 if len(phi) <= 200 else 6
    axes.scatter(phi[~sized], y + offsets[~sized], s=size, color=GREY, linewidth=0, alpha=0.8)
    ranks = _rank_fraction(values[sized])
    axes.scatter(
        phi[sized], y + offsets[sized], s=size, c=ranks, cmap=_colours(), vmin=0, vmax=1, linewidth=0, alpha=0.9
    )


def _spread(phi: Floats, largest: float) -> Floats:
    """Offsets within ±0.38: alternately above and below, farther the more dots share a hundredth of the width."""
    bins = np.round(phi / (largest or 1.0) * 50).astype(int)
    offsets = np.zeros(len(phi))
    fullest = max(np.unique(bins, return_counts=True)[1].max(initial=1), 8)
    for one in np.unique(bins):
        inside = np.flatnonzero(bins == one)
        steps = (np.arange(len(inside)) + 1) // 2 * np.where(np.arange(len(inside)) % 2, 1, -1)
        offsets[inside] = steps * (0.76 / fullest)
    return offsets


def _rank_fraction(values: Floats) -> Floats:
    """Mean ranks from 0 to 1, 0.5 where all are alike: one outlier does not take the colours of all others."""
    ranks = rankdata(values)
    low, high = (float(ranks.min()), float(ranks.max())) if len(ranks) else (0.0, 0.0)
    return (ranks - low) / (high - low) if high > low else np.full(len(ranks), 0.5)


def _colours() -> LinearSegmentedColormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("low to high", COLOURS)


def _colour_bar(figure: Figure, axes: Axes) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(cmap=_colours()), ax=axes, location="bottom", fraction=0.03, aspect=60, pad=0.02
    )
    bar.set_ticks([0, 1], labels=["lowest", "highest"], fontsize=8)
    bar.set_label("value within its row; grey: a category or a view", fontsize=8)
