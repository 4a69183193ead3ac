"""The numbers of curves.json beside scikit-learn's, and what is drawn from them."""

import itertools
import json
import math

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_curve
from sklearn.metrics import confusion_matrix as reference_matrix

from evaluation.curves import confusion_matrix, curves_of
from evaluation.reliability import expected_calibration_error
from evaluation.scored_split import ScoredSplit


def split(n: int, classes: int, digits: int | None, seed: int = 0, exclusive: bool = False) -> ScoredSplit:
    rng = np.random.default_rng(seed)
    scores = rng.random((n, classes))
    if exclusive:
        scores /= scores.sum(axis=1, keepdims=True)
        targets = np.eye(classes)[rng.integers(0, classes, n)]
        mask = np.repeat(rng.random((n, 1)) < 0.9, classes, axis=1)
    else:
        targets = (rng.random((n, classes)) < scores**2).astype(float)
        mask = rng.random((n, classes)) < 0.8
    if digits is not None:
        scores = np.round(scores, digits)
    names = tuple(f"c{k}" for k in range(classes))
    return ScoredSplit(scores, targets, mask, [f"p{i // 2}" for i in range(n)], names, exclusive=exclusive)


def floats(values: list[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values])


@pytest.mark.parametrize("digits", [None, 2, 1])
@pytest.mark.parametrize("n", [12, 300])
def test_curves_are_those_of_scikit_learn(n, digits):
    scored = split(n, 3, digits)
    curves = curves_of(scored, [0.5, 0.2, 0.9], None)
    for k, one in enumerate(curves["classes"]):
        scores, labels, _ = scored.known(k)
        roc = np.stack(
            [floats(one["roc"][name]) for name in ("false_positive_rate", "true_positive_rate", "threshold")]
        )
        whole = np.stack(roc_curve(labels, scores, drop_intermediate=False))
        whole[2, 0] = roc[2, 0] = 2.0
        places = [int(np.flatnonzero(whole[2] == limit)[0]) for limit in roc[2]]
        np.testing.assert_allclose(roc, whole[:, places], atol=1e-15)
        assert places[0] == 0 and places[-1] == whole.shape[1] - 1 and sorted(places) == places
        for start, end in itertools.pairwise(places):  # what was left out lies between its neighbours
            across = np.cross(whole[:2, start:end].T - whole[:2, start], whole[:2, end] - whole[:2, start])
            assert np.abs(across).max() < 1e-12
        corners = np.cross(np.diff(roc[:2])[:, 1:].T, np.diff(roc[:2])[:, :-1].T)
        assert np.abs(corners).min(initial=1) > 1e-9, "no point that its neighbours say already"
        assert abs(auc(*roc[:2]) - auc(*whole[:2])) < 1e-12
        precision, recall, limits = precision_recall_curve(labels, scores)
        found = {name: floats(values) for name, values in one["precision_recall"].items()}
        np.testing.assert_allclose(found["precision"], precision, atol=1e-15)
        np.testing.assert_allclose(found["recall"], recall, atol=1e-15)
        np.testing.assert_array_equal(found["threshold"][:-1], limits)


def test_bins_add_up_to_the_calibration_error_and_to_all_images():
    scored = split(400, 2, None)
    before = scored.probabilities**2
    curves = curves_of(scored, [0.5, 0.5], before)
    for k, one in enumerate(curves["classes"]):
        scores, labels, _ = scored.known(k)
        bins, old = one["calibration"], one["calibration_before"]
        gaps = [abs(p - y) * n for p, y, n in zip(bins["mean_probability"], bins["positives"], bins["images"])]
        assert sum(gaps) / len(scores) == pytest.approx(expected_calibration_error(scores, labels), abs=1e-12)
        assert sum(bins["images"]) == sum(old["images"]) == len(scores) and old != bins
        assert sum(one["histogram"]["positives"]) == one["positives"] == int(labels.sum())
        assert sum(one["histogram"]["negatives"]) == one["negatives"]
        called = scores >= 0.5
        assert one["at_operating_point"]["sensitivity"] == pytest.approx(called[labels == 1].mean(), abs=1e-15)


def test_exclusive_classes_have_a_matrix():
    scored = split(200, 4, None, exclusive=True)
    rows = scored.mask.all(axis=1)
    expected = reference_matrix(
        scored.targets[rows].argmax(axis=1), scored.probabilities[rows].argmax(axis=1), labels=range(4)
    )
    np.testing.assert_array_equal(confusion_matrix(scored), expected)
    curves = curves_of(scored, [math.nan] * 4, None)
    assert curves["confusion_matrix"] == {"classes": ["c0", "c1", "c2", "c3"], "counts": expected.tolist()}
    assert curves_of(split(20, 2, None), [0.5, 0.5], None)["confusion_matrix"] is None


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_class_of_one_side_is_valid_json(label):
    scored = ScoredSplit(np.array([[0.2], [0.7]]), np.full((2, 1), label), np.ones((2, 1), bool), ["a", "b"], ("c",))
    text = json.dumps(curves_of(scored, [math.nan], None), allow_nan=False)
    (one,) = json.loads(text)["classes"]
    rates = one["roc"]["true_positive_rate" if label == 0 else "false_positive_rate"]
    assert set(rates) == {None}
    nothing = ScoredSplit(np.array([[0.2]]), np.ones((1, 1)), np.zeros((1, 1), bool), ["a"], ("c",))
    json.dumps(curves_of(nothing, [0.5], None), allow_nan=False)
