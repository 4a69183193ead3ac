"""The cascade changes what it says, in its order; a map that ignores the weights fails the check."""

import itertools
import math

import numpy as np
import pytest
import torch

from configs.errors import ExplanationError
from explain.cam import class_activation_maps
from explain.sanity import LIMIT, cascade, check, compare, ssim
from models import HybridMedNet
from tests.explain.networks import images, network


def two_networks(**options) -> tuple[HybridMedNet, HybridMedNet]:
    model = network(**options)
    random = network(**options)
    torch.manual_seed(7)
    for parameter in random.parameters():
        parameter.data = torch.randn_like(parameter) * parameter.std(correction=0) + parameter.mean()
    return model, random


def test_the_cascade_goes_from_head_to_backbone():
    model, random = two_networks()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = random.state_dict()
    names, replaced = [], []
    for name, stage in cascade(model, random):
        names.append(name)
        replaced.append({k for k, v in stage.state_dict().items() if torch.equal(v, other[k])})
    assert names[:4] == ["classifier", "fusion", "attention", "fpn"]
    assert names[4:] == [f"backbone, part {i} of 4" for i in (4, 3, 2, 1)]
    for fewer, more in itertools.pairwise(replaced):
        assert fewer < more
    assert replaced[-1] == set(other)
    trained_conv = "backbone.body.conv1.weight"
    assert trained_conv not in replaced[-2] and trained_conv in replaced[-1]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model was touched"


def test_grad_cam_passes_and_an_edge_detector_fails():
    model, random = two_networks(size=(48, 48), fusion_stride=4)
    x = images(4, 3, 48, 48)

    def edges(_):
        rows = x.mean(1, keepdim=True).diff(dim=2, prepend=x[:, :1, :1]).abs()
        return (rows / rows.amax((2, 3), keepdim=True)).repeat(1, 2, 1, 1)

    grad_cam = check(model, random, lambda net: class_activation_maps(net, x, [0, 1], "layer_cam", 0))
    print([(stage.name, round(stage.correlation, 3)) for stage in grad_cam.stages])
    ignoring = check(model, random, edges)
    assert grad_cam.passed and grad_cam.stages[-1].correlation < LIMIT
    assert not ignoring.passed and ignoring.stages[-1].correlation == pytest.approx(1) and ignoring.stages[-1].ssim == 1


def test_another_architecture_is_refused():
    with pytest.raises(ExplanationError, match="not of the same architecture"):
        next(cascade(network(), network(classes=5)))


def test_empty_maps_are_counted_and_not_averaged():
    maps = np.zeros((2, 2, 8, 8), np.float32)
    maps[0, 0] = np.arange(64).reshape(8, 8) / 64
    stage = compare("head", maps, maps)
    assert stage.compared == 1 and stage.maps == 4 and stage.correlation == pytest.approx(1)
    none = compare("head", maps[1:], maps[1:])
    assert none.compared == 0 and math.isnan(none.correlation) and math.isnan(none.ssim)


def test_ssim_against_loops():
    rng = np.random.default_rng(0)
    a, b = rng.random((12, 12)), rng.random((12, 12))
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    padded_a, padded_b = (np.pad(m, 5, mode="symmetric") for m in (a, b))
    values = []
    for i in range(12):
        for j in range(12):
            x, y = padded_a[i : i + 11, j : j + 11], padded_b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            vxy = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9) and ssim(a, a) == pytest.approx(1)
