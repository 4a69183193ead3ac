"""Completeness of Integrated Gradients, occlusion against a plain loop, SmoothGrad's seed; rollout against a loop."""

import numpy as np
import pytest
import torch
from torch import nn

from configs.errors import ExplanationError
from explain.attributions import (
    ATTRIBUTION_METHODS,
    NOISE_LEVEL,
    SMOOTHING_SAMPLES,
    attribution_maps,
    raw_attributions,
)
from explain.methods import METHODS, explain
from explain.rollout import attention_rollout, rollout
from tests.explain.networks import images, network


class Small(nn.Module):
    """A smooth network with a parameter and a dropout, [B, 1, *spatial] → [B, 3]."""

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(1, 4, 3, padding=1)
        self.dropout, self.out = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.dropout(torch.tanh(self.conv(x)).square().flatten(2).mean(-1)))


def test_integrated_gradients_add_up():
    """Σ attributions = y(x) − y(0), to the error of 50 steps."""
    model, x = Small(), images(2, 1, 12, 10)
    raw = raw_attributions(model, x, [0, 2], "integrated_gradients")
    model.eval()
    with torch.no_grad():
        expected = (model(x) - model(torch.zeros_like(x)))[:, [0, 2]]
    error = (raw.flatten(2).sum(-1) - expected).abs().max()
    print(f"completeness: largest error {error:.1e} of {expected.abs().max():.2e}")
    assert raw.shape == (2, 2, 1, 12, 10) and error < 1e-3 * expected.abs().max()


def test_integrated_gradients_add_up_for_our_network():
    """ReLUs bend the path, so that 50 steps leave a few per cent."""
    model, x = network("resnet18", size=(32, 32)), images(1, 3, 32, 32)
    raw = raw_attributions(model, x, [1], "integrated_gradients")
    with torch.no_grad():
        expected = (model(x) - model(torch.zeros_like(x)))[0, 1]
    assert (raw.sum() - expected).abs() < 0.1 * expected.abs()


def test_occlusion_is_the_fall_of_the_logit():
    model, x = Small().eval(), images(1, 1, 12, 12)
    raw = raw_attributions(model, x, [1], "occlusion")[0, 0, 0].numpy()
    total, covered = np.zeros((12, 12)), np.zeros((12, 12))
    with torch.no_grad():
        whole = model(x)[0, 1]
        for top in range(0, 11):
            for left in range(0, 11):
                hidden = x.clone()
                hidden[..., top : top + 2, left : left + 2] = 0
                total[top : top + 2, left : left + 2] += float(whole - model(hidden)[0, 1])
                covered[top : top + 2, left : left + 2] += 1
    assert np.abs(raw - total / covered).max() < 1e-5 * np.abs(total).max() + 1e-7


def test_smooth_grad_is_a_mean_of_absolute_gradients():
    model, x = Small().eval(), images(1, 1, 6, 6)
    state = torch.random.get_rng_state()
    raw = raw_attributions(model, x, [0], "smooth_grad")[0, 0]
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator was moved"
    torch.manual_seed(5)
    noise = NOISE_LEVEL * float(x.max() - x.min())
    many = (x + noise * torch.randn(4000, 1, 6, 6)).requires_grad_()
    (gradients,) = torch.autograd.grad(model(many)[:, 0].sum(), many)
    expected, spread = gradients.abs().mean(0), gradients.abs().std(0) / SMOOTHING_SAMPLES**0.5
    assert ((raw - expected).abs() < 5 * spread).all()
    assert torch.equal(raw, raw_attributions(model, x, [0], "smooth_grad")[0, 0])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_promises(method, spatial_dims):
    size = (12, 12) if spatial_dims == 2 else (6, 7, 8)
    model, x = Small(spatial_dims).train(), images(2, 1, *size)
    maps = attribution_maps(model, x, [2, 0], method)
    assert maps.shape == (2, 2, *size) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.min() >= 0 and torch.allclose(maps.flatten(2).amax(-1), torch.ones(2, 2))
    assert (maps[:, 0] - maps[:, 1]).abs().max() > 0.01
    alone = torch.cat([attribution_maps(model, one, [2, 0], method) for one in x.split(1)])
    torch.testing.assert_close(maps, alone, atol=1e-5, rtol=0)
    assert model.training and model.dropout.training and all(p.grad is None for p in model.parameters())
    assert not x.requires_grad


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_wrong_arguments(method):
    model, x = Small(), images(1, 1, 8, 8)
    with pytest.raises(ExplanationError, match="leave level at 'auto'"):
        attribution_maps(model, x, [0], method, "fused")
    with pytest.raises(ExplanationError, match="from 0 to 2"):
        attribution_maps(model, x, [3], method)
    with pytest.raises(ExplanationError, match="unknown method"):
        explain(model, x, [0], method + "s")


def test_bounded_memory(monkeypatch):
    """No forward pass sees more images than INTERNAL_BATCH, however many steps, samples and windows there are."""
    model, x, seen = Small(), images(3, 1, 24, 24), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for method in ATTRIBUTION_METHODS:
        attribution_maps(model, x, [0, 1], method)
    assert max(seen) <= 16


def slow_rollout(weights: list[torch.Tensor]) -> np.ndarray:
    """Abnar & Zuidema's recursion with loops over tokens, float64."""
    count = weights[0].shape[-1]
    result = np.eye(count)
    for block in weights:
        mean = block.double().numpy().mean(0)
        joint = np.zeros((count, count))
        for i in range(count):
            row = np.array([(mean[i, j] + (i == j)) / 2 for j in range(count)])
            for j in range(count):
                joint[i, j] = sum(row[k] / row.sum() * result[k, j] for k in range(count))
        result = joint
    return result


def test_rollout_against_loops():
    torch.manual_seed(0)
    weights = [torch.randn(2, 3, 7, 7).softmax(-1) for _ in range(4)]
    found = rollout(weights)
    assert (found.sum(-1) - 1).abs().max() < 1e-6
    for i in range(2):
        assert np.abs(found[i].numpy() - slow_rollout([block[i] for block in weights])).max() < 1e-6


@pytest.mark.parametrize("size", [(64, 96), (60, 40)])
def test_rollout_of_a_network(size):
    model, x = network("vit_tiny", size=size), images(2, 3, *size)
    maps = attention_rollout(model, x, [0, 1])
    assert maps.shape == (2, 2, *size) and maps.min() >= 0 and maps.max() <= 1 and maps.isfinite().all()
    assert torch.equal(maps[:, 0], maps[:, 1]) and maps.amax() > 0.99
    attention = model.backbone.global_attention(x)
    rows = slow_rollout([block[0].detach() for block in attention.weights])[1:, 1:].mean(0).reshape(attention.grid)
    unit = (rows - rows.min()) / (rows.max() - rows.min())
    if size == (64, 96):
        # At the middle of four cells an interpolated map is their mean, up to its own scaling.
        corner = maps[0, 0, 15:17, 15:17].mean().item()
        low, high = [float(f(maps[0, 0])) for f in (torch.min, torch.max)]
        assert (low, high) == (0, 1) and abs(corner - unit[:2, :2].mean()) < 0.05


@pytest.mark.parametrize("name", ["swin_tiny", "resnet18"])
def test_no_rollout_without_global_attention(name):
    with pytest.raises(ExplanationError, match="use grad_cam"):
        attention_rollout(network(name), images(1, 3, 64, 64), [0])
    with pytest.raises(ExplanationError, match="leave level at 'auto'"):
        attention_rollout(network(name), images(1, 3, 64, 64), [0], 2)


def test_methods_have_one_signature(monkeypatch):
    model, x = network("vit_tiny", size=(16, 16)), images(1, 3, 16, 16)
    monkeypatch.setattr("explain.attributions.INTEGRATION_STEPS", 4)
    monkeypatch.setattr("explain.attributions.SMOOTHING_SAMPLES", 2)
    for name in METHODS:
        maps = explain(model, x, [3, 1], name, **({"level": "fused"} if METHODS[name].has_levels else {}))
        assert maps.shape == (1, 2, 16, 16) and maps.min() >= 0 and maps.max() <= 1, name
