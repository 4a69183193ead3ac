"""Which operating point is used: what was asked for, what the checkpoint brings, or neither."""

import numpy as np
import pytest

from configs.errors import CheckpointError, ConfigError
from evaluation.fitting import FitOptions, bootstrap_settings, operating_point, stored_point
from evaluation.operating_points import NOT_CHOSEN
from utils.decision import Task

TASK = Task(("a", "b"))
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, (200, 2)).astype(float)
LOGITS = 3 * (RNG.normal(size=(200, 2)) + LABELS)


def validation():
    return LOGITS, LABELS, np.ones((200, 2), bool)


def never():
    raise AssertionError("nothing is to be fitted")


def point(rule=None, method=None, stored=None, source=validation):
    return operating_point(FitOptions.parse(rule, method), stored, source, TASK)


def test_without_wishes_youden_is_fitted_without_calibration():
    fitted, now = point()
    assert now and (fitted.rule, fitted.split, fitted.images, fitted.calibration) == ("youden", "val", 200, None)


def test_a_stored_one_is_taken_without_a_look_at_the_validation_split():
    stored = point("specificity=0.9", "platt")[0]
    again, now = point(stored=stored.as_dict(), source=never)
    assert again == stored and not now and point(stored=stored.as_dict(), source=None) == (stored, False)


def test_a_new_rule_keeps_the_stored_calibration_and_a_new_calibration_the_stored_rule():
    stored = point("specificity=0.9", "platt")[0]
    rule = point("f1", None, stored.as_dict())[0]
    assert rule.calibration == stored.calibration and rule.rule == "f1"
    method = point(None, "temperature", stored.as_dict())[0]
    assert method.rule == "specificity=0.9" and method.calibration.method == "temperature"
    assert point(None, "none", stored.as_dict())[0].calibration is None


def test_thresholds_are_on_the_calibrated_probabilities():
    plain, calibrated = point()[0], point(None, "platt")[0]
    flags = [one.probabilities(LOGITS, False) >= one.thresholds for one in (plain, calibrated)]
    np.testing.assert_array_equal(*flags)
    assert plain.thresholds != calibrated.thresholds


def test_nothing_to_fit_on():
    chosen, now = point(source=None)
    assert (chosen.rule, chosen.thresholds, now) == (NOT_CHOSEN, (0.5, 0.5), False)
    for wish in ({"rule": "f1"}, {"method": "platt"}, {"method": "none"}):
        with pytest.raises(ConfigError, match="leave them out"):
            point(**wish, source=None)


def test_rules_that_were_not_chosen_are_chosen_by_youden():
    stored = stored_point(None, 2).as_dict()
    assert stored["rule"] == NOT_CHOSEN and point(None, "platt", stored)[0].rule == "youden"


def test_what_is_no_operating_point():
    with pytest.raises(CheckpointError, match="for 2 classes, the model has 3"):
        stored_point(point()[0].as_dict(), 3)
    with pytest.raises(ConfigError, match="unknown calibration 'isotonic'"):
        FitOptions.parse(None, "isotonic")
    with pytest.raises(ConfigError, match="--draws -1"):
        bootstrap_settings(-1)
