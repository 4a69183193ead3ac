"""Several models as one: means by hand, classes by name, thresholds, and what does not go together."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from configs.errors import PredictionError
from evaluation.calibration import Calibration, uncalibrated
from inference.ensemble import Ensemble, Member
from inference.predictor import Predictor
from training.precision import Precision
from utils.batch import Inputs
from utils.decision import Task

NAMES = ("heart", "lung", "bone")
X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def member(seed: int, names=NAMES, to_probabilities=None, **other) -> Member:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, len(names)))
    exclusive = other.pop("exclusive", False)
    convert = to_probabilities or (lambda logits: uncalibrated(logits, exclusive))
    task = Task(tuple(names), exclusive, other.pop("positive", None))
    return Member(f"{seed}.pth", task, Predictor([model], Precision("cpu", None)), convert, **other)


def logits(one: Member, x: torch.Tensor = X) -> np.ndarray:
    with torch.no_grad():
        return one.model(x).double().numpy()


def test_one_model_is_itself():
    one = member(0)
    np.testing.assert_allclose(Ensemble([one]).probabilities([Inputs.of_images(X)]), sigmoid(logits(one)), atol=1e-15)


def test_the_mean_of_calibrated_probabilities_by_name():
    calibration = Calibration("platt", False, (0.5, 2.0, 1.0), (0.3, -1.0, 0.0), ("",) * 3)
    one, other = member(0, to_probabilities=calibration.probabilities), member(1, ("bone", "heart", "lung"), input=1)
    got = Ensemble([one, other]).probabilities([Inputs.of_images(X), Inputs.of_images(X * 2)])
    first, second = logits(one), logits(other, X * 2)
    for i in range(4):
        for k, name in enumerate(NAMES):
            a = sigmoid(first[i, k] * calibration.slopes[k] + calibration.intercepts[k])
            b = sigmoid(second[i, other.class_names.index(name)])
            assert got[i, k] == pytest.approx((a + b) / 2, abs=1e-12)


def test_exclusive_classes_have_one_finding():
    ensemble = Ensemble([member(0, exclusive=True), member(1, exclusive=True)])
    probabilities = ensemble.probabilities([Inputs.of_images(X)])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert [ensemble.decision.findings(row) for row in probabilities] == [(int(row.argmax()),) for row in probabilities]


def test_a_finding_is_at_or_over_its_threshold():
    ensemble = Ensemble([member(0, thresholds=(0.2, 0.5, 0.9), rule="youden, chosen on val (9 images)")])
    assert ensemble.decision.findings(np.array([0.2, 0.49, 0.95])) == (0, 2)
    assert ensemble.threshold_source == "youden, chosen on val (9 images)"


def test_thresholds_without_a_choice_are_one_half():
    ensemble = Ensemble([member(0)])
    assert ensemble.decision.limits == (0.5,) * 3 and ensemble.threshold_source.startswith("0.5, as none were chosen")


def test_thresholds_of_an_ensemble_are_means_of_those_there_are():
    chosen = member(0, thresholds=(0.2, 0.4, math.nan), rule="youden")
    turned = member(1, ("bone", "heart", "lung"), thresholds=(math.nan, 0.4, 0.6), rule="f1")
    ensemble = Ensemble([chosen, turned, member(2)])
    assert ensemble.decision.limits == pytest.approx((0.3, 0.5, 0.5))
    message = "means of 2 of 3 models (youden; f1); 0.5 where it was undefined (bone)"
    assert ensemble.threshold_source == message


@pytest.mark.parametrize("threshold", [0.0, 0.35, 1.0])
def test_a_threshold_as_asked(threshold):
    ensemble = Ensemble([member(0, thresholds=(0.2,) * 3, rule="youden")], threshold)
    assert ensemble.decision.limits == (threshold,) * 3 and ensemble.threshold_source == f"{threshold:g}, as asked"


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, math.inf])
def test_a_threshold_that_is_no_probability(threshold):
    with pytest.raises(PredictionError, match="from 0 to 1"):
        Ensemble([member(0)], threshold)


def test_models_of_other_classes_are_refused():
    with pytest.raises(PredictionError, match=r"'1.pth' lacks bone of '0.pth' and has skin beside"):
        Ensemble([member(0), member(1, ("heart", "lung", "skin"))])
    with pytest.raises(PredictionError, match=r"lacks lung, bone .* has none beside"):
        Ensemble([member(0), member(1, ("heart",))])
    with pytest.raises(PredictionError, match="one has exclusive classes"):
        Ensemble([member(0), member(1, exclusive=True)])


def test_nan_of_one_model_is_nan():
    broken = member(1, to_probabilities=lambda values: values * np.nan)
    assert np.isnan(Ensemble([member(0), broken]).probabilities([Inputs.of_images(X)])).all()
