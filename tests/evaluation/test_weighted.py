"""Figures of reweighted samples against scikit-learn and utils.metrics on rows that are really repeated."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as oracle

from evaluation.operating_points import confusion_counts, threshold_figures
from evaluation.reliability import expected_calibration_error
from evaluation.scored_split import ScoredSplit
from evaluation.weighted import Accuracy, RankingFigures, ReliabilityFigures, ThresholdFigures, WeightedRanking
from tests.evaluation.samples import made_up
from utils.metrics import auroc, average_precision, classification_metrics

THRESHOLDS = np.array([0.5, 0.31, math.nan, 0.77])


def random_weights(scored, draws, seed=0):
    return np.random.default_rng(seed).integers(0, 4, (scored.cluster_count, draws)).astype(float)


def repeated(scored, weights, k):
    """Probabilities and labels of class k, each known row as often as its patient's weight says."""
    p, y, patients = scored.known(k)
    rows = np.repeat(np.arange(p.size), weights[patients].astype(int))
    return p[rows], y[rows]


@pytest.mark.parametrize("digits", [1, 2, 16])
@pytest.mark.parametrize("seed", range(4))
def test_weighted_ranks_equal_scikit_learn_on_repeated_rows(seed, digits):
    scored = made_up(seed, digits=digits)
    weights = random_weights(scored, 20, seed)
    found = RankingFigures(scored)(weights)
    worst = 0.0
    for k in range(4):
        for draw in range(20):
            p, y = repeated(scored, weights[:, draw], k)
            worst = max(worst, abs(found["auroc"][k, draw] - oracle.roc_auc_score(y, p)))
            worst = max(worst, abs(found["average_precision"][k, draw] - oracle.average_precision_score(y, p)))
    print(f"largest deviation of AUROC and AP from scikit-learn: {worst:.1e}")
    assert worst < 1e-12


@pytest.mark.parametrize("digits", [1, 2, 16])
def test_weights_of_one_give_the_unweighted_figures(digits):
    for seed in range(20):
        scored = made_up(seed, digits=digits)
        found = RankingFigures(scored)(np.ones((scored.cluster_count, 2)))
        expected = classification_metrics(scored.probabilities, scored.targets, scored.mask, scored.class_names)
        for k, one in enumerate(expected.per_class):
            # AUROC: whole and half numbers summed exactly, one division. AP: sums in another order.
            assert (found["auroc"][k] == one.auroc).all()
            assert found["average_precision"][k] == pytest.approx(one.average_precision, abs=2e-15)


def test_one_row_a_patient_and_extreme_shapes():
    rng = np.random.default_rng(1)
    for n in (2, 3, 10, 300):
        for scores in (rng.random(n), np.full(n, 0.3), rng.integers(0, 2, n) / 1.0):
            labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, n - 2)]).astype(float)
            found = WeightedRanking(scores, labels, np.arange(n), n)(np.ones((n, 1)))[:, 0]
            assert found[0] == auroc(scores, labels)
            assert found[1] == pytest.approx(average_precision(scores, labels), abs=1e-15)


def test_what_a_draw_leaves_undefined_is_nan_without_a_warning():
    scores, labels, patients = np.array([0.9, 0.2, 0.4]), np.array([1.0, 0.0, 0.0]), np.array([0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = WeightedRanking(scores, labels, patients, 3)(np.array([[0.0, 2, 1], [1, 0, 1], [2, 0, 0]]))
        nothing = WeightedRanking(scores[:0], labels[:0], patients[:0], 3)(np.ones((3, 2)))
        negatives = WeightedRanking(scores, 0 * labels, patients, 3)(np.ones((3, 2)))
    np.testing.assert_array_equal(found, [[math.nan, math.nan, 1.0], [math.nan, 1.0, 1.0]])
    assert np.isnan(nothing).all() and np.isnan(negatives).all()


@pytest.mark.parametrize("seed", range(2))
def test_threshold_and_reliability_figures_equal_those_of_repeated_rows(seed):
    scored = made_up(seed)
    weights = random_weights(scored, 4, seed)
    at_threshold = ThresholdFigures(scored, THRESHOLDS)(weights)
    reliability = ReliabilityFigures(scored)(weights)
    for k in range(4):
        for draw in range(4):
            p, y = repeated(scored, weights[:, draw], k)
            flagged = p >= THRESHOLDS[k]
            assert reliability["brier"][k, draw] == pytest.approx(oracle.brier_score_loss(y, p), abs=1e-12)
            assert reliability["ece"][k, draw] == pytest.approx(expected_calibration_error(p, y), abs=1e-12)
            if math.isnan(THRESHOLDS[k]):
                assert all(np.isnan(figure[k, draw]) for figure in at_threshold.values())
                continue
            expected = {
                "sensitivity": oracle.recall_score(y, flagged),
                "specificity": oracle.recall_score(1 - y, ~flagged),
                "ppv": oracle.precision_score(y, flagged),
                "npv": oracle.precision_score(1 - y, ~flagged),
                "f1": oracle.f1_score(y, flagged),
            }
            for name, value in expected.items():
                assert at_threshold[name][k, draw] == pytest.approx(value, abs=1e-12), name


def test_weights_of_one_give_the_confusion_counts_figures():
    scored = made_up(5)
    counts = confusion_counts(scored.probabilities, scored.targets, scored.mask, THRESHOLDS)
    found = ThresholdFigures(scored, THRESHOLDS)(np.ones((scored.cluster_count, 1)))
    for name, values in threshold_figures(counts).items():
        np.testing.assert_array_equal(found[name][:, 0], values)


def test_accuracy_of_exclusive_classes():
    scored = made_up(2, exclusive=True)
    hits, totals = Accuracy(scored).per_patient()
    right = scored.probabilities.argmax(1) == scored.targets.argmax(1)
    np.testing.assert_array_equal(hits, np.bincount(scored.clusters, weights=right))
    np.testing.assert_array_equal(totals, np.bincount(scored.clusters))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probabilities": np.zeros((3, 2))}, r"probabilities must be \[3, 1\]"),
        ({"mask": np.ones((3, 1))}, "mask must be bool"),
        ({"targets": np.array([[0.0], [1.0], [-1.0]])}, "targets must be 0 or 1"),
        ({"probabilities": np.array([[0.1], [math.nan], [0.2]])}, "1 of 3 probabilities are not finite"),
        ({"patients": [], "probabilities": np.zeros((0, 1))}, "nothing to evaluate: 0 images"),
    ],
)
def test_splits_that_do_not_fit_are_refused(change, words):
    values = {
        "probabilities": np.array([[0.1], [0.3], [0.2]]),
        "targets": np.array([[0.0], [1.0], [0.0]]),
        "mask": np.ones((3, 1), bool),
        "patients": ["a", "a", "b"],
        "class_names": ("x",),
    }
    ScoredSplit(**values)
    with pytest.raises(ValueError, match=words):
        ScoredSplit(**{**values, **change})
