"""The moving average against a slow loop in float64, buffers included."""

import copy

import pytest
import torch
from torch import nn

from training.ema import ExponentialMovingAverage, weights_applied

MADE = torch.tensor(True)  # the optimizer step


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def move(model: nn.Module, step: int) -> None:
    """Weights, running statistics and the integer counter change."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.train()(torch.randn(4, 1, 4, 4, generator=generator))


def snapshot(model: nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_average_is_the_slow_loops(decay):
    model = make_model()
    ema = ExponentialMovingAverage(model, decay)
    expected = {name: tensor.double() for name, tensor in snapshot(model).items()}
    for step in range(1, 31):
        move(model, step)
        ema.update(model, MADE)
        d = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * tensor.double() if tensor.is_floating_point() else tensor
    assert {name for name in expected if "running" in name} == {"1.running_mean", "1.running_var"}
    for name, tensor in ema.shadow.items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1e-5, atol=1e-5)
    assert ema.shadow["1.num_batches_tracked"] == 30


def test_average_is_a_copy():
    model = make_model()
    ema, before = ExponentialMovingAverage(model, 0.9), snapshot(model)
    move(model, 1)
    assert equal(ema.shadow, before) and not equal(snapshot(model), before)


def test_applied_inside_and_restored_afterwards():
    model = make_model()
    ema = ExponentialMovingAverage(model, 0.9)
    move(model, 1)
    ema.update(model, MADE)
    own, shadow = snapshot(model), {name: tensor.clone() for name, tensor in ema.shadow.items()}
    with weights_applied(model, ema.shadow):
        assert equal(snapshot(model), shadow) and not equal(shadow, own)
    assert equal(snapshot(model), own)
    with pytest.raises(RuntimeError, match="in the middle"), weights_applied(model, ema.shadow):
        model.train()(torch.randn(4, 1, 4, 4))  # even what moves inside is forgotten
        raise RuntimeError("in the middle")
    assert equal(snapshot(model), own) and equal(ema.shadow, shadow)
    lacking = {name: tensor for name, tensor in shadow.items() if name != "4.bias"}  # read after others were replaced
    with pytest.raises(RuntimeError, match=r"4\.bias"), weights_applied(model, lacking):
        pass
    assert equal(snapshot(model), own)


def test_state_round_trip_goes_on_alike():
    model = make_model()
    ema = ExponentialMovingAverage(model, 0.9)
    for step in range(3):
        move(model, step)
        ema.update(model, MADE)
    other = ExponentialMovingAverage(make_model(1), 0.9)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    for step in range(3, 6):
        move(model, step)
        ema.update(model, MADE)
        other.update(model, MADE)
    assert other.updates == 6 and equal(other.shadow, ema.shadow)
    with pytest.raises(ValueError, match="another model"):
        other.load_state_dict(ExponentialMovingAverage(nn.Linear(2, 2), 0.9).state_dict())


def test_a_step_that_was_not_made_is_left_out():
    model = make_model()
    ema = ExponentialMovingAverage(model, 0.9)
    before = {name: tensor.clone() for name, tensor in ema.shadow.items()}
    move(model, 1)
    ema.update(model, ~MADE)
    assert equal(before, ema.shadow) and ema.updates == 1, "the decay must not depend on when a skip is known"
