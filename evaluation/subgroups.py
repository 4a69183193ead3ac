"""The same model on different people: groups by a column of the labels, their figures, the gap between them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError
from evaluation.bootstrap import bootstrap
from evaluation.figure_table import FigureTable, correlation, drawn_figures, figure_table
from evaluation.records import Gap, GroupResults, SubgroupResults
from evaluation.scored_split import BootstrapSettings, Floats, ScoredSplit
from utils.intervals import Interval, combined_interval

Rows = NDArray[np.bool_]

FIGURES = ("auroc", "sensitivity", "specificity")
UNKNOWN = "unknown"
AGE_STARTS = (0, 18, 40, 65)
# NIH's tables hold ages of up to 414 years, which are typing errors.
OLDEST = 120
UNITS_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
MOST_VALUES = 20
# Numbers with at most so many distinct values are codes; others go into quarters.
FEW_NUMBERS = 6
QUARTERS = 4
# A gap is between groups of at least so many patients, over classes with so many positives and negatives in both.
FEWEST_PATIENTS, FEWEST_EACH = 20, 5
NO_GAP = (
    f"no gap: it needs two groups of at least {FEWEST_PATIENTS} patients with a class of at least {FEWEST_EACH} "
    "positives and negatives in both"
)


def group_rows(column: str, values: Sequence[str]) -> dict[str, Rows]:
    """The groups that a column makes: name → bool [N], in the order they are shown in; each image is in one.

    values: N texts; empty ones are 'unknown', which comes last. A column whose name ends in 'age' goes into bands,
    0–17, 18–39, 40–64, 65+, with DICOM's 058Y and 006M read too and ages above 120 unknown. Other numbers go into
    quarters of about as many images each where there are more than six distinct ones. All else is taken as it is.
    Raises ConfigError where a column has more than 20 different texts.
    """
    texts = np.array([value.strip() for value in values], dtype=object)
    if column.strip().lower().endswith("age"):
        return _bands(np.array([_years(text) for text in texts], np.float64), AGE_STARTS)
    numbers = _numbers(texts)
    if numbers is not None and np.unique(numbers[~np.isnan(numbers)]).size > FEW_NUMBERS:
        return _quarters(numbers)
    names = sorted({text for text in texts if text}, key=_natural)
    if len(names) > MOST_VALUES:
        raise ConfigError(
            f"subgroups by {column!r}: it has {len(names)} different values, at most {MOST_VALUES} make groups; "
            "choose a coarser column"
        )
    return _with_unknown({name: texts == name for name in names}, texts == "")


def _years(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text.upper())
    years = float(match[1]) / UNITS_PER_YEAR[match[2] or "Y"] if match else math.nan
    return years if years <= OLDEST else math.nan


def _numbers(texts: np.ndarray) -> Floats | None:
    """All as numbers, nan where empty; None if one is none."""
    try:
        numbers = np.array([float(text) if text else math.nan for text in texts], np.float64)
    except ValueError:
        return None
    return None if np.isinf(numbers).any() else numbers


def _natural(text: str) -> tuple[int, float, str]:
    """Numbers by size, before words by letter."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _bands(numbers: Floats, starts: Sequence[float]) -> dict[str, Rows]:
    ends = [*starts[1:], math.inf]
    names = [f"{low:g}–{high - 1:g}" if math.isfinite(high) else f"{low:g}+" for low, high in zip(starts, ends)]
    found = {name: (numbers >= low) & (numbers < high) for name, low, high in zip(names, starts, ends)}
    return _with_unknown({name: rows for name, rows in found.items() if rows.any()}, np.isnan(numbers))


def _quarters(numbers: Floats) -> dict[str, Rows]:
    known = numbers[~np.isnan(numbers)]
    edges = np.unique(np.quantile(known, np.arange(1, QUARTERS) / QUARTERS))
    position = np.searchsorted(edges, numbers, side="left")
    found = {}
    for i in range(edges.size + 1):
        rows = (position == i) & ~np.isnan(numbers)
        if rows.any():
            found[f"{numbers[rows].min():g} to {numbers[rows].max():g}"] = rows
    return _with_unknown(found, np.isnan(numbers))


def _with_unknown(groups: dict[str, Rows], unknown: Rows) -> dict[str, Rows]:
    if not unknown.any():
        return groups
    return {**groups, UNKNOWN: groups[UNKNOWN] | unknown if UNKNOWN in groups else unknown}


def subgroup_figures(
    scored: ScoredSplit, thresholds: Floats, column: str, values: Sequence[str], settings: BootstrapSettings
) -> SubgroupResults:
    """Counts, AUROC, sensitivity and specificity of each group, and the gap: plain values for JSON.

    thresholds: [K], those of everyone. The draws are of patients of the whole split, so that a patient with images in
    two groups is drawn for both. The gap: see `_gap`.
    """
    groups = group_rows(column, values)
    parts = [scored.only(rows) for rows in groups.values()]
    figures = [drawn_figures(part, thresholds, FIGURES) for part in parts]
    drawn = iter(bootstrap([one for group in figures for one in group], scored.cluster_count, settings))
    tables = [
        figure_table(part, thresholds, [next(drawn) for _ in group], settings) for part, group in zip(parts, figures)
    ]
    patients = [np.unique(scored.clusters[rows]).size for rows in groups.values()]
    usable = [size >= FEWEST_PATIENTS and name != UNKNOWN for name, size in zip(groups, patients)]
    gap = _gap({name: t for name, t, use in zip(groups, tables, usable) if use}, scored.class_names, settings.level)
    found: list[GroupResults] = [
        {
            "name": name,
            "images": int(rows.sum()),
            "patients": size,
            "used_for_gap": use,
            "classes": [{"name": label, **table.row(k, FIGURES)} for k, label in enumerate(scored.class_names)],
            "mean": table.mean_row(FIGURES),
        }
        for (name, rows), size, use, table in zip(groups.items(), patients, usable, tables)
    ]
    return {"column": column, "groups": found, "gap": gap, "note": "" if gap else NO_GAP}


def _gap(tables: dict[str, FigureTable], class_names: Sequence[str], level: float) -> Gap | None:
    """The widest difference of two groups' mean AUROC over the classes that both have enough of; None without a pair.

    As the pair was chosen for its width, the gap is biased upwards where groups are many or small. The interval is for
    that: its level is that of one of all the pairs (Bonferroni).
    """
    widest: tuple[float, str, str, np.ndarray] | None = None
    pairs = 0
    for (a, first), (b, second) in combinations(tables.items(), 2):
        classes = _enough(first) & _enough(second)
        if not classes.any():
            continue
        pairs += 1
        mine, theirs = (float(np.mean(table.values["auroc"][classes])) for table in (first, second))
        best, worst = (a, b) if mine >= theirs else (b, a)
        if widest is None or abs(mine - theirs) > widest[0]:
            widest = abs(mine - theirs), best, worst, classes
    if widest is None:
        return None
    _, best, worst, classes = widest
    interval = _gap_interval(tables[best], tables[worst], np.flatnonzero(classes), 1 - (1 - level) / pairs)
    names = [name for name, used in zip(class_names, classes) if used]
    return {"best": best, "worst": worst, "classes": names, "auroc": interval.as_dict()}


def _gap_interval(best: FigureTable, worst: FigureTable, classes: np.ndarray, level: float) -> Interval:
    parts = [table.classes[k].auroc(level) for table in (best, worst) for k in classes]
    weights = np.repeat([1 / classes.size, -1 / classes.size], classes.size)
    draws = np.concatenate([table.draws["auroc"][classes] for table in (best, worst)])
    found = combined_interval(parts, weights, correlation(draws))
    return Interval(found.value, max(found.low, -1.0), min(found.high, 1.0))


def _enough(table: FigureTable) -> np.ndarray:
    return (table.positives >= FEWEST_EACH) & (table.negatives >= FEWEST_EACH)
