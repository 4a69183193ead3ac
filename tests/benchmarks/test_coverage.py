"""The simulation of coverage: its true figures against large samples, its counting, its verdicts."""

import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import kendalltau
from sklearn.metrics import average_precision_score, f1_score, precision_score, roc_auc_score

from benchmarks import coverage
from benchmarks.coverage import COMPARED, DIVIDED, SEVERAL, Design, draw_sample
from benchmarks.coverage_page import Cell, Tally, page, verdicts_of
from benchmarks.coverage_truth import CALIBRATIONS, Population, truths
from evaluation.reliability import brier_score, expected_calibration_error
from utils.environment import describe_environment
from utils.intervals import Interval

FINDING = Design(1000, 3000, 4)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("auroc", [0.5, 0.9])
def test_true_figures_are_those_of_a_large_sample(auroc, calibration):
    of = Population(auroc, FINDING.prevalence, calibration)
    sample = draw_sample(np.random.default_rng(0), FINDING, 3)
    z, y = sample.scores(auroc).ravel(), sample.labels.ravel()
    p, called = of.probability(z), z >= of.threshold
    found = {
        "auroc": roc_auc_score(y, z),
        "average_precision": average_precision_score(y, z),
        "sensitivity": called[y == 1].mean(),
        "specificity": 1 - called[y == 0].mean(),
        "ppv": precision_score(y, called),
        "npv": 1 - y[~called].mean(),
        "f1": f1_score(y, called),
        "brier": brier_score(p, y),
        "ece": expected_calibration_error(p, y),
    }
    expected = truths(of)
    assert expected.values == pytest.approx(found, abs=0.012)
    assert expected.images["ppv"] == pytest.approx(called.mean(), abs=0.01)
    assert expected.images["auroc"] == 0.25


def test_what_is_shared_by_the_images_of_a_patient_and_by_classes():
    sample = draw_sample(np.random.default_rng(1), Design(2000, 2000, 2), 1)
    assert np.corrcoef(sample.noise[:, 0].T)[0, 1] == pytest.approx(coverage.SHARED, abs=0.04)
    first = np.flatnonzero(np.diff(sample.patients) == 0)
    one, other = sample.noise[first, 0, 0], sample.noise[first + 1, 0, 0]
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(coverage.SCORE_CORRELATION, abs=0.05)
    # Two halves of a normal pair correlated by r agree as 2 asin(r) / π says (Sheppard 1899).
    labels = sample.labels[first, 0, 0], sample.labels[first + 1, 0, 0]
    expected = 2 * math.asin(coverage.LABEL_CORRELATION) / math.pi
    assert kendalltau(*labels).statistic == pytest.approx(expected, abs=0.06)


def test_the_lesser_model_is_nearer_to_chance():
    assert coverage.less(0.5) == 0.5
    assert coverage.less(float(ndtr(1.0))) == pytest.approx(float(ndtr(0.8)))


def test_what_is_counted():
    tally = Tally()
    for interval in (Interval(0.5, 0.4, 0.6), Interval(0.9, 0.8, 1.0), Interval(1.0), Interval(math.nan)):
        tally.add("auroc", SEVERAL[0], 0.5, 20.0, interval, 0.55)
    assert list(tally.cells()) == [
        Cell("auroc", "5 + 5, 4 images each", 0.5, pytest.approx(0.55), 20.0, 3, 2, 1, pytest.approx(0.2))
    ]


def cell(held, n=50.0, truth=0.5, intervals=1000):
    return Cell("auroc", "50 + 50", 0.5, truth, n, intervals, intervals, held, 0.1)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([cell(950)], [True, True, True]),
        ([cell(950), cell(870)], [False, False, True]),
        ([cell(900)], [True, False, True]),
        ([cell(920)], [True, True, True]),  # 93 % less two errors is 91.4 %
        ([cell(900, n=19.0)], [True, None, None]),
        ([cell(990)], [True, True, False]),
        ([cell(990, truth=0.95)], [True, True, None]),
        ([cell(10, intervals=20)], [None, None, None]),
    ],
)
def test_verdicts(cells, expected):
    assert [enough for *_, enough in verdicts_of(cells)] == expected


def test_each_part_measures_what_it_is_of():
    tally = Tally()
    for part, designs, _ in coverage.PARTS:
        design = {COMPARED: COMPARED[1], DIVIDED: DIVIDED[0]}.get(designs, designs[3])
        part(tally, design, 0.9, 2, 0)
    cells = list(tally.cells())
    assert len(cells) == 7 * 2 + 2 * 2 * 2 + 1 + 2 + 2
    assert all(one.intervals == one.samples >= 1 and 0 < one.width < 1 for one in cells)
    text = page(cells, describe_environment("cpu", "float64"), 2, 1.0)
    assert "### Mean auroc" in text and text.count("| 20 + 20 | – |") >= 7
