"""The dict of all results: its shape, its figures against scikit-learn, comparisons, the table."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from evaluation.figure_table import ALL
from evaluation.operating_points import OperatingPoint, fit_operating_point, parse_rule
from evaluation.results import METHOD, compare_scores, evaluate_scores
from evaluation.results_table import format_results_table
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from tests.evaluation.samples import made_up

SETTINGS = BootstrapSettings(draws=100, seed=5, threads=1)


@pytest.fixture(scope="module")
def scored():
    return made_up(1, images=300, digits=9)


@pytest.fixture(scope="module")
def results(scored):
    logits = np.log(scored.probabilities / (1 - scored.probabilities))
    point = fit_operating_point(
        logits, scored.targets, scored.mask, rule=parse_rule("sensitivity=0.8"), calibration="temperature"
    )
    probabilities = point.probabilities(logits, False)
    columns = {"sex": ["M", "F", "M"] * 100, "age": [str(i % 90) for i in range(300)]}
    return evaluate_scores(scored.of_other(probabilities), point, columns, SETTINGS), probabilities


def test_the_contract_of_metrics_json(results):
    values = json.loads(json.dumps(results[0], allow_nan=False))
    assert values["interval"] == {"level": 0.95, "method": METHOD, "draws": 100, "seed": 5}
    assert (values["split"], values["images"], values["threshold_rule"]) == ("test", 300, "sensitivity=0.8")
    assert values["threshold_split"] == "val" and values["calibration"]["method"] == "temperature"
    assert values["comparison"] is None and values["accuracy"] is None
    assert [one["column"] for one in values["subgroups"]] == ["sex", "age"]
    for row in values["classes"]:
        assert set(row) >= {"name", "positives", "negatives", "threshold", "figures", "confusion"}
        assert set(row["figures"]) == set(ALL) and sum(row["confusion"].values()) > 200
        for name, figure in row["figures"].items():
            assert figure["low"] <= figure["value"] <= figure["high"], name
    assert set(values["mean"]["figures"]) == set(ALL) and values["mean"]["defined_classes"] == 4


def test_figures_equal_scikit_learn(scored, results):
    values, probabilities = results
    aurocs = []
    for k, row in enumerate(values["classes"]):
        known, figures = scored.mask[:, k], row["figures"]
        p, y = probabilities[known, k], scored.targets[known, k]
        aurocs.append(oracle.roc_auc_score(y, p))
        assert figures["auroc"]["value"] == pytest.approx(aurocs[-1], abs=1e-12)
        assert figures["average_precision"]["value"] == pytest.approx(oracle.average_precision_score(y, p), abs=1e-12)
        assert figures["brier"]["value"] == pytest.approx(oracle.brier_score_loss(y, p), abs=1e-12)
        assert figures["sensitivity"]["value"] == pytest.approx(
            oracle.recall_score(y, p >= row["threshold"]), abs=1e-12
        )
        assert figures["sensitivity"]["value"] >= 0.8
        assert (row["positives"], row["negatives"]) == (y.sum(), (1 - y).sum())
    assert values["mean"]["figures"]["auroc"]["value"] == pytest.approx(np.mean(aurocs), abs=1e-12)


def test_undefined_is_none_and_never_averaged_in():
    created = made_up(2)
    targets = created.targets.copy()
    targets[:, 3] = 0
    scored = ScoredSplit(created.probabilities, targets, created.mask, created.patients, created.class_names)
    point = OperatingPoint((0.5, 0.5, 2.0, math.nan), "youden", "val", 10)
    values = evaluate_scores(scored, point, settings=SETTINGS)
    rows, mean = values["classes"], values["mean"]
    assert rows[3]["figures"]["auroc"] == {"value": None, "low": None, "high": None}
    assert rows[3]["threshold"] == 0.5 and not rows[3]["threshold_chosen"], "what predict.py calls with"
    called = (created.probabilities[:, 3] >= 0.5) & created.mask[:, 3]
    assert rows[3]["confusion"] == {"tp": 0, "fp": called.sum(), "tn": (created.mask[:, 3] & ~called).sum(), "fn": 0}
    assert rows[2]["figures"]["ppv"]["value"] is None and rows[2]["figures"]["sensitivity"]["value"] == 0
    assert mean["defined_classes"] == 3
    assert mean["figures"]["auroc"]["classes"] == 3 and mean["figures"]["ppv"]["classes"] == 2
    ppv = [row["figures"]["ppv"]["value"] for row in rows[:2]]
    assert mean["figures"]["ppv"]["value"] == pytest.approx(np.mean(ppv), abs=1e-15)
    assert rows[3]["figures"]["brier"]["value"] is not None
    brier = [row["figures"]["brier"]["value"] for row in rows[:3]]
    assert mean["figures"]["brier"]["value"] == pytest.approx(np.mean(brier), abs=1e-15)
    assert "–" in format_results_table(values)


def test_nothing_defined_at_all():
    scored = ScoredSplit(np.full((3, 1), 0.5), np.zeros((3, 1)), np.ones((3, 1), bool), ["a", "b", "c"], ("x",))
    values = evaluate_scores(scored, OperatingPoint.not_chosen(1), {"sex": ["M", "F", ""]}, SETTINGS)
    json.dumps(values, allow_nan=False)
    assert values["mean"]["defined_classes"] == 0 and values["mean"]["figures"]["auroc"]["value"] is None
    comparison = compare_scores(scored, scored.probabilities, "other", SETTINGS)
    assert comparison["mean"]["auroc"] is None and comparison["classes"][0]["p"] is None


def test_exclusive_classes_have_an_accuracy_as_well():
    scored = made_up(3, exclusive=True)
    values = evaluate_scores(scored, OperatingPoint.not_chosen(4), settings=SETTINGS)
    expected = oracle.accuracy_score(scored.targets.argmax(1), scored.probabilities.argmax(1))
    assert values["accuracy"]["value"] == pytest.approx(expected, abs=1e-15)
    assert values["accuracy"]["low"] < expected < values["accuracy"]["high"]
    expected = oracle.roc_auc_score(scored.targets, scored.probabilities, average="macro")
    assert values["mean"]["figures"]["auroc"]["value"] == pytest.approx(expected, abs=1e-12)


def test_the_same_call_gives_the_same_results(scored):
    point = OperatingPoint.not_chosen(4)
    first = evaluate_scores(scored, point, settings=SETTINGS)
    assert first == evaluate_scores(scored, point, settings=BootstrapSettings(draws=100, seed=5, threads=2))
    assert first != evaluate_scores(scored, point, settings=BootstrapSettings(draws=100, seed=6))


def test_comparing_with_itself_finds_nothing(scored):
    values = compare_scores(scored, scored.probabilities.copy(), "itself", SETTINGS)
    json.dumps(values, allow_nan=False)
    assert values["mean"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert len(values["classes"]) == len(scored.class_names) > 0
    for row in values["classes"]:
        assert row["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0} and row["p"] == row["p_holm"] == 1.0


def test_comparing_with_noise_finds_the_better_one(scored):
    noise = np.random.default_rng(0).random(scored.probabilities.shape)
    values = compare_scores(scored, noise, "noise", SETTINGS)
    assert values["other"] == "noise" and values["mean"]["difference"]["low"] > 0.15
    for k, row in enumerate(values["classes"]):
        p, y, _ = scored.known(k)
        assert row["auroc"] == pytest.approx(oracle.roc_auc_score(y, p), abs=1e-12)
        assert row["difference"]["value"] == pytest.approx(row["auroc"] - row["other_auroc"], abs=1e-15)
        assert row["p"] <= row["p_holm"] < 0.01 and row["z"] > 0
    means = [values["mean"][key] for key in ("auroc", "other_auroc")]
    assert values["mean"]["difference"]["value"] == pytest.approx(means[0] - means[1], abs=1e-15)


def test_thresholds_must_fit(scored):
    with pytest.raises(ValueError, match="3 thresholds for 4 classes"):
        evaluate_scores(scored, OperatingPoint.not_chosen(3), settings=SETTINGS)
    with pytest.raises(ValueError, match="probabilities must be"):
        compare_scores(scored, scored.probabilities[:, :3], "other", SETTINGS)


def test_the_table_shows_every_class_and_the_mean(results):
    lines = format_results_table(results[0]).splitlines()
    assert lines[0].split()[0] == "class" and "AUROC" in lines[0] and "positives / negatives" in lines[0]
    assert len(lines) == 1 + 1 + 4 + 1 + 1 + 1 and lines[-2].startswith("mean of 4 of 4 classes")
    assert lines[-1] == "thresholds: sensitivity=0.8, chosen on val"
    row = results[0]["classes"][0]
    auroc = row["figures"]["auroc"]
    assert f"{auroc['value']:.3f} [{auroc['low']:.3f}–{auroc['high']:.3f}]" in lines[2]
    assert f"{row['positives']:,} / {row['negatives']:,}" in lines[2]
    ends = {line.rstrip()[-5:] for line in lines[2:6]}
    assert all(end[1] == "." for end in ends)
