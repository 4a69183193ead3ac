"""Intervals against published tables and SciPy."""

import math

import pytest
from scipy import stats

from utils.intervals import wilson_interval


def test_wilson_interval_equals_statistical_tables():
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3.
    for (r, n), ends in {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}.items():
        found = wilson_interval(r, n)
        assert (found.low, found.high) == pytest.approx(ends, abs=5e-5)
    assert wilson_interval(20, 20).high == 1.0 and math.isnan(wilson_interval(0, 0).value)


def test_wilson_against_scipy():
    for hits, total in [(0, 5), (5, 5), (3, 7), (40, 100)]:
        expected = stats.binomtest(hits, total).proportion_ci(0.95, "wilson")
        found = wilson_interval(hits, total)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert all(map(math.isnan, (wilson_interval(0, 0).low, wilson_interval(0, 0).high)))
