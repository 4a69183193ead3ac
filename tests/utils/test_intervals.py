"""Intervals against published tables and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from utils.intervals import Interval, combined_interval, proportion_interval, wilson_interval


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


def test_mid_p_ends_are_where_half_the_point_counts():
    for hits, total in [(0, 5), (5, 5), (3, 7), (40, 100)]:
        found = proportion_interval(hits, total)
        for p, share in ((found.low, 0.025), (found.high, 0.975)):
            if 0 < p < 1:
                beyond = stats.binom.sf(hits, total, p) + stats.binom.pmf(hits, total, p) / 2
                assert beyond == pytest.approx(share, abs=1e-9)
    # Of none of n: 1 - 0.05 ** (1 / n), as half of (1 - p) ** n is 0.025.
    assert proportion_interval(0, 20).high == pytest.approx(1 - 0.05 ** (1 / 20))
    assert proportion_interval(20, 20).low == pytest.approx(0.05 ** (1 / 20))
    assert math.isnan(proportion_interval(0, 0).value)
    with pytest.raises(ValueError, match="3 successes of 2"):
        proportion_interval(3, 2)


@pytest.mark.parametrize("total", [10, 20, 50, 200])
def test_mid_p_covers_at_every_proportion(total):
    """Exactly, by summing over all outcomes: at least 0.918 anywhere, where Wilson's falls to 0.84 near 1."""
    intervals = [proportion_interval(hits, total) for hits in range(total + 1)]
    low, high = (np.array([getattr(one, end) for one in intervals])[:, None] for end in ("low", "high"))
    p = np.linspace(0.5, 0.9995, 1000)
    covered = np.sum(stats.binom.pmf(np.arange(total + 1)[:, None], total, p) * ((low <= p) & (p <= high)), axis=0)
    assert covered.min() > 0.918 and 0.95 <= covered.mean() < 0.97


def test_combined_intervals_are_newcombes():
    """Newcombe, Statistics in Medicine 17 (1998), 873, method 10: 56/70 - 48/80 has the interval 0.0524 to 0.3339."""
    parts = [wilson_interval(56, 70), wilson_interval(48, 80)]
    found = combined_interval(parts, [1, -1], np.eye(2))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    same = combined_interval([parts[0], parts[0]], [1, -1], np.ones((2, 2)))
    assert same.high == pytest.approx(-same.low)
    mean = combined_interval([parts[0]] * 4, np.full(4, 0.25), np.ones((4, 4)))
    assert (mean.low, mean.high) == pytest.approx((parts[0].low, parts[0].high))
    unknown = combined_interval([parts[0], Interval(0.5)], [0.5, 0.5], np.eye(2))
    assert unknown.high - unknown.low > 0.5


@pytest.mark.parametrize(("count", "parts", "tolerance"), [(10, 4, 0.05), (10, 16, 0.03), (3, 4, 0.1)])
def test_an_evened_mean_of_counts_ends_below_where_that_of_their_sum_does(count, parts, tolerance):
    """A sum of independent Poisson counts is one: its own interval is lopsided as √parts less; MOVER's as each is."""

    def of_count(n):
        return Interval(n, *(float(end) for end in stats.gamma.ppf([0.025, 0.975], n + 0.5)))

    expected = of_count(count * parts).low / parts
    found, plain = (
        combined_interval([of_count(count)] * parts, np.full(parts, 1 / parts), np.eye(parts), evened=evened)
        for evened in (True, False)
    )
    assert found.low == pytest.approx(expected, abs=tolerance * (count - expected))
    assert plain.low - expected > 2 * abs(found.low - expected)
    assert found.high == plain.high


def test_one_figure_alone_stays_as_lopsided_as_it_is():
    one = Interval(0.9, 0.6, 0.95)
    for parts, weights in (([one], [1.0]), ([one] * 3, np.full(3, 1 / 3))):
        same = np.ones((len(parts), len(parts)))
        found = combined_interval(parts, weights, same, evened=True)
        assert (found.low, found.high) == pytest.approx((0.6, 0.95))
