"""What is called: by hand, for every kind of task."""

import math

import numpy as np
import pytest

from evaluation.operating_points import OperatingPoint
from utils.decision import DecisionRule, Task

P = np.array([[0.2, 0.8], [0.5, 0.5], [0.7, 0.3], [0.9, 0.1]])
PAIR = Task(("normal", "ill"), True, "ill")


def test_findings_are_called_at_or_above_their_threshold_and_one_half_where_none_is_chosen():
    rule = DecisionRule(Task(("a", "b")), (0.7, math.nan))
    assert rule.texts(P) == ["b", "b", "a", "a"] and rule.not_chosen == ("b",)
    assert rule.as_dict()["thresholds"] == {"a": 0.7, "b": 0.5}


def test_of_exclusive_classes_the_most_probable_one_is_called_whatever_is_stored():
    rule = DecisionRule(Task(("a", "b"), True), (0.95, 0.05))
    assert rule.texts(P) == ["b", "a", "a", "a"], "the first of equal ones"
    assert rule.as_dict() == {
        "rule": "most_probable_class",
        "classes": ["a", "b"],
        "thresholds": {},
        "positive_class": None,
    }


def test_a_pair_is_decided_by_one_threshold():
    rule = DecisionRule(PAIR, (math.nan, 0.25))
    assert rule.texts(P) == ["ill", "ill", "ill", "normal"]
    assert (rule.calls(P).sum(axis=1) == 1).all() and PAIR.measured == (1,) and PAIR.other_class == "normal"
    assert [rule.findings(row) for row in P] == [(1,), (1,), (1,), (0,)]


def test_a_threshold_of_the_other_class_is_none():
    point = OperatingPoint((0.9, math.nan), "youden", "val", 9, positive_class="normal")
    assert point.decision(PAIR).limits[1] == 0.5
    assert point.decision(Task(PAIR.class_names, True, "normal")).limits[0] == 0.9


@pytest.mark.parametrize(("names", "exclusive"), [(("ill", "b", "c"), True), (("ill", "b"), False), (("a", "b"), True)])
def test_a_positive_class_is_of_two_exclusive_ones(names, exclusive):
    with pytest.raises(ValueError, match="not one of two exclusive classes"):
        Task(names, exclusive, "ill")
