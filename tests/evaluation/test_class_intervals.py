"""Intervals of proportions with several images a patient, and of sums of absolute values."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from evaluation.class_intervals import ClassIntervals, error_interval
from evaluation.effective_size import clustered_proportion
from evaluation.weighted import ReliabilityFigures
from tests.evaluation.samples import made_up
from utils.intervals import proportion_interval


def test_few_patients_make_single_images_no_less_sure():
    """The variance of 0 and 1 is the binomial's; found by deviations it is 8 / 7 of that, of eight images."""
    found = clustered_proportion([1, 0, 1, 1, 1, 0, 1, 1], np.ones(8), 0.7, 0.95)
    effect = (1.5 * 8 / 7 + 0.5) / 2
    expected = proportion_interval(6 / effect, 8 / effect)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("patients", [3, 10, 400])
def test_equal_images_of_a_patient_count_once_with_students_t(patients):
    hits = np.arange(patients) % 2 * 50.0
    found = clustered_proportion(hits, np.full(patients, 50.0), 1.0, 0.95)
    share = hits.mean() / 50
    # All images of a patient are one; 49 of 50 stand beside another of the same patient.
    found_effect = 50 * patients / (patients - 1)
    weight = share * (1 - share) * patients
    effect = (weight * found_effect + 0.5 * 50) / (weight + 0.5)
    unsure = 1 + 0.98 * ((student.ppf(0.975, patients - 1) / 1.959964) ** 2 - 1)
    size = 50 * patients / effect / unsure
    expected = proportion_interval(share * size, size)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_an_error_has_an_interval_whatever_the_draws():
    bins = np.array([0.1, 0.0, -0.05])
    opposed, silent = -bins[:, None], np.zeros((3, 1))
    for noise in (opposed, silent, np.hstack([opposed, silent, -opposed])):
        found = error_interval(bins, noise, 100.0, 0.95)
        assert found.value == pytest.approx(0.15)
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_an_error_that_chance_explains_may_be_none():
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 400))
    assert error_interval(np.array([0.05, -0.05, 0.0]), noise, 100.0, 0.95).low == 0.0
    certain = error_interval(np.array([0.3, -0.3, 0.0]), noise / 100, 100.0, 0.95)
    assert certain.low == pytest.approx(0.6, abs=0.01)


def test_few_draws_leave_an_interval_without_a_warning(recwarn):
    scored = made_up(5)
    p, y, patients = scored.known(0)
    found = ClassIntervals(p, y, patients, p >= 0.5, 0.95).average_precision(0.6, np.array([0.6, math.nan]))
    assert found.defined and not recwarn.list
    chance = ReliabilityFigures(scored).chance(np.zeros(4), 1, 0)
    assert error_interval(ReliabilityFigures(scored).signed()[0], chance[0], 50.0, 0.95).defined
