"""All that is known about a model on a split, as plain values: metrics.json, and what the report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.bootstrap import bootstrap
from evaluation.delong import PairedTest, holm, paired_test
from evaluation.effective_size import clustered_proportion, score_correlation
from evaluation.figure_table import ALL, FigureTable, correlation, drawn_figures, figure_table
from evaluation.operating_points import MOST_PROBABLE, OperatingPoint
from evaluation.records import ClassComparison, ClassResults, Comparison, MeanComparison, Results
from evaluation.scored_split import DEFAULT_BOOTSTRAP, BootstrapSettings, Floats, ScoredSplit
from evaluation.subgroups import subgroup_figures
from evaluation.weighted import Accuracy, RankingFigures
from utils.decision import DecisionRule, Task
from utils.intervals import UNDEFINED, Interval, IntervalRecord, combined_interval, plain

METHOD = "clustered by patient: score (AUROC), mid-P (proportions), combined (means, differences), test inversion (ECE)"
CELLS = ("tp", "fp", "tn", "fn")


def evaluate_scores(
    scored: ScoredSplit,
    point: OperatingPoint,
    columns: Mapping[str, Sequence[str]] | None = None,
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
    task: Task | None = None,
) -> Results:
    """Every figure of every class with its interval, the means, and the subgroups, for JSON: nan is None.

    scored: probabilities already calibrated by `point`. point: its thresholds, of the model's classes, are on them.
    task: of the model; None where its classes are those of `scored`.
    columns: name → N texts, one per image, to make subgroups of.

    Figures at the operating point are of what `point.decision` calls, which predict.py does as well.
    Means are over the classes with positives and negatives where the figure is defined ('classes' says how many), never
    over others, and never over a class without a positive in training. A class row's 'undefined_draws' counts draws
    that left a figure undefined. 'accuracy' is of exclusive classes, else None. 'comparison' is None: see
    `compare_scores`; 'without' is empty: see evaluation/withheld.py.
    Raises ValueError where sizes disagree, ConfigError where a column makes too many groups.
    """
    task = task or Task(scored.class_names, scored.exclusive)
    if len(point.thresholds) != len(task.class_names):
        raise ValueError(f"{len(point.thresholds)} thresholds for {len(task.class_names)} classes")
    decision = point.decision(task)
    thresholds = np.asarray(decision.limits, np.float64)[list(task.measured)]
    drawn = bootstrap(drawn_figures(scored, thresholds), scored.cluster_count, settings)
    table = figure_table(scored, thresholds, drawn, settings)
    return {
        "split": scored.split,
        "images": len(scored.patients),
        "patients": scored.cluster_count,
        "interval": {"level": settings.level, "method": METHOD, "draws": settings.draws, "seed": settings.seed},
        "decision": decision.as_dict(),
        "threshold_rule": MOST_PROBABLE if task.kind == "most_probable_class" else point.rule,
        "threshold_split": point.split,
        "calibration": point.calibration.as_dict() if point.calibration else None,
        "classes": [_class_row(scored, table, thresholds, decision, k) for k in range(len(scored.class_names))],
        "mean": table.mean_row(ALL),
        "accuracy": _accuracy(scored, thresholds, settings.level) if scored.one_per_image else None,
        "subgroups": [
            subgroup_figures(scored, thresholds, column, values, settings) for column, values in (columns or {}).items()
        ],
        "comparison": None,
        "without": [],
    }


def _class_row(
    scored: ScoredSplit, table: FigureTable, thresholds: Floats, decision: DecisionRule, k: int
) -> ClassResults:
    row = table.row(k, ALL)
    counts = table.confusion[:, k]
    confusion = None if np.isnan(counts).any() else {cell: int(n) for cell, n in zip(CELLS, counts)}
    return {
        "name": scored.class_names[k],
        "threshold": plain(thresholds[k]),
        "threshold_chosen": not (np.isnan(thresholds[k]) or scored.class_names[k] in decision.not_chosen),
        "positive_in_training": bool(table.learnt[k]),
        **row,
        "confusion": confusion,
        "undefined_draws": table.undefined_draws(k),
    }


def _accuracy(scored: ScoredSplit, thresholds: Floats, level: float) -> IntervalRecord:
    """The correlation of a patient's images is that of the probabilities of their right classes."""
    figure = Accuracy(scored, thresholds)
    hits, totals = figure.per_patient()
    rows = np.flatnonzero(scored.mask.all(axis=1))
    p, y = scored.probabilities[rows], np.asarray(scored.targets)[rows]
    of_right = np.abs(1 - y - p)[:, 0] if scored.other_class else np.sum(p * y, axis=1)
    shared = score_correlation(of_right, np.ones(rows.size), scored.clusters[rows])
    return clustered_proportion(hits, totals, shared, level).as_dict()


def compare_scores(
    scored: ScoredSplit,
    other: Floats,
    other_name: str,
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> Comparison:
    """Another model on the same images: the value of 'comparison', for JSON.

    other: its probabilities, float64 [N, K], columns in the order of scored.class_names. other_name: as shown.
    Differences are this model's AUROC minus the other's. For each class DeLong's paired test, clustered by patient,
    with p corrected by Holm over the classes; the mean's interval is made of the classes', with the correlation of
    paired bootstrap draws. Two exclusive classes are one test, said twice: one score is the other's complement.
    """
    second = scored.of_other(np.asarray(other, np.float64))
    tests = []
    for k in range(len(scored.class_names)):
        scores, labels, patients = scored.known(k)
        tests.append(paired_test(scores, second.known(k)[0], labels, patients, settings.level))
    classes: list[ClassComparison] = [
        {
            "name": name,
            "auroc": plain(test.auroc),
            "other_auroc": plain(test.other_auroc),
            "difference": test.difference.as_dict(),
            "z": plain(test.z),
            "p": plain(test.p),
            "p_holm": plain(corrected),
        }
        for name, test, corrected in zip(scored.class_names, tests, _corrected(scored, [test.p for test in tests]))
    ]
    return {"other": other_name, "classes": classes, "mean": _mean_difference(scored, second, tests, settings)}


def _corrected(scored: ScoredSplit, p_values: list[float]) -> list[float]:
    if scored.exclusive and len(p_values) == 2:
        return p_values
    return list(holm(p_values))


def _mean_difference(
    scored: ScoredSplit, second: ScoredSplit, tests: Sequence[PairedTest], settings: BootstrapSettings
) -> MeanComparison:
    figures = [RankingFigures(one, precision=False) for one in (scored, second)]
    mine, theirs = (part["auroc"] for part in bootstrap(figures, scored.cluster_count, settings))
    defined = [k for k, test in enumerate(tests) if not math.isnan(test.auroc) and scored.learnt[k]]
    if not defined:
        return {"defined_classes": 0, "auroc": None, "other_auroc": None, "difference": UNDEFINED.as_dict()}
    parts = [tests[k].difference for k in defined]
    means = [
        math.fsum(values) / len(defined) for values in zip(*((tests[k].auroc, tests[k].other_auroc) for k in defined))
    ]
    difference = Interval(means[0] - means[1])
    if any(part.defined for part in parts):
        weights = np.full(len(defined), 1 / len(defined))
        found = combined_interval(parts, weights, correlation(mine[defined] - theirs[defined]), (-1.0, 1.0))
        difference = Interval(difference.value, max(found.low, -1.0), min(found.high, 1.0))
    return {
        "defined_classes": len(defined),
        "auroc": plain(means[0]),
        "other_auroc": plain(means[1]),
        "difference": difference.as_dict(),
    }
