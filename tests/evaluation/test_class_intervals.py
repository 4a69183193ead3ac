"""Intervals of proportions with several images a patient, and of sums of absolute values."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from evaluation.bootstrap import bootstrap
from evaluation.class_intervals import ClassIntervals, error_interval
from evaluation.effective_size import clustered_proportion
from evaluation.figure_table import RANKING, correlation, drawn_figures, figure_table
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from evaluation.weighted import ReliabilityFigures
from tests.evaluation.samples import made_up
from utils.intervals import combined_interval, proportion_interval


def of_classes(probabilities, labels):
    names = [f"{i:04d}" for i in range(len(labels))]
    classes = tuple(map(str, range(labels.shape[1])))
    return ScoredSplit(probabilities, labels, np.ones(labels.shape, bool), names, classes)


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


def test_chance_is_what_labels_do_whether_probabilities_are_right_or_too_sure():
    """Against the spread of the signed sums themselves, over 300 classes that differ by chance alone."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.02, 0.3, 400)
    labels = (rng.random((400, 300)) < truth[:, None]).astype(float)
    for p in (truth, truth / 5):
        figures = ReliabilityFigures(of_classes(np.tile(p[:, None], (1, 300)), labels))
        spread, chance = figures.signed().std(axis=0), figures.chance(np.zeros(300), 200, 0)
        assert np.sqrt((chance**2).mean(axis=(0, 2))) == pytest.approx(spread, rel=0.2, abs=1e-4)


def test_the_mean_of_a_biased_figure_reaches_further_down():
    """Five positives of chance scores: average precision lies above the prevalence that it tends to."""
    rng = np.random.default_rng(2)
    labels = np.repeat([1.0, 0.0], [5, 45])[:, None] * np.ones(8)
    scored = of_classes(rng.random((50, 8)), labels)
    settings = BootstrapSettings(draws=200)
    thresholds = np.full(8, 0.5)
    drawn = bootstrap(drawn_figures(scored, thresholds, RANKING), scored.cluster_count, settings)
    table = figure_table(scored, thresholds, drawn, settings)
    raised = table.draws["average_precision"].mean() - table.values["average_precision"].mean()
    assert raised > 0.01 and table.mean("average_precision").low < 0.1
    parts = [table.interval("average_precision", k) for k in range(8)]
    together = correlation(table.draws["average_precision"])
    unmoved = combined_interval(parts, np.full(8, 1 / 8), together, evened=True)
    assert table.mean("average_precision").low == pytest.approx(max(unmoved.low - raised, 0.0))
    assert table.mean("average_precision").high == pytest.approx(unmoved.high)
