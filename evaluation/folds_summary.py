"""What a cross-validation says: the pooled figures, those of folds and seeds, and which variance is which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from evaluation.records import Results
from evaluation.report import Table
from evaluation.results_table import number, with_interval
from utils.csv_cells import csv_text
from utils.intervals import UNDEFINED, Interval, IntervalRecord, combined_interval, normal_quantile, plain
from utils.text import aligned

MEAN = "mean"  # over classes, beside their names
SHOWN = ("auroc", "average_precision", "sensitivity", "specificity", "brier", "ece")
RANKING = ("auroc", "average_precision")
# Pooled AUROC below that of the folds by more than this is said before any figure.
MUCH_LOWER = 0.01


class Spread(TypedDict):
    """A figure over runs. runs: in how many it is defined. low, high: of the mean, as far as patients go."""

    mean: float | None
    sd: float | None
    least: float | None
    most: float | None
    low: float | None
    high: float | None
    runs: int


class RunRecord(TypedDict):
    """One run on the studies that it had held out. figures: class, or 'mean' over classes → figure → value, ends."""

    run: str
    fold: int
    seed: int
    patients: int
    studies: int
    best_epoch: int | None
    figures: dict[str, dict[str, IntervalRecord]]


class Pooling(TypedDict):
    """A figure of the pooled studies and the mean of the same figure within the folds; mean over the seeds."""

    pooled: float | None
    within_folds: float | None
    difference: float | None


class Variances(TypedDict):
    """Standard deviations of mean AUROC. patients: of its pooled estimate, were other patients seen by these models.
    seeds: between trainings on the same studies with another seed; None of one seed. folds: between folds, whose
    models and patients differ; folds_by_patients: how much of that the patients alone would make.
    """

    patients: float | None
    seeds: float | None
    folds: float | None
    folds_by_patients: float | None


class Summary(TypedDict):
    """summary.json, but for what the cross-validation itself is. pooled: of all seeds' mean probabilities."""

    pooled: dict[str, dict[str, IntervalRecord]]
    runs: list[RunRecord]
    over_folds: dict[str, dict[str, Spread]]
    seeds: dict[str, dict[str, dict[str, IntervalRecord]]]
    over_seeds: dict[str, dict[str, Spread]]
    pooling: dict[str, dict[str, Pooling]]
    variances: Variances


@dataclass(frozen=True)
class RunResults:
    """A run's results on what it had held out."""

    run: str
    fold: int
    seed: int
    best_epoch: int | None
    results: Results


def figures_of(results: Results) -> dict[str, dict[str, IntervalRecord]]:
    """Class, or 'mean' → figure → value and ends."""
    found = {one["name"]: dict(one["figures"]) for one in results["classes"]}
    means = results["mean"]["figures"]
    whole: dict[str, IntervalRecord] = {
        name: {"value": one["value"], "low": one["low"], "high": one["high"]} for name, one in means.items()
    }
    if results["accuracy"] is not None:
        whole["accuracy"] = results["accuracy"]
    return {**found, MEAN: whole}


def summarise(pooled: Results, runs: Sequence[RunResults], seeds: Mapping[int, Results]) -> Summary:
    """All of it. pooled: of every study once. seeds: the same of the runs of each seed alone."""
    records = [_run_record(one) for one in runs]
    level = pooled["interval"]["level"]
    of_seeds = {str(seed): figures_of(results) for seed, results in seeds.items()}
    whole = figures_of(pooled)
    rows = [(name, figure) for name, figures in whole.items() for figure in figures]
    over_folds: dict[str, dict[str, Spread]] = {name: {} for name in whole}
    over_seeds: dict[str, dict[str, Spread]] = {name: {} for name in whole}
    for name, figure in rows:
        over_folds[name][figure] = _over_folds(records, name, figure)
        over_seeds[name][figure] = _spread([one[name][figure]["value"] for one in of_seeds.values()])
    pooling = {name: {figure: _pooling(name, figure, of_seeds, over_folds) for figure in RANKING} for name in whole}
    learnt = [one["name"] for one in pooled["classes"] if one["positive_in_training"]]
    pooling[MEAN] = {figure: _mean_pooling([pooling[name][figure] for name in learnt]) for figure in RANKING}
    return {
        "pooled": whole,
        "runs": records,
        "over_folds": over_folds,
        "seeds": of_seeds,
        "over_seeds": over_seeds,
        "pooling": pooling,
        "variances": _variances(whole[MEAN]["auroc"], records, over_folds, over_seeds, level),
    }


def _run_record(one: RunResults) -> RunRecord:
    results = one.results
    return {
        "run": one.run,
        "fold": one.fold,
        "seed": one.seed,
        "patients": results["patients"],
        "studies": results["images"],
        "best_epoch": one.best_epoch,
        "figures": figures_of(results),
    }


def _interval(record: IntervalRecord) -> Interval:
    return Interval(*(math.nan if record[end] is None else float(record[end] or 0) for end in ("value", "low", "high")))


def _spread(values: Sequence[float | None], mean: Interval = UNDEFINED) -> Spread:
    known = [value for value in values if value is not None]
    return {
        "mean": plain(float(np.mean(known))) if known else None,
        "sd": plain(float(np.std(known, ddof=1))) if len(known) > 1 else None,
        "least": min(known, default=None),
        "most": max(known, default=None),
        "low": plain(mean.low),
        "high": plain(mean.high),
        "runs": len(known),
    }


def _over_folds(records: Sequence[RunRecord], name: str, figure: str) -> Spread:
    """Over the folds in which it is defined; of several seeds each fold has their mean.

    The interval of the mean is made of the runs' own: those of one fold are of the same patients and count as wholly
    correlated, those of different folds as not at all.
    """
    found = {}
    for fold in sorted({one["fold"] for one in records}):
        parts = [_interval(one["figures"][name][figure]) for one in records if one["fold"] == fold]
        if parts := [part for part in parts if not math.isnan(part.value)]:
            found[fold] = parts
    values = [math.fsum(part.value for part in parts) / len(parts) for parts in found.values()]
    parts = [part for own in found.values() for part in own]
    if not parts or not any(part.defined for part in parts):
        return _spread(values)
    weights = [1 / len(found) / len(own) for own in found.values() for _ in own]
    folds = np.array([fold for fold, own in found.items() for _ in own])
    together = combined_interval(parts, weights, (folds[:, None] == folds).astype(np.float64))
    return _spread(values, Interval(together.value, max(together.low, 0.0), min(together.high, 1.0)))


def _pooling(
    name: str,
    figure: str,
    of_seeds: Mapping[str, Mapping[str, Mapping[str, IntervalRecord]]],
    over_folds: Mapping[str, Mapping[str, Spread]],
) -> Pooling:
    known = [value for one in of_seeds.values() if (value := one[name][figure]["value"]) is not None]
    return _compared(math.fsum(known) / len(known) if known else None, over_folds[name][figure]["mean"])


def _mean_pooling(classes: Sequence[Pooling]) -> Pooling:
    """Over the same classes both times: those that have both."""
    pairs = [(one["pooled"], one["within_folds"]) for one in classes]
    both = [(pooled, within) for pooled, within in pairs if pooled is not None and within is not None]
    pooled, within = (math.fsum(column) / len(both) for column in zip(*both)) if both else (None, None)
    return _compared(pooled, within)


def _compared(pooled: float | None, within: float | None) -> Pooling:
    difference = None if pooled is None or within is None else pooled - within
    return {"pooled": pooled, "within_folds": within, "difference": difference}


def _variances(
    pooled: IntervalRecord,
    records: Sequence[RunRecord],
    over_folds: Mapping[str, Mapping[str, Spread]],
    over_seeds: Mapping[str, Mapping[str, Spread]],
    level: float,
) -> Variances:
    width = 2 * normal_quantile(level)
    own = [_interval(one["figures"][MEAN]["auroc"]) for one in records]
    errors = [((part.high - part.low) / width) ** 2 for part in own if part.defined]
    whole = _interval(pooled)
    return {
        "patients": plain((whole.high - whole.low) / width),
        "seeds": over_seeds[MEAN]["auroc"]["sd"],
        "folds": over_folds[MEAN]["auroc"]["sd"],
        "folds_by_patients": math.sqrt(math.fsum(errors) / len(errors)) if len(errors) > 1 else None,
    }


def summary_tables(summary: Summary, folds: int) -> list[Table]:
    """What the report shows before the figures of the classes, and a terminal likewise."""
    heading = ["", "seed", "patients", "studies", "best epoch", *map(_title, SHOWN)]
    rows = []
    for one in summary["runs"]:
        counts = (str(one["seed"]), f"{one['patients']:,}", f"{one['studies']:,}", str(one["best_epoch"] or "–"))
        rows.append([one["run"], *counts, *_shown(one["figures"][MEAN])])
    tables = [
        Table("Each run on what it had held out", heading, rows, "Means over the classes that are defined there.")
    ]
    tables.append(_together(summary, folds))
    return tables if folds == 1 else [*tables, _classes(summary)]


def _together(summary: Summary, folds: int) -> Table:
    rows = []
    if len(summary["seeds"]) > 1:
        rows += [[f"pooled, seed {seed}", *_shown(one[MEAN])] for seed, one in summary["seeds"].items()]
        rows.append(["mean over seeds (SD)", *(_of_spread(summary["over_seeds"][MEAN][name]) for name in SHOWN)])
        rows.append(["pooled, mean of the seeds' probabilities", *_shown(summary["pooled"][MEAN])])
    else:
        rows.append(["pooled", *_shown(summary["pooled"][MEAN])])
    if folds > 1:
        rows.append(["mean over folds (SD)", *(_of_spread(summary["over_folds"][MEAN][name]) for name in SHOWN)])
    return Table("Together", ["mean over classes", *map(_title, SHOWN)], rows, variance_text(summary["variances"]))


def _classes(summary: Summary) -> Table:
    several = len(summary["seeds"]) > 1
    rows = []
    for name, figures in summary["pooling"].items():
        one, spread = figures["auroc"], summary["over_folds"][name]["auroc"]
        pooled = number(one["pooled"]) if several else with_interval(summary["pooled"][name]["auroc"])
        difference = "–" if one["difference"] is None else f"{one['difference']:+.3f}"
        defined = f"{spread['runs']}"
        within = _of_spread(spread) if name != MEAN else number(one["within_folds"])
        rows.append([name, pooled, within, defined, difference])
    text = (
        "Pooled AUROC compares studies that were scored by different models, too: where their probabilities are not on "
        "one scale it is lower than within the folds. The difference is what pooling does, mean over seeds; in the "
        "last row it is over the classes that have both."
    )
    heading = [
        "AUROC",
        "pooled, mean over seeds" if several else "pooled",
        "mean within folds (SD)",
        "folds where defined",
        "pooled − within folds",
    ]
    return Table("Pooled and within folds", heading, rows, text)


def variance_text(variances: Variances) -> str:
    """Which variance is which, with this cross-validation's numbers."""
    parts = [
        f"Standard deviations of mean AUROC: {number(variances['patients'])} of the pooled figure, from which patients "
        "were seen, with these models held fixed: its interval"
    ]
    if variances["seeds"] is not None:
        parts.append(
            f"{number(variances['seeds'])} between trainings on the same studies with other seeds, which no interval "
            "here has in it"
        )
    if variances["folds"] is not None:
        expected = (
            ""
            if variances["folds_by_patients"] is None
            else (f" (their few patients alone make about {number(variances['folds_by_patients'])})")
        )
        parts.append(f"{number(variances['folds'])} between folds, whose models and patients differ{expected}")
    return "; ".join(parts) + "."


def pooling_warnings(summary: Summary) -> list[str]:
    """That pooling lowers AUROC, where it does by much."""
    one = summary["pooling"][MEAN]["auroc"]
    if one["difference"] is None or one["difference"] > -MUCH_LOWER:
        return []
    return [
        f"Pooled mean AUROC is {-one['difference']:.3f} lower than within the folds: the folds' models do not give "
        "probabilities on one scale. --calibrate platt may bring them closer; the mean within folds is not concerned."
    ]


def pooling_notes(folds: int, seeds: int) -> list[str]:
    """How the figures of the report are to be read."""
    notes = []
    if folds > 1:
        notes.append(
            "Each study is scored by the model of the fold that had held its patient out, and called at that model's "
            "threshold; the dashed thresholds of the plots are means, and a dot may lie beside its curve."
        )
    if seeds > 1:
        notes.append(
            f"Probabilities are means over {seeds} trainings with other seeds, as the models together would give them: "
            "one training alone is as good as the mean over seeds says, not as these."
        )
    return [
        *notes,
        "Intervals are of patients, with the models held fixed. Trainings on other patients would differ more than "
        "that, and folds share most of their training studies, so that there is no unbiased estimate of it from one "
        "cross-validation (Bengio & Grandvalet 2004).",
    ]


def folds_csv(summary: Summary, composition: Sequence[Sequence[str]]) -> str:
    """A row a run: who is in its parts, and its figures on what it had held out.

    composition: a heading, then rows of fold, part, and counts.
    """
    heading, parts = composition[0], composition[1:]
    counts = {fold: {row[1]: row[2:] for row in parts if row[0] == fold} for fold in dict.fromkeys(r[0] for r in parts)}
    figures = list(summary["runs"][0]["figures"])
    rows = []
    for one in summary["runs"]:
        own = counts[str(one["fold"])]
        row = {"run": one["run"], "fold": str(one["fold"]), "seed": str(one["seed"])}
        row["best epoch"] = "" if one["best_epoch"] is None else str(one["best_epoch"])
        row |= {f"{part} {name}": n for part, cells in own.items() for name, n in zip(heading[2:], cells)}
        for name in figures:
            for figure, record in one["figures"][name].items():
                row |= {f"{figure} {name}{_END[end]}": _cell(record[end]) for end in ("value", "low", "high")}
        rows.append(row)
    return csv_text([list(rows[0]), *([row.get(name, "") for name in rows[0]] for row in rows)])


_END = {"value": "", "low": " low", "high": " high"}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def format_tables(tables: Sequence[Table]) -> str:
    """The tables for a terminal."""
    texts = (f"{table.title}\n{aligned([table.heading, *table.rows])}\n{table.text}" for table in tables)
    return "\n\n".join(text.strip() for text in texts)


def _title(figure: str) -> str:
    return {"auroc": "AUROC", "average_precision": "AP", "brier": "Brier", "ece": "ECE"}.get(figure, figure)


def _shown(figures: Mapping[str, IntervalRecord]) -> list[str]:
    return [with_interval(figures[SHOWN[0]]), *(number(figures[name]["value"]) for name in SHOWN[1:])]


def _of_spread(spread: Spread) -> str:
    if spread["mean"] is None:
        return "–"
    return number(spread["mean"]) + (f" ({spread['sd']:.3f})" if spread["sd"] is not None else "")
