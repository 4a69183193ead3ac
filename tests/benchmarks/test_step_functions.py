"""The way of one optimizer step stays short enough to be read in one sitting."""

from benchmarks.step_functions import entered, one_step


def test_only_what_is_entered_is_counted():
    assert entered(lambda: None) == {}
    found = entered(lambda: helper())
    assert found == {"tests/benchmarks/test_step_functions.py": ["helper"]}


def helper() -> int:
    return sum(number for number in range(3))


def test_one_optimizer_step():
    found = one_step()
    assert "AccumulationWindow.step" in found["training/accumulation_window.py"]
    assert "ExponentialMovingAverage.update" in found["training/ema.py"], "the step must be a real one"
    assert sum(map(len, found.values())) <= 44 and len(found) <= 12
