"""The same model on different people: groups by a column of the labels, their figures, the gap between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError
from evaluation.bootstrap import bootstrap
from evaluation.figure_table import FigureTable, correlation, drawn_figures, figure_table
from evaluation.group_values import is_age_column, joined_texts, read_ages, read_numbers
from evaluation.records import Gap, GroupResults, SubgroupResults
from evaluation.scored_split import BootstrapSettings, Floats, ScoredSplit
from utils.intervals import Interval, combined_interval

Rows = NDArray[np.bool_]

FIGURES = ("auroc", "sensitivity", "specificity")
UNKNOWN = "unknown"
AGE_STARTS = (0, 18, 40, 65)
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

    values: N texts. Words for 'missing' are 'unknown', which comes last. A column of ages goes into bands, 0–17, 18–39,
    40–64, 65+ (see `read_ages`), those above 120 are unknown. Other numbers go into quarters of about as many images
    each where there are more than six distinct ones. All else is taken as it is, spellings of a value as one (see
    `joined_texts`).
    Raises ConfigError where a column has more than 20 different texts.
    """
    return _groups(column, values)[0]


def _groups(column: str, values: Sequence[str]) -> tuple[dict[str, Rows], list[str]]:
    """(`group_rows`, what was joined or could not be read, in words)."""
    ages = read_ages(values) if is_age_column(column) else None
    if ages is not None:
        return _bands(ages[0], AGE_STARTS), ages[1]
    numbers = read_numbers(values)
    if numbers is not None and np.unique(numbers[~np.isnan(numbers)]).size > FEW_NUMBERS:
        return _quarters(numbers), []
    texts, notes = joined_texts(column, values)
    if numbers is not None:  # '1' and '1.0' are one code
        texts = np.array(["" if math.isnan(number) else f"{number:g}" for number in numbers], dtype=object)
    names = sorted({text for text in texts if text}, key=_natural)
    if len(names) > MOST_VALUES:
        raise ConfigError(
            f"subgroups by {column!r}: it has {len(names)} different values, at most {MOST_VALUES} make groups; "
            "choose a coarser column"
        )
    return _with_unknown({name: texts == name for name in names}, texts == ""), notes


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
    groups, spellings = _groups(column, values)
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
    return {"column": column, "groups": found, "gap": gap, "note": "" if gap else NO_GAP, "spellings": spellings}


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
