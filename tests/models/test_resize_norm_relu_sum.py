"""The sum of rectified levels against the modules that it takes the place of, in float64 and float32."""

import copy

import pytest
import torch
from torch import nn

from models.fusion import DynamicFusion
from models.layers import norm_nd, resize_to
from models.resize_norm_relu_sum import AddRectified, ResizedMoments, add_rectified, can_add_rectified
from utils.evaluation_mode import evaluating

SIZES = {  # of the level, of the target
    "same": ((6, 5), (6, 5)),
    "grown": ((3, 2), (6, 4)),
    "unevenly": ((3, 5), (7, 5)),
    "one place": ((1, 1), (3, 4)),
    "volume": ((2, 3, 2), (4, 6, 4)),
    "volume, same": ((2, 3, 2), (2, 3, 2)),
}


def case(name: str, seed: int = 0):
    """x, weights, total and a norm that has seen something, in float64."""
    spatial, size = SIZES[name]
    g = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(3, 4, *spatial, generator=g, dtype=torch.float64)
    weights = torch.rand(3, generator=g, dtype=torch.float64) + 0.1
    total = torch.randn(3, 4, *size, generator=g, dtype=torch.float64)
    norm = norm_nd("batch", len(size), 4).double()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(4, generator=g, dtype=torch.float64))
    return x, weights, total, norm, size


def by_modules(total, x, norm, weights, size):
    level = norm(resize_to(x, size)).relu() * weights.reshape(-1, *[1] * (x.ndim - 1))
    return level if total is None else total + level


@pytest.mark.parametrize("with_total", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_values_gradients_and_statistics_are_those_of_the_modules(name, with_total):
    x, weights, total, norm, size = case(name)
    other = copy.deepcopy(norm)
    outputs, gradients = [], []
    for function, own in ((add_rectified, norm), (by_modules, other)):
        inputs = [t.clone().requires_grad_() for t in (x, weights, total)]
        y = function(inputs[2] if with_total else None, inputs[0], own, inputs[1], size)
        outputs.append(y)
        wanted = [*inputs[: 3 if with_total else 2], own.weight, own.bias]
        gradients.append(torch.autograd.grad((y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum(), wanted))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for one, two in zip(*gradients):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    for one, two in zip(norm.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "volume" else ()) for n in SIZES])
def test_gradients_numerically(name):
    x, _, total, _, size = case(name)
    scale, shift = (torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    inputs = [t.requires_grad_() for t in (total, x, scale, shift)]
    assert torch.autograd.gradcheck(lambda *t: AddRectified.apply(*t, size), inputs)
    assert torch.autograd.gradcheck(lambda t: ResizedMoments.apply(t, size), [x])


def test_a_channel_far_from_zero_keeps_its_variance_in_float32():
    x = 1000 + torch.randn(8, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    _, variance = ResizedMoments.apply(x, (14, 14))
    exact = resize_to(x.double(), (14, 14)).var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), exact, rtol=1e-4, atol=0)


def fusion(spatial_dims: int = 2, norm: str = "batch", seed: int = 0) -> tuple[DynamicFusion, list]:
    torch.manual_seed(seed)
    network = DynamicFusion([4, 6, 8], 16, target_level=0, spatial_dims=spatial_dims, norm=norm)
    return network, [torch.randn(2, c, *[side] * spatial_dims) for c, side in ((4, 8), (6, 4), (8, 2))]


def saved(network, levels) -> int:
    kept: dict[int, int] = {}

    def note(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        network([level.requires_grad_() for level in levels])
    return sum(kept.values())


def test_a_fusion_keeps_one_map_of_the_targets_size():
    network, levels = fusion()
    target = 4 * 2 * 16 * 8 * 8
    others = 4 * 2 * 16 * (4 * 4 + 2 * 2) + sum(4 * level.numel() for level in levels)
    weights = sum(4 * p.numel() for p in network.parameters())
    assert target < saved(network, levels) < target + others + weights + 4096
    network, levels = fusion(norm="group")
    assert saved(network, levels) > 5 * target


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_fusion_trains_as_with_modules(spatial_dims, monkeypatch):
    results = []
    for rewritten in (True, False):
        network, levels = fusion(spatial_dims)
        network.double()
        with monkeypatch.context() as patch:
            if not rewritten:
                patch.setattr("models.fusion.can_add_rectified", lambda *arguments: False)
            y = network([level.double() for level in levels])
            y.square().mean().backward()
        results.append([y.detach(), *(p.grad for p in network.parameters()), *network.buffers()])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_mixed_precision_is_as_exact_as_with_modules(monkeypatch):
    network, levels = fusion()
    exact = copy.deepcopy(network).double()([level.double() for level in levels])
    errors = []
    for rewritten in (True, False):
        own = copy.deepcopy(network)
        with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            if not rewritten:
                patch.setattr("models.fusion.can_add_rectified", lambda *arguments: False)
            y = own(levels)
        y.float().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in own.parameters())
        errors.append(float((y.double() - exact).detach().abs().mean()))
    assert errors[0] < 1.5 * errors[1]


def test_where_the_modules_stay():
    x, _, _, norm, size = case("grown")
    assert can_add_rectified(norm, x, size)
    assert not can_add_rectified(norm_nd("group", 2, 32), x, size)
    assert not can_add_rectified(nn.SyncBatchNorm(4), x, size)
    assert not can_add_rectified(norm, x[:1, :, :1, :1], (1, 1))
    with torch.no_grad():
        assert not can_add_rectified(norm, x, size)
    with evaluating(norm):
        assert not can_add_rectified(norm, x, size)


def test_a_trace_without_values_leaves_nothing_behind():
    """Checkpointing is planned on fake tensors, before the first step of a network in the same process."""
    from utils.torch_private import FakeTensorMode

    with FakeTensorMode():
        network, levels = fusion()
        network(levels).sum().backward()
    network, levels = fusion()
    y = network(levels)
    assert type(y) is torch.Tensor and y.isfinite().all()
