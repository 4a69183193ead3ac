"""Brier score and calibration error against scikit-learn and loops."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from evaluation.reliability import bin_edges, brier_score, expected_calibration_error, reliability_bins
from utils.intervals import proportion_interval


def case(seed, n=500):
    rng = np.random.default_rng(seed)
    p = np.round(rng.beta(0.6, 2, n), 3)
    return p, (rng.random(n) < p**1.5).astype(float)


def slow_error(p, y, edges):
    total, last = 0.0, len(edges) - 2
    for b in range(last + 1):
        inside = [i for i in range(len(p)) if edges[b] <= p[i] and (p[i] < edges[b + 1] or b == last)]
        if inside:
            total += len(inside) / len(p) * abs(np.mean(p[inside]) - np.mean(y[inside]))
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("equal", ["width", "mass"])
def test_error_equals_the_loop_over_bins(seed, equal):
    p, y = case(seed)
    for bins in (1, 10, 15):
        expected = slow_error(p, y, bin_edges(p, bins, equal))
        assert expected_calibration_error(p, y, bins, equal) == pytest.approx(expected, abs=1e-14)


def test_brier_and_bins_equal_scikit_learn():
    p, y = case(3)
    assert brier_score(p, y) == pytest.approx(brier_score_loss(y, p), abs=1e-15)
    # scikit-learn closes bins on the right, so scores must not lie on an edge.
    p = p + 1e-5
    frequency, confidence = calibration_curve(y, np.minimum(p, 1), n_bins=15)
    bins = reliability_bins(np.minimum(p, 1), y)
    np.testing.assert_allclose([one.frequency.value for one in bins], frequency, atol=1e-14)
    np.testing.assert_allclose([one.confidence for one in bins], confidence, atol=1e-14)


def test_bins_hold_everything_and_their_interval_is_mid_p():
    p, y = case(4)
    for equal in ("width", "mass"):
        bins = reliability_bins(p, y, equal=equal)
        assert sum(one.count for one in bins) == p.size
        assert all(one.low <= one.confidence <= one.high for one in bins)
        error = sum(one.count * abs(one.confidence - one.frequency.value) for one in bins) / p.size
        assert error == pytest.approx(expected_calibration_error(p, y, equal=equal), abs=1e-14)
        for one in bins:
            alone = proportion_interval(round(one.frequency.value * one.count), one.count)
            # The variance that was found in a bin may be a little above that of independent images, never below.
            assert one.frequency.low <= alone.low + 1e-12 and one.frequency.high >= alone.high - 1e-12
            if one.count > 1:
                assert one.frequency.high - one.frequency.low < 1.5 * (alone.high - alone.low)
        twice = reliability_bins(
            np.repeat(p, 2), np.repeat(y, 2), equal=equal, patients=np.repeat(np.arange(p.size), 2)
        )
        for single, double in zip(bins, twice):
            if 0 < single.frequency.value < 1 and single.count > 5:
                assert double.frequency.low == pytest.approx(single.frequency.low, abs=0.05)
    counts = [one.count for one in reliability_bins(p, y, 5, "mass")]
    assert max(counts) - min(counts) < 20


def test_ends_belong_to_bins():
    bins = reliability_bins([0.0, 1.0, 1.0], [0, 1, 1])
    assert [(one.count, one.low, one.high) for one in bins] == [(1, 0.0, pytest.approx(1 / 15)), (2, 14 / 15, 1.0)]
    assert expected_calibration_error([0.0, 1.0, 1.0], [0, 1, 1]) == 0.0
    assert expected_calibration_error([1.0, 0.0], [0, 1]) == 1.0
    assert reliability_bins([0.3] * 9, [1] * 9, equal="mass")[0].count == 9


def test_nothing_is_undefined():
    assert math.isnan(brier_score([], [])) and math.isnan(expected_calibration_error([], []))
    assert reliability_bins([], []) == []
    with pytest.raises(ValueError, match="'width' or 'mass'"):
        bin_edges([0.1], 15, "depth")
