"""DeLong's and Obuchowski's variances against slow loops over pairs, and the known behaviour of tests."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from evaluation.delong import auroc_interval, clustered_variance, holm, paired_test, placements
from utils.metrics import auroc


def psi(x, y):
    return 1.0 if x > y else 0.5 if x == y else 0.0


def slow_components(scores, labels):
    """V10 of the positives, V01 of the negatives: loops over all pairs."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    v10 = [sum(psi(x, y) for y in negative) / negative.size for x in positive]
    v01 = [sum(psi(x, y) for x in positive) / positive.size for y in negative]
    return np.array(v10), np.array(v01)


def slow_delong(scores, labels):
    """DeLong's covariance [models, models] of several models' AUROCs, as in the paper."""
    parts = [slow_components(s, labels) for s in scores]
    s10, s01 = (np.atleast_2d(np.cov([p[side] for p in parts])) for side in (0, 1))
    return s10 / parts[0][0].size + s01 / parts[0][1].size


def slow_obuchowski(first, second, labels, clusters):
    """Obuchowski's covariance of two models' AUROCs, written out cluster by cluster."""
    names = sorted(set(clusters))
    sums = []
    for scores in (first, second):
        v10, v01 = slow_components(scores, labels)
        area, of_positive, of_negative = v10.mean(), clusters[labels == 1], clusters[labels == 0]
        s10 = [sum(v10[of_positive == c]) - area * (of_positive == c).sum() for c in names]
        s01 = [sum(v01[of_negative == c]) - area * (of_negative == c).sum() for c in names]
        sums.append((np.array(s10), np.array(s01)))
    m, n = int(labels.sum()), int((labels == 0).sum())
    i, i10 = len(names), len(set(clusters[labels == 1]))
    i01 = len(set(clusters[labels == 0]))
    (a10, a01), (b10, b01) = sums
    s10 = i10 / ((i10 - 1) * m) * np.dot(a10, b10)
    s01 = i01 / ((i01 - 1) * n) * np.dot(a01, b01)
    s11 = i / (i - 1) * np.dot(a10, b01)
    s11_turned = i / (i - 1) * np.dot(b10, a01)
    return s10 / m + s01 / n + (s11 + s11_turned) / (m * n)


def case(seed, n=90, digits=1):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[np.ones(n // 3), np.zeros(n - n // 3)])
    first = np.round(rng.normal(size=n) + labels, digits)
    second = np.round(0.6 * first + 0.8 * rng.normal(size=n) + 0.3 * labels, digits)
    return first, second, labels, rng.integers(0, n // 3, n)


@pytest.mark.parametrize("digits", [0, 1, 15])
@pytest.mark.parametrize("seed", range(5))
def test_variance_equals_the_loop_over_pairs(seed, digits):
    first, second, labels, clusters = case(seed, digits=digits)
    alone = np.arange(labels.size)
    covariance = slow_delong([first, second], labels)
    components = [placements(s, labels) for s in (first, second)]
    v10, v01 = slow_components(first, labels)
    np.testing.assert_allclose(components[0][labels == 1], v10, rtol=0, atol=1e-14)
    np.testing.assert_allclose(components[0][labels == 0], v01, rtol=0, atol=1e-14)
    assert clustered_variance(components[0], labels, alone).whole == pytest.approx(covariance[0, 0], rel=1e-12)
    difference = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = clustered_variance(components[0] - components[1], labels, alone).whole
    assert found == pytest.approx(difference, rel=1e-10)

    own = [slow_obuchowski(s, s, labels, clusters) for s in (first, second)]
    cross = slow_obuchowski(first, second, labels, clusters)
    assert clustered_variance(components[0], labels, clusters).whole == pytest.approx(own[0], rel=1e-12)
    found = clustered_variance(components[0] - components[1], labels, clusters).whole
    assert found == pytest.approx(sum(own) - 2 * cross, rel=1e-10)


def test_clusters_of_one_are_delongs_variance_and_repeated_images_widen_it():
    first, _, labels, _ = case(11)
    alone = auroc_interval(first, labels)
    assert auroc_interval(first, labels, np.arange(labels.size) * 7 + 3) == alone
    repeated = np.repeat(np.arange(labels.size), 4)
    naive = auroc_interval(first[repeated], labels[repeated])
    clustered = auroc_interval(first[repeated], labels[repeated], repeated)
    assert naive.high - naive.low < 0.6 * (alone.high - alone.low)
    # Four copies of everyone tell nothing new.
    assert clustered.low == pytest.approx(alone.low, abs=2e-3) and clustered.high == pytest.approx(alone.high, abs=2e-3)


def test_ends_solve_the_score_equation_of_newcombe():
    """With a variance that is Hanley & McNeil's, and many images, the ends are his method 5 to three digits."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1.0, 0.0], 4000)
    scores = np.where(labels > 0, 3.0, 1.0) * rng.exponential(size=8000)  # their model: exponential scores, AUROC 3/4
    found = auroc_interval(scores, labels)
    for end in (found.low, found.high):
        a, pairs = end, 4000 - 1
        variance = a * (1 - a) * (1 + pairs * ((1 - a) / (2 - a) + a / (1 + a))) / 4000**2
        assert (end - found.value) ** 2 == pytest.approx(norm.ppf(0.975) ** 2 * variance, rel=0.1)
    assert 0 < found.low < found.value < found.high < 1


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("patients", [2, 5, 50])
def test_perfect_ranks_have_an_interval_that_narrows_with_their_number(turn, patients):
    """The rule of three: of n patients a side none of whom is misplaced, about 3 / n may be."""
    labels = np.repeat([0, 1], patients)
    found = auroc_interval(turn * labels, labels)
    assert found.value == (1 + turn) / 2
    width = found.high - found.low
    assert width == pytest.approx(found.high if turn < 0 else 1 - found.low)
    if patients == 2:
        assert width > 0.9
    else:
        assert 2 / patients < width < 5 / patients


def test_too_few_have_no_interval():
    absent = auroc_interval([0.1, 0.2], [0, 0])
    assert all(math.isnan(x) for x in (absent.value, absent.low, absent.high))
    one = auroc_interval([0.1, 0.4, 0.3, 0.2], [0, 0, 1, 0])
    assert one.value == pytest.approx(2 / 3) and math.isnan(one.low)
    one_patient = auroc_interval([0.1, 0.4, 0.3, 0.2, 0.5], [0, 0, 1, 0, 1], [1, 2, 3, 4, 3])
    assert math.isnan(one_patient.low)


def test_identical_scores_differ_by_nothing():
    first, _, labels, clusters = case(3)
    for other in (first, 2 * first + 1, np.exp(first)):
        found = paired_test(first, other, labels, clusters)
        assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
        assert (found.z, found.p) == (0.0, 1.0)


def test_paired_test_by_hand():
    first, second, labels, _ = case(4)
    covariance = slow_delong([first, second], labels)
    difference = auroc(first, labels) - auroc(second, labels)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found, turned = paired_test(first, second, labels), paired_test(second, first, labels)
    assert found.z == pytest.approx(difference / error, rel=1e-10)
    assert found.p == pytest.approx(2 * norm.sf(abs(difference / error)), rel=1e-9)
    # Of about 100 images the interval is near the one on the plain scale, and turns round with the models.
    ends = [difference + sign * norm.ppf(0.975) * error for sign in (-1, 1)]
    assert (found.difference.low, found.difference.high) == pytest.approx(ends, abs=0.3 * error)
    assert turned.difference.low == pytest.approx(-found.difference.high, abs=1e-9)
    assert (turned.z, turned.p) == (pytest.approx(-found.z), pytest.approx(found.p))


def test_a_difference_without_variance_has_no_p():
    labels = np.array([0, 0, 0, 1, 1])
    found = paired_test(labels, -labels, labels)
    assert found.difference.value == 1 and math.isnan(found.p) and found.difference.low < 0.5
    assert found.difference.high == 1
    both_perfect = paired_test(labels, labels + [0.1, 0, 0.2, 0, 0], labels)
    assert both_perfect.difference.value == 0 and both_perfect.difference.low < 0 < both_perfect.difference.high
    absent = paired_test([0.1, 0.2], [0.3, 0.1], [1, 1])
    assert math.isnan(absent.auroc) and math.isnan(absent.p)


def test_the_test_keeps_its_level():
    """Two models equally good by construction: p below 0.05 in about one of twenty samples; so with clusters."""
    rng, samples, rejected = np.random.default_rng(5), 300, {"alone": 0, "clustered": 0}
    for _ in range(samples):
        labels = (rng.random(60) < 0.4).astype(float)
        truth = rng.normal(size=60) + labels
        a, b = (truth + 0.7 * rng.normal(size=60) for _ in range(2))
        rejected["alone"] += paired_test(a, b, labels).p < 0.05
        rows = np.repeat(np.arange(60), 3)
        a, b = (s[rows] + 0.1 * rng.normal(size=180) for s in (a, b))
        rejected["clustered"] += paired_test(a, b, labels[rows], rows).p < 0.05
    print({kind: n / samples for kind, n in rejected.items()})
    assert all(0.015 <= n / samples <= 0.09 for n in rejected.values())


def test_holm_corrects_and_leaves_out_what_is_undefined():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([0.02, math.nan, 0.01])
    assert found[0] == 0.02 and math.isnan(found[1]) and found[2] == 0.02
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
