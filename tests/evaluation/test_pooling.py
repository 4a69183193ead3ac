"""Pooled figures: against scikit-learn on the same rows, thresholds of each model, means over seeds, and over folds."""

import csv
import io
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from configs.errors import EvaluationError
from evaluation.calibration import Calibration
from evaluation.folds_summary import (
    MEAN,
    RunResults,
    folds_csv,
    pooling_warnings,
    summarise,
    summary_tables,
    variance_text,
)
from evaluation.operating_points import OperatingPoint
from evaluation.pooling import MemberScores, evaluate_pool, mean_point, pool_folds, refuse_for_several
from evaluation.predictions_table import predictions_csv
from evaluation.scored_split import BootstrapSettings
from utils.decision import Task

TASK = Task(("a", "b"))
DRAWS = BootstrapSettings(draws=50)
COUNT = 120


class Labelled:
    """Rows of a made-up dataset: labels that follow the logits somewhat, two studies a patient."""

    def __init__(self, classes: int = 2, exclusive: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.logits = rng.normal(size=(COUNT, classes))
        noisy = self.logits + rng.normal(size=(COUNT, classes))
        self.labels = np.eye(classes)[noisy.argmax(axis=1)] if exclusive else (noisy > 0.5).astype(float)

    def known(self, index):
        return self.labels[index] > 0.5, np.ones((len(index), self.labels.shape[1]), bool)

    def groups(self, index):
        return [f"p{row // 2}" for row in index]

    def columns(self, names, index):
        return {name: ["odd" if row % 4 > 1 else "even" for row in index] for name in names}


def members_of(data: Labelled, seeds=(0,), shift=(0.0, 0.0, 0.0), thresholds=(0.5, 0.4, 0.6), task=TASK):
    """Three folds of whole patients; each fold's model gives its logits with a shift of its own."""
    found = []
    for seed in seeds:
        for fold in range(3):
            rows = np.flatnonzero(np.arange(COUNT) // 2 % 3 == fold)
            logits = data.logits[rows] + shift[fold] + 0.3 * np.random.default_rng([seed, fold]).normal(size=(40, 1))
            point = OperatingPoint((thresholds[fold],) * data.logits.shape[1], "youden", "val", 20)
            place = f"fold{fold}-{seed}", fold, seed
            found.append(MemberScores.of(place, rows, logits, point, task, frozenset()))
    return found


def test_pooled_figures_are_scikit_learns_on_the_same_rows():
    data = Labelled()
    members = members_of(data)
    pooled = evaluate_pool(members, TASK, data, "out of fold", DRAWS, ["side"])
    assert pooled.pool.rows.tolist() == list(range(COUNT))
    scores, calls = np.empty((COUNT, 2)), np.empty((COUNT, 2), bool)
    for one in members:
        scores[one.rows] = one.probabilities
        calls[one.rows] = one.probabilities >= one.point.thresholds[0]
    for k, row in enumerate(pooled.results["classes"]):
        assert row["figures"]["auroc"]["value"] == pytest.approx(roc_auc_score(data.labels[:, k], scores[:, k]))
        expected = average_precision_score(data.labels[:, k], scores[:, k])
        assert row["figures"]["average_precision"]["value"] == pytest.approx(expected)
        tn, fp, fn, tp = confusion_matrix(data.labels[:, k], calls[:, k]).ravel()
        assert row["confusion"] == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
        assert row["figures"]["sensitivity"]["value"] == pytest.approx(tp / (tp + fn))
        assert row["threshold"] == pytest.approx(0.5) and row["threshold_chosen"]
    assert pooled.findings == ["|".join(name for name, call in zip("ab", row) if call) for row in calls]
    assert pooled.results["patients"] == COUNT // 2 and pooled.results["subgroups"][0]["column"] == "side"


def test_written_probabilities_stay_on_the_side_of_their_own_models_threshold():
    data, limit = Labelled(), 0.5 + 2**-40
    members = members_of(data, thresholds=(limit, 0.3, 0.9))
    members[0].probabilities[0] = [limit, np.nextafter(limit, 0)]
    pooled = evaluate_pool(members, TASK, data, "out of fold", DRAWS)
    names = ["x"] * COUNT
    row = next(csv.DictReader(io.StringIO(predictions_csv(pooled.scored, names, names, names, pooled.findings))))
    assert float(row["probability a"]) >= limit > float(row["probability b"]) and row["findings"] == "a"


def test_several_seeds_are_their_mean_and_each_has_figures_of_its_own():
    data = Labelled()
    members = members_of(data, seeds=(0, 1, 2))
    pool = pool_folds(members, TASK)
    own = [one for one in members if one.fold == 1]
    assert np.allclose(pool.probabilities[pool.fold == 1], np.mean([one.probabilities for one in own], axis=0))
    summary = summary_of(data, members)
    values = [one[MEAN]["auroc"]["value"] for one in summary["seeds"].values()]
    over = summary["over_seeds"][MEAN]["auroc"]
    assert over["mean"] == pytest.approx(np.mean(values)) and over["sd"] == pytest.approx(np.std(values, ddof=1))
    assert summary["variances"]["seeds"] == over["sd"] and "other seeds" in variance_text(summary["variances"])
    assert [row[0] for row in summary_tables(summary, 3)[1].rows][:3] == [f"pooled, seed {n}" for n in range(3)]


def summary_of(data, members):
    def results(some, columns=()):
        return evaluate_pool(some, TASK, data, "out of fold", DRAWS, columns).results

    runs = [RunResults(one.run, one.fold, one.seed, 3, results([one])) for one in members]
    seeds = {seed: results([one for one in members if one.seed == seed]) for seed in {one.seed for one in members}}
    return summarise(results(members), runs, seeds)


def test_models_on_other_scales_lower_the_pooled_auroc_and_not_that_within_folds():
    data = Labelled()
    even, shifted = (summary_of(data, members_of(data, shift=shift)) for shift in ((0, 0, 0), (-4.0, 0.0, 4.0)))
    for summary in (even, shifted):
        assert summary["over_folds"]["a"]["auroc"]["mean"] == pytest.approx(even["over_folds"]["a"]["auroc"]["mean"])
    assert abs(even["pooling"]["a"]["auroc"]["difference"]) < 0.05
    assert shifted["pooling"]["a"]["auroc"]["difference"] < -0.1
    assert not pooling_warnings(even) or even["pooling"][MEAN]["auroc"]["difference"] < -0.01
    (warning,) = pooling_warnings(shifted)
    assert "lower than within the folds" in warning and "--calibrate" in warning


def test_the_mean_over_folds_has_the_spread_of_folds_and_an_interval_of_independent_patients():
    data = Labelled()
    summary = summary_of(data, members_of(data))
    runs = [one["figures"]["a"]["auroc"] for one in summary["runs"]]
    over = summary["over_folds"]["a"]["auroc"]
    values = [one["value"] for one in runs]
    assert over["mean"] == pytest.approx(np.mean(values)) and over["sd"] == pytest.approx(np.std(values, ddof=1))
    below = math.sqrt(sum((one["value"] - one["low"]) ** 2 for one in runs)) / 3  # independent, each a third
    assert over["low"] == pytest.approx(over["mean"] - below) and over["runs"] == 3
    # Seeds of a fold are of the same patients: three times the same run is no better known than once.
    again = summary_of(data, [one for one in members_of(data)] + [repeat(one) for one in members_of(data)])
    assert again["over_folds"]["a"]["auroc"]["low"] == pytest.approx(over["low"])


def repeat(one: MemberScores) -> MemberScores:
    return MemberScores("again", one.fold, 1, one.rows, one.probabilities, one.uncalibrated, one.point)


def test_a_class_that_one_fold_cannot_have_is_left_out_of_that_fold_alone():
    data = Labelled()
    data.labels[np.arange(COUNT) // 2 % 3 == 2, 1] = 0
    members = members_of(data)
    members[2] = MemberScores.of(
        ("last", 2, 0), members[2].rows, data.logits[members[2].rows], members[2].point, TASK, frozenset({"b"})
    )
    summary = summary_of(data, members)
    assert summary["over_folds"]["b"]["auroc"]["runs"] == 2
    assert summary["pooled"]["b"]["auroc"]["value"] is not None
    assert summary["pooling"][MEAN]["auroc"]["pooled"] == summary["pooling"]["a"]["auroc"]["pooled"], "b was not learnt"


def test_the_most_probable_class_and_the_positive_one_of_two():
    three = Task(("a", "b", "c"), exclusive=True)
    data = Labelled(3, exclusive=True)
    pooled = evaluate_pool(members_of(data, task=three), three, data, "out of fold", DRAWS)
    right = np.mean([data.labels[row].argmax() == "abc".index(text) for row, text in enumerate(pooled.findings)])
    assert pooled.results["accuracy"]["value"] == pytest.approx(right)
    two = Task(("no", "yes"), True, "yes")
    data = Labelled(2, exclusive=True)
    pooled = evaluate_pool(members_of(data, task=two), two, data, "out of fold", DRAWS)
    limits = np.array([0.5, 0.4, 0.6])[np.arange(COUNT) // 2 % 3]
    assert pooled.findings == ["yes" if p >= t else "no" for p, t in zip(pooled.pool.probabilities[:, 1], limits)]
    assert [one["name"] for one in pooled.results["classes"]] == ["yes"]


def test_together_the_models_call_at_the_mean_of_thresholds_that_were_chosen():
    points = [OperatingPoint((t, math.nan), "youden", "val", 10) for t in (0.2, 0.6)]
    point = mean_point([*points, OperatingPoint.not_chosen(2)], TASK, "the means of 3 models")
    assert point.thresholds[0] == pytest.approx(0.4) and math.isnan(point.thresholds[1])
    assert mean_point([OperatingPoint.not_chosen(2)] * 2, TASK, "").split is None
    data = Labelled()
    all_rows = np.arange(COUNT)
    members = [
        MemberScores.of((str(n), 0, n), all_rows, data.logits + n, p, TASK, frozenset()) for n, p in enumerate(points)
    ]
    found = evaluate_pool(members, TASK, data, "test", DRAWS, together=True)
    mean = (members[0].probabilities + members[1].probabilities) / 2
    assert np.allclose(found.pool.probabilities, mean)
    assert found.findings == ["|".join(np.array(["a", "b"])[[p[0] >= 0.4, p[1] >= 0.5]]) for p in mean]


def test_calibrations_are_said_and_a_study_without_a_probability_is_left_out():
    data, platt = Labelled(), Calibration("platt", False, (0.5, 0.5), (0.1, 0.1), ("", ""))
    members = members_of(data)
    point = OperatingPoint((0.5, 0.5), "youden", "val", 20, platt)
    logits = data.logits[members[0].rows[1:]]
    members[0] = MemberScores.of(("fold0", 0, 0), members[0].rows[1:], logits, point, TASK, frozenset())
    assert np.allclose(members[0].uncalibrated, 1 / (1 + np.exp(-logits)))
    pooled = evaluate_pool(members, TASK, data, "out of fold", DRAWS)
    assert pooled.results["images"] == COUNT - 1
    assert pooled.results["calibration"]["method"] == "platt, each of 1 of 3 models by its own"


def test_folds_that_share_a_study_are_no_folds():
    members = members_of(Labelled())
    again = MemberScores(
        "more", 3, 0, members[0].rows, members[0].probabilities, members[0].uncalibrated, members[0].point
    )
    with pytest.raises(ValueError, match="held out by two folds"):
        pool_folds([*members, again], TASK)


def test_the_table_of_runs_has_counts_and_figures():
    data = Labelled()
    summary = summary_of(data, members_of(data))
    table = [["fold", "part", "patients", "studies", "a", "b"]]
    table += [[str(fold), part, "20", "40", "7", "8"] for fold in range(3) for part in ("train", "val", "held out")]
    rows = list(csv.DictReader(io.StringIO(folds_csv(summary, table))))
    assert [row["run"] for row in rows] == ["fold0-0", "fold1-0", "fold2-0"]
    assert rows[0]["held out studies"] == "40" and rows[0]["train a"] == "7" and rows[0]["best epoch"] == "3"
    assert float(rows[1]["auroc a"]) == pytest.approx(summary["runs"][1]["figures"]["a"]["auroc"]["value"])


def test_options_for_one_model_are_refused_for_several(tmp_path):
    refuse_for_several({"without": [], "threshold": None}, tmp_path)
    with pytest.raises(EvaluationError, match="--threshold, --calibrate: for one model"):
        refuse_for_several({"without": [], "threshold": "f1", "calibrate": "platt"}, tmp_path)
