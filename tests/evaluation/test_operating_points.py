"""Thresholds against a search over every threshold, rules, and what a checkpoint stores."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from configs.errors import CheckpointError, ConfigError
from evaluation.calibration import uncalibrated
from evaluation.operating_points import (
    OperatingPoint,
    Rule,
    choose_threshold,
    choose_thresholds,
    confusion_counts,
    fit_operating_point,
    parse_rule,
    threshold_figures,
)
from tests.evaluation.samples import made_up


def figures(scores, labels, threshold):
    """Sensitivity, specificity and F1 by counting."""
    flagged = scores >= threshold
    tp, fn = np.sum(flagged & (labels == 1)), np.sum(~flagged & (labels == 1))
    fp, tn = np.sum(flagged & (labels == 0)), np.sum(~flagged & (labels == 0))
    return tp / (tp + fn), tn / (tn + fp), 2 * tp / (2 * tp + fp + fn)


def worth(rule, scores, labels, threshold):
    sensitivity, specificity, f1 = figures(scores, labels, threshold)
    return round(sensitivity + specificity if rule == "youden" else f1, 12)


def cases():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(5, 80))
        labels = rng.permutation(np.r_[0, 1, (rng.random(n - 2) < 0.3)]).astype(float)
        yield np.round(rng.random(n) + 0.3 * labels, int(rng.integers(1, 4))), labels


@pytest.mark.parametrize("rule", ["youden", "f1"])
def test_no_threshold_is_better(rule):
    for scores, labels in cases():
        found = choose_threshold(scores, labels, Rule(rule))
        every = {t: worth(rule, scores, labels, t) for t in np.unique(scores)}
        best = max(every.values())
        assert found in every and every[found] == best
        assert found == max(t for t, value in every.items() if value == best), "of equals the highest"


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9, 1.0])
def test_wanted_sensitivity_and_specificity_are_reached_and_no_more(wanted):
    for scores, labels in cases():
        found = choose_threshold(scores, labels, Rule("sensitivity", wanted))
        higher = np.unique(scores)[np.unique(scores) > found]
        assert figures(scores, labels, found)[0] >= wanted
        assert all(figures(scores, labels, t)[0] < wanted for t in higher)
        found = choose_threshold(scores, labels, Rule("specificity", wanted))
        lower = np.unique(scores)[np.unique(scores) < found]
        assert figures(scores, labels, found)[1] >= wanted
        assert all(figures(scores, labels, t)[1] < wanted for t in lower)


def test_exact_shares_are_reached():
    labels, scores = np.r_[np.ones(10), np.zeros(20)], np.r_[np.arange(10, 0, -1), np.zeros(20)]
    assert choose_threshold(scores, labels, parse_rule("sensitivity=0.9")) == 2
    assert choose_threshold(-scores, 1 - labels, parse_rule("specificity=0.9")) == pytest.approx(-1)


def test_a_specificity_that_no_score_reaches_flags_nothing():
    scores, labels = [0.2, 0.9], [1, 0]
    found = choose_threshold(scores, labels, Rule("specificity", 1.0))
    assert found > 0.9 and found == np.nextafter(0.9, 1)


def test_a_chosen_threshold_lies_between_two_scores_and_calls_the_same_ones():
    """So that the last digit of a probability, which another batch size or program changes, moves no call."""
    scores, labels = np.array([[0.1], [0.4], [0.7], [0.8]]), np.array([[0], [0], [1], [1]])
    everything = np.ones((4, 1), bool)
    for rule, expected in (("youden", 0.55), ("sensitivity=0.5", 0.75), ("specificity=0.5", 0.25)):
        assert choose_thresholds(scores, labels, everything, parse_rule(rule)) == pytest.approx((expected,))
    assert choose_thresholds(scores, 1 - labels, everything, Rule("sensitivity", 1.0)) == pytest.approx((0.05,))
    assert choose_thresholds(scores, 1 - labels, everything, Rule("specificity", 1.0)) == pytest.approx((0.9,))
    assert choose_thresholds(np.ones((2, 1)), np.array([[0], [1]]), everything[:2], Rule("specificity", 1.0))[0] > 1


def test_too_few_of_a_side_keep_no_threshold():
    scores, labels = np.linspace(0.1, 0.9, 20)[:, None], (np.arange(20) >= 16)[:, None]
    known = np.ones((20, 1), bool)
    assert math.isnan(choose_thresholds(scores, labels, known, Rule("youden"), fewest=5)[0])
    assert not math.isnan(choose_thresholds(scores, labels, known, Rule("youden"), fewest=4)[0])


def test_thresholds_without_both_sides_are_undefined():
    scored = made_up()
    targets = scored.targets.copy()
    targets[:, 1] = 1
    found = choose_thresholds(scored.probabilities, targets, scored.mask, Rule("youden"))
    assert [math.isnan(t) for t in found] == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("youden", Rule("youden")),
        (" F1 ", Rule("f1")),
        ("sensitivity=0.9", Rule("sensitivity", 0.9)),
        ("specificity = 1", Rule("specificity", 1.0)),
    ],
)
def test_rules_are_read(text, rule):
    assert parse_rule(text) == rule and parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("yuoden", "did you mean 'youden'"),
        ("0.3", "unknown threshold rule '0.3'"),
        ("youden=1", "takes no number"),
        ("sensitivity", "needs a number"),
        ("sensitivity=90%", "needs a number"),
        ("sensitivity=90", "90 is not a share"),
        ("specificity=0", "0 is not a share"),
        ("specificity=nan", "nan is not a share"),
    ],
)
def test_rules_that_are_none_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_rule(text)


def test_confusion_and_figures_equal_scikit_learn():
    scored, thresholds = made_up(3), np.array([0.5, 0.3, math.nan, 0.9])
    counts = confusion_counts(scored.probabilities, scored.targets, scored.mask, thresholds)
    found = threshold_figures(counts)
    for k in (0, 1, 3):
        p, y, _ = scored.known(k)
        flagged = p >= thresholds[k]
        tn, fp, fn, tp = oracle.confusion_matrix(y, flagged).ravel()
        assert counts[:, k].tolist() == [tp, fp, tn, fn]
        assert found["ppv"][k] == pytest.approx(oracle.precision_score(y, flagged), abs=1e-15)
        assert found["f1"][k] == pytest.approx(oracle.f1_score(y, flagged), abs=1e-15)
    assert np.isnan(counts[:, 2]).all() and all(math.isnan(values[2]) for values in found.values())


def test_figures_that_rest_on_nothing_are_undefined():
    nothing_flagged = threshold_figures(np.array([[0.0], [0], [5], [3]]))
    assert math.isnan(nothing_flagged["ppv"][0]) and nothing_flagged["f1"][0] == 0
    assert nothing_flagged["npv"][0] == 5 / 8 and nothing_flagged["specificity"][0] == 1
    no_positives = threshold_figures(np.array([[0.0], [2], [5], [0]]))
    assert math.isnan(no_positives["sensitivity"][0]) and math.isnan(no_positives["f1"][0])


@pytest.mark.parametrize("method", [None, "temperature", "platt"])
def test_a_fitted_point_comes_back_from_json_with_the_same_findings(method):
    scored = made_up(8, digits=12)
    logits = np.log(scored.probabilities / (1 - scored.probabilities)) * 3
    point = fit_operating_point(logits, scored.targets, scored.mask, rule=parse_rule("youden"), calibration=method)
    again = OperatingPoint.from_dict(json.loads(json.dumps(point.as_dict())), 4)
    assert again == point and (point.rule, point.split, point.images) == ("youden", "val", 240)
    before, after = point.probabilities(logits, False), again.probabilities(logits, False)
    np.testing.assert_array_equal(before, after)
    assert (before == uncalibrated(logits, False)).all() == (method is None)
    expected = choose_thresholds(before, scored.targets, scored.mask, Rule("youden"))
    assert point.thresholds == expected


def test_a_stored_point_that_does_not_fit_is_refused():
    good = OperatingPoint.not_chosen(3).as_dict()
    assert good["thresholds"] == [0.5] * 3 and good["split"] is None
    undefined = OperatingPoint.from_dict({**good, "thresholds": [None, 0.1, 0.2]}, 3)
    assert math.isnan(undefined.thresholds[0]) and undefined.as_dict()["thresholds"][0] is None
    with pytest.raises(CheckpointError, match="for 3 classes, the model has 4"):
        OperatingPoint.from_dict(good, 4)
    for change in (
        {"thresholds": 5},
        {"thresholds": ["x"] * 3},
        {"calibration": {}},
        {"images": "many"},
        {"images": math.inf},
    ):
        with pytest.raises(CheckpointError, match="fit it again"):
            OperatingPoint.from_dict({**good, **change}, 3)
    with pytest.raises(CheckpointError, match="cannot be read"):
        OperatingPoint.from_dict({}, 3)
