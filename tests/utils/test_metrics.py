"""utils.metrics against scikit-learn, against pair counting, and against examples worked out by hand."""

import json
import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as oracle

from utils.metrics import (
    auroc,
    average_precision,
    classification_metrics,
    format_metrics_table,
    precision_recall_curve,
    roc_curve,
)

SHAPES = {
    "continuous": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(0, 5, n) / 4,
    "rounded": lambda rng, n: np.round(rng.random(n), 2),
    "constant": lambda rng, n: np.full(n, 0.3),
    "float32_sigmoid": lambda rng, n: (1 / (1 + np.exp(-12 * rng.normal(size=n) + 9))).astype(np.float32),
    "saturated": lambda rng, n: (rng.random(n) > 0.9).astype(np.float32),
    "tiny_differences": lambda rng, n: 0.5 + rng.integers(0, 9, n) * 2.0**-52,
}


def draws(shape, count=60):
    """Random scores and labels: both classes, few or many rows, balanced to one positive in 500."""
    rng = np.random.default_rng(sum(map(ord, shape)))
    for _ in range(count):
        n = int(rng.integers(2, 600))
        labels = (rng.random(n) < rng.choice([0.5, 0.1, 0.01])).astype(int)
        labels[:2] = 0, 1
        yield SHAPES[shape](rng, n), rng.permutation(labels)


@pytest.mark.parametrize("shape", SHAPES)
def test_figures_equal_scikit_learn(shape):
    for scores, labels in draws(shape):
        assert auroc(scores, labels) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
        expected = oracle.average_precision_score(labels, scores)
        assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_curves_equal_scikit_learn(shape):
    for scores, labels in draws(shape, 30):
        curves = (
            (roc_curve(scores, labels), oracle.roc_curve(labels, scores, drop_intermediate=False)),
            (precision_recall_curve(scores, labels), oracle.precision_recall_curve(labels, scores)),
        )
        for ours, theirs in curves:
            for mine, expected in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12)


def test_auroc_is_the_share_of_pairs_in_order():
    for scores, labels in draws("ties", 20):
        positive, negative = scores[labels == 1], scores[labels == 0]
        wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
        assert auroc(scores, labels) == pytest.approx(wins / (positive.size * negative.size), abs=1e-12)


def test_extreme_imbalance_matches_scikit_learn():
    rng = np.random.default_rng(4)
    labels = np.zeros(100_000, int)
    labels[rng.choice(labels.size, 3, replace=False)] = 1
    scores = np.round(rng.normal(size=labels.size) + labels, 3)
    assert auroc(scores, labels) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    expected = oracle.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_worked_example_without_ties():
    # Ranking 1 0 1 0: pairs in order (1st beats both, 3rd beats one) 3 of 4; precision 1/1 and 2/3.
    scores, labels = [0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]
    assert auroc(scores, labels) == 0.75
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)


def test_worked_example_with_a_tie():
    # One positive above, then a positive tied with a negative: 1 + 1/2 of 2 pairs; 1/2 · 1 + 1/2 · 2/3.
    scores, labels = [0.9, 0.5, 0.5], [1, 1, 0]
    assert auroc(scores, labels) == 0.75
    assert average_precision(scores, labels) == pytest.approx(1 / 2 + 1 / 3, abs=1e-15)


def test_perfect_inverted_and_constant_scores():
    labels = np.array([0, 0, 0, 1, 1])
    assert auroc(labels, labels) == 1.0 and auroc(-labels, labels) == 0.0
    assert auroc(np.zeros(5), labels) == 0.5
    assert average_precision(labels, labels) == 1.0
    assert average_precision(np.zeros(5), labels) == pytest.approx(0.4, abs=1e-15)


def test_absent_classes_are_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(auroc([0.1, 0.2], [0, 0])) and math.isnan(auroc([0.1, 0.2], [1, 1]))
        assert math.isnan(auroc([], [])) and math.isnan(average_precision([], []))
        assert math.isnan(average_precision([0.1, 0.2], [0, 0]))
        assert average_precision([0.1, 0.2], [1, 1]) == 1.0
        assert np.isnan(roc_curve([0.1, 0.2], [0, 0])[1]).all()
        assert np.isnan(roc_curve([0.1, 0.2], [1, 1])[0]).all()
        assert np.isnan(precision_recall_curve([0.1, 0.2], [0, 0])[1][:-1]).all()


def test_input_is_left_alone_and_order_does_not_matter():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 200) / 8, rng.integers(0, 2, 200)
    copies, order = (scores.copy(), labels.copy()), rng.permutation(200)
    assert auroc(scores[order], labels[order]) == auroc(scores, labels)
    assert average_precision(scores[order], labels[order]) == average_precision(scores, labels)
    assert (scores == copies[0]).all() and (labels == copies[1]).all()


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([0.1, math.nan], [0, 1], "1 of 2 scores are not finite"),
        ([0.1, math.inf], [0, 1], "not finite"),
        ([0.1, 0.2], [0, -1], "1 of 2 labels are neither 0 nor 1"),
        ([0.1, 0.2], [0, math.nan], "neither 0 nor 1"),
        ([0.1, 0.2, 0.3], [0, 1], r"\(3,\) and \(2,\)"),
        ([[0.1, 0.2]], [[0, 1]], "must both be"),
    ],
)
def test_what_is_refused(scores, labels, words):
    for function in (auroc, average_precision, roc_curve, precision_recall_curve):
        with pytest.raises(ValueError, match=words):
            function(scores, labels)


def masked_case(seed, n=300, classes=6):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, classes)) < 0.2).astype(np.float32)
    mask = rng.random((n, classes)) < 0.8
    scores = np.round(rng.random((n, classes)) + 0.3 * targets, 2).astype(np.float32)
    targets[~mask] = rng.choice([np.nan, -1.0, 0.0, 1.0], int((~mask).sum()))
    return scores, targets, mask, [f"c{k}" for k in range(classes)]


@pytest.mark.parametrize("seed", range(10))
def test_masked_entries_are_left_out_class_by_class(seed):
    scores, targets, mask, names = masked_case(seed)
    metrics = classification_metrics(scores, targets, mask, names)
    aurocs, precisions = [], []
    for k, one in enumerate(metrics.per_class):
        known = mask[:, k]
        aurocs.append(oracle.roc_auc_score(targets[known, k], scores[known, k]))
        precisions.append(oracle.average_precision_score(targets[known, k], scores[known, k]))
        assert (one.name, one.positives) == (names[k], int(targets[known, k].sum()))
        assert one.positives + one.negatives == known.sum()
        assert one.auroc == pytest.approx(aurocs[-1], abs=1e-12)
        assert one.average_precision == pytest.approx(precisions[-1], abs=1e-12)
    assert metrics.defined_classes == len(names)
    assert metrics.mean_auroc == pytest.approx(np.mean(aurocs), abs=1e-12)
    assert metrics.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-12)


def test_masked_scores_are_never_looked_at():
    scores, targets, mask, names = masked_case(3)
    expected = classification_metrics(scores, targets, mask, names)
    scores[~mask] = np.nan
    assert classification_metrics(scores, targets, mask, names) == expected


@pytest.fixture
def partly_defined():
    """Class a is in order (1.0), b has no positives, c no negatives, d no labels at all."""
    scores = np.tile(np.array([[0.1], [0.2], [0.9]]), (1, 4))
    targets = np.array([[0, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    mask = np.ones((3, 4), bool)
    mask[:, 3] = False
    return classification_metrics(scores, targets, mask, ["a", "b", "c", "d"])


def test_means_are_over_defined_classes_only(partly_defined):
    assert [one.defined for one in partly_defined.per_class] == [True, False, False, False]
    assert partly_defined.defined_classes == 1
    assert partly_defined.mean_auroc == 1.0 and partly_defined.mean_average_precision == 1.0
    assert [(one.positives, one.negatives) for one in partly_defined.per_class] == [
        (1, 2),
        (0, 3),
        (3, 0),
        (0, 0),
    ]


def test_a_class_without_negatives_does_not_lift_the_mean_average_precision():
    scores = np.array([[0.9, 0.5], [0.2, 0.5]])
    targets = np.array([[0, 1], [1, 1]])
    metrics = classification_metrics(scores, targets, np.ones((2, 2), bool), ["wrong", "always"])
    assert metrics.per_class[1].average_precision == 1.0
    assert metrics.mean_average_precision == 0.5


def test_nothing_defined_gives_nan_means():
    metrics = classification_metrics(np.ones((2, 1)), np.zeros((2, 1)), np.ones((2, 1), bool), ["a"])
    assert metrics.defined_classes == 0
    assert math.isnan(metrics.mean_auroc) and math.isnan(metrics.mean_average_precision)


def test_as_dict_is_strict_json_with_null_for_nan(partly_defined):
    values = json.loads(json.dumps(partly_defined.as_dict(), allow_nan=False))
    assert values["defined_classes"] == 1 and values["mean_auroc"] == 1.0
    assert values["per_class"][1] == {
        "name": "b",
        "auroc": None,
        "average_precision": None,
        "positives": 0,
        "negatives": 3,
    }


def test_bad_scores_and_targets_name_the_class_and_the_count():
    scores, targets, mask, names = masked_case(1)
    mask[:] = True
    with pytest.raises(ValueError, match=r"class 'c\d': \d+ of 300 labels"):
        classification_metrics(scores, targets, mask, names)
    scores[4:6, 2] = np.nan, np.inf
    with pytest.raises(ValueError, match="class 'c2': 2 of 300 scores are not finite"):
        classification_metrics(scores, np.zeros_like(scores), mask, names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t, m, n: (s[:5], t, m, n), r"\[N, K\]"),
        (lambda s, t, m, n: (s, t, m[:, :2], n), r"\[N, K\]"),
        (lambda s, t, m, n: (s, t, m.astype(float), n), "mask must be bool"),
        (lambda s, t, m, n: (s, t, m, n[:2]), "2 class names for 6 columns"),
    ],
)
def test_shapes_that_disagree_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        classification_metrics(*change(*masked_case(0)))


def test_table_shows_every_class_and_what_is_undefined(partly_defined):
    lines = format_metrics_table(partly_defined).splitlines()
    assert lines[0].split() == ["class", "AUROC", "AP", "positives", "/", "total"]
    assert lines[2].split() == ["a", "1.000", "1.000", "1", "/", "3"]
    assert lines[3].split() == ["b", "–", "–", "0", "/", "3"]
    assert lines[-1].split() == ["mean", "of", "1", "of", "4", "classes", "1.000", "1.000"]
    assert len({line.index("AUROC") + 5 for line in lines[:1]} | {lines[2].index("1.000") + 5}) == 1
