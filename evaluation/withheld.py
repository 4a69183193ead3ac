"""What an input brings: the same model with it and without it, on the same studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import bootstrap
from evaluation.figure_table import FigureTable, correlation, drawn_figures, figure_table
from evaluation.records import PairedMean, WithheldResults
from evaluation.results import compare_scores
from evaluation.scored_split import BootstrapSettings, Floats, ScoredSplit
from utils.intervals import Interval, combined_interval, plain

# Means that are compared beside AUROC, which DeLong's test is about.
FIGURES = ("average_precision", "brier")


def compare_withheld(
    scored: ScoredSplit,
    other: Floats,
    left: NDArray[np.bool_],
    name: str,
    having: NDArray[np.bool_],
    settings: BootstrapSettings,
) -> WithheldResults:
    """With an input minus without it, over the studies that could be scored without it.

    other: the probabilities without it, float64 [N, K]; read where `left`, bool [N], says that something else was left.
    having: the studies that have it, bool [N]; the others are given the same either way.
    """
    part, there = scored.only(left), bool((having & left).any())
    second = np.where(left[:, None], other, part.probabilities)
    return {
        "input": name,
        "studies": int(left.sum()),
        "studies_with_it": int((having & left).sum()),
        "left_out": int((~left).sum()),
        "comparison": compare_scores(part, second, f"without {name}", settings) if there else None,
        "means": _paired_means(part, part.of_other(second), settings) if there else {},
    }


def _paired_means(scored: ScoredSplit, second: ScoredSplit, settings: BootstrapSettings) -> dict[str, PairedMean]:
    thresholds = np.full(len(scored.class_names), np.nan)
    figures = [drawn_figures(one, thresholds, FIGURES) for one in (scored, second)]
    drawn = iter(bootstrap([one for group in figures for one in group], scored.cluster_count, settings))
    mine, theirs = (
        figure_table(one, thresholds, [next(drawn) for _ in group], settings)
        for one, group in zip((scored, second), figures)
    )
    return {name: _paired_mean(mine, theirs, name) for name in FIGURES}


def _paired_mean(mine: FigureTable, theirs: FigureTable, name: str) -> PairedMean:
    """Its interval is made of the classes' own, with the correlation of their draws, which are of the same patients."""
    chosen = np.flatnonzero(mine.averaged(name) & theirs.averaged(name))
    if not chosen.size:
        return {"defined_classes": 0, "value": None, "other_value": None, "difference": Interval(np.nan).as_dict()}
    values = [float(np.mean(table.values[name][chosen])) for table in (mine, theirs)]
    parts = [table.interval(name, int(k)) for table in (mine, theirs) for k in chosen]
    difference = Interval(values[0] - values[1])
    if all(part.defined for part in parts):
        weights = np.repeat([1 / chosen.size, -1 / chosen.size], chosen.size)
        draws = np.concatenate([table.draws[name][chosen] for table in (mine, theirs)])
        found = combined_interval(parts, weights, correlation(draws))
        difference = Interval(difference.value, max(found.low, -1.0), min(found.high, 1.0))
    return {
        "defined_classes": int(chosen.size),
        "value": plain(values[0]),
        "other_value": plain(values[1]),
        "difference": difference.as_dict(),
    }


def withheld_notes(results: Sequence[WithheldResults]) -> list[str]:
    """What is to be said of studies that an input was the whole of, or that have none of it."""
    found = []
    for one in results:
        if not one["studies_with_it"]:
            found.append(f"'{one['input']}' is missing for all studies: every figure is without it.")
        if one["left_out"]:
            found.append(
                f"{one['left_out']:,} studies have nothing but '{one['input']}' and are left out of what it brings."
            )
    return found
