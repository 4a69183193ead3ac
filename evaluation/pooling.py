"""Several models' probabilities as one table: each study by the model that held it out, or by all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.errors import EvaluationError
from evaluation.operating_points import NOT_CHOSEN, OperatingPoint
from evaluation.records import CalibrationRecord, Results
from evaluation.results import evaluate_scores
from evaluation.scored_split import BootstrapSettings, Floats, ScoredSplit, scored_by_task
from utils.decision import Task, calls_at


@dataclass(frozen=True)
class MemberScores:
    """What the model of one run gives for studies that it was not trained on.

    run: its name. rows: of the dataset index, int64 [n], rising. probabilities: float64 [n, K], calibrated by `point`
    where that has a calibration; uncalibrated: as the network gives them. not_learnt: classes without a positive study
    in its training split.
    """

    run: str
    fold: int
    seed: int
    rows: NDArray[np.int64]
    probabilities: Floats
    uncalibrated: Floats
    point: OperatingPoint
    not_learnt: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        place: tuple[str, int, int],
        rows: NDArray[np.int64],
        logits: Floats,
        point: OperatingPoint,
        task: Task,
        not_learnt: frozenset[str],
    ) -> MemberScores:
        """place: run, fold and seed. logits: [n, K]."""
        own, plain = (one.probabilities(logits, task.exclusive) for one in (point, replace(point, calibration=None)))
        return cls(*place, rows, own, plain, point, not_learnt)


@dataclass(frozen=True)
class Pool:
    """Studies with one row of probabilities each. rows, fold: [N]. limits: [N, K], at which a study is called; nan
    where none decides.
    """

    rows: NDArray[np.int64]
    fold: NDArray[np.int64]
    probabilities: Floats
    uncalibrated: Floats
    limits: Floats


def pool_folds(members: Sequence[MemberScores], task: Task) -> Pool:
    """Each study that a fold held out, once, in the order of their rows.

    Of several runs of a fold, with other seeds, it is the means of probabilities and of thresholds; a study that one of
    them has no probability for, as its image could not be read, is left out.
    """
    parts = []
    for number in sorted({one.fold for one in members}):
        own = [one for one in members if one.fold == number]
        rows = own[0].rows
        for one in own[1:]:
            rows = np.intersect1d(rows, one.rows)
        kept = [np.isin(one.rows, rows) for one in own]
        mean, plain = (
            np.mean([table[keep] for table, keep in zip(tables, kept)], axis=0)
            for tables in ([one.probabilities for one in own], [one.uncalibrated for one in own])
        )
        limit = np.mean([one.point.decision(task).limits for one in own], axis=0)
        parts.append(Pool(rows, np.full(len(rows), number), mean, plain, np.tile(limit, (len(rows), 1))))
    order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
    tables = [(part.rows, part.fold, part.probabilities, part.uncalibrated, part.limits) for part in parts]
    rows, fold, probabilities, uncalibrated, limits = (np.concatenate(column)[order] for column in zip(*tables))
    pooled = Pool(rows, fold, probabilities, uncalibrated, limits)
    if len(np.unique(pooled.rows)) < len(pooled.rows):
        raise ValueError("a study is held out by two folds")
    return pooled


def refuse_for_several(options: Mapping[str, object], folder: Path) -> None:
    """Raises EvaluationError for options of evaluate.py that are for one model."""
    asked = [f"--{name}" for name, value in options.items() if value]
    if asked:
        raise EvaluationError(
            f"{', '.join(asked)}: for one model; '{folder}' is a cross-validation, whose runs bring their own "
            "thresholds and calibration: name one of its runs, or fit those of all by cross_validate.py --resume "
            f"{folder} --threshold RULE --calibrate METHOD"
        )


class Labels(Protocol):
    """What is known about studies: data's EvaluationData. index: rows of the dataset index, [N]."""

    def known(self, index: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]: ...

    def groups(self, index: np.ndarray, /) -> list[str]: ...

    def columns(self, names: Sequence[str], index: np.ndarray, /) -> Mapping[str, Sequence[str]]: ...


class Pooled(NamedTuple):
    """The studies of some runs as one table, and the figures of it."""

    pool: Pool
    scored: ScoredSplit
    results: Results
    findings: list[str]


def evaluate_pool(
    members: Sequence[MemberScores],
    task: Task,
    labels: Labels,
    split: str,
    settings: BootstrapSettings,
    columns: Sequence[str] = (),
    together: bool = False,
) -> Pooled:
    """Figures of what some runs had held out, each study at the threshold of its own run; or of the runs together, as
    one model with the means of their thresholds, as predict.py has it.

    split: what it is called. columns: of the labels table, to make subgroups of. A class counts as learnt where all
    runs have learnt it.
    """
    pool = pool_folds(members, task)
    not_learnt = frozenset().union(*(one.not_learnt for one in members))
    known, groups = labels.known(pool.rows), labels.groups(pool.rows)
    scored = scored_by_task(task, pool.probabilities, *known, groups, split, not_learnt)
    points = [one.point for one in members]
    said = "the means of" if together else "the mean is shown, a study is called at that of its own of"
    point = mean_point(points, task, f"{said} {len(points)} models")
    findings = point.decision(task).texts(pool.probabilities) if together else pool_findings(pool, task)
    if not together and task.kind != "most_probable_class":
        scored = replace(scored, own_thresholds=np.ascontiguousarray(pool.limits[:, list(task.measured)]))
    results = evaluate_scores(scored, point, labels.columns(columns, pool.rows), settings, task)
    results["calibration"] = members_calibration(points)
    return Pooled(pool, scored, results, findings)


def pool_findings(pool: Pool, task: Task) -> list[str]:
    """What is called of each study, as a cell of a table: 'A|B', '' where nothing is."""
    called = calls_at(pool.probabilities, pool.limits, task.kind == "most_probable_class")
    if task.positive_class is not None:
        (positive,) = task.measured
        called[:, 1 - positive] = ~called[:, positive]
    return ["|".join(task.class_names[k] for k in np.flatnonzero(row)) for row in called]


def mean_point(points: Sequence[OperatingPoint], task: Task, words: str) -> OperatingPoint:
    """The mean threshold of each class over the models that have chosen one, as predict.py takes of several models.

    words: what is to be said of them, after the rules. Its calibration is None, as probabilities are made by each
    model's own, see `members_calibration`.
    """
    chosen = [one for one in points if one.split is not None and one.positive_class in (None, task.positive_class)]
    if not chosen:
        return OperatingPoint.not_chosen(len(task.class_names))
    columns = [[value for value in column if not math.isnan(value)] for column in zip(*(p.thresholds for p in chosen))]
    thresholds = tuple(math.fsum(column) / len(column) if column else math.nan for column in columns)
    rules = ", ".join(dict.fromkeys(one.rule for one in chosen if one.rule != NOT_CHOSEN))
    rule = rules if len(points) == 1 else f"{rules}; {words}"
    return OperatingPoint(thresholds, rule, "val", sum(one.images for one in chosen), None, task.positive_class)


def members_calibration(points: Sequence[OperatingPoint]) -> CalibrationRecord | None:
    """What metrics.json says of the calibrations of several models; None where none has one."""
    found = [one.calibration for one in points if one.calibration is not None]
    if not found:
        return None
    methods = ", ".join(dict.fromkeys(one.method for one in found))
    of = f"{len(found)} of {len(points)} models" if len(found) < len(points) else f"{len(points)} models"
    method = methods if len(points) == 1 else f"{methods}, each of {of} by its own"
    return {"method": method, "exclusive": found[0].exclusive, "slopes": [], "intercepts": [], "reasons": []}
