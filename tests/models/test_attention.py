"""Attention modules against direct formulas and explicit loops; who sees whom; cost linear in the number of places."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.attention import (
    ATTENTION_MODES,
    CBAM,
    CrossScaleAttention,
    MultiScaleAttention,
    PyramidCBAM,
    create_attention,
)
from models.attention.pooled import PooledAttention
from models.layers import pooled_tokens
from utils.blocks import State, run_plainly

CHANNELS = [8, 16, 24]
SIZES = [(12, 9), (6, 5), (3, 2)]
VOLUME_SIZES = [(5, 6, 7), (3, 3, 4), (2, 2, 2)]
ATTENDING = [mode for mode in ATTENTION_MODES if mode != "none"]


def levels(sizes=SIZES, batch: int = 2, dtype=torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, c, *s, dtype=dtype, requires_grad=True) for c, s in zip(CHANNELS, sizes)]


def randomised(module: nn.Module) -> nn.Module:
    """All parameters away from their special initial values (ones, zeros, 0.1)."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


@pytest.mark.parametrize("spatial_dims, sizes", [(2, SIZES), (3, VOLUME_SIZES)], ids=["2d", "3d"])
@pytest.mark.parametrize("mode", ATTENTION_MODES)
def test_each_mode_keeps_shapes(mode, spatial_dims, sizes):
    features = levels(sizes)
    for x, y in zip(features, create_attention(mode, CHANNELS, 4, spatial_dims).double()(features), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype


@pytest.mark.parametrize("spatial_dims, sizes", [(2, SIZES), (3, VOLUME_SIZES)], ids=["2d", "3d"])
@pytest.mark.parametrize("mode", ATTENDING)
def test_gradients_reach_every_parameter(mode, spatial_dims, sizes):
    attention = randomised(create_attention(mode, CHANNELS, 4, spatial_dims))
    sum(y.square().sum() for y in attention(levels(sizes, batch=6))).backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("mode", ATTENDING)
def test_other_numbers_of_axes_are_refused(mode):
    with pytest.raises(ValueError, match="spatial_dims is 4: one of"):
        create_attention(mode, CHANNELS, 4, spatial_dims=4)


@pytest.mark.parametrize("mode", ATTENDING)
def test_each_mode_changes_every_level(mode):
    for x, y in zip(levels(), create_attention(mode, CHANNELS, 4).double()(levels())):
        assert (x - y).abs().max() > 1e-3


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'crossscale': one of none, cbam, multi_scale, cross_scale"):
        create_attention("crossscale", CHANNELS)


# ---- CBAM


@pytest.mark.parametrize("channels", [4, 48], ids=["one hidden unit", "three"])
def test_cbam_is_its_formula(channels):
    cbam = randomised(CBAM(channels))
    x = torch.randn(2, channels, 9, 7, dtype=torch.float64)
    first, second = (layer.weight[:, :, 0, 0] for layer in (cbam.channel_attention.fc[0], cbam.channel_attention.fc[2]))
    assert first.shape[0] == max(channels // 16, 1)

    def bottleneck(vector: torch.Tensor) -> torch.Tensor:
        return (vector @ first.T).clamp_min(0) @ second.T

    gate = 1 / (1 + (-(bottleneck(x.mean((2, 3))) + bottleneck(x.amax((2, 3))))).exp())
    x_channels = x * gate[:, :, None, None]
    stacked = torch.stack([x_channels.mean(1), x_channels.amax(1)], dim=1)
    kernel = cbam.spatial_attention.conv.weight[0]
    padded = torch.zeros(2, 2, 9 + 6, 7 + 6, dtype=torch.float64)
    padded[:, :, 3:-3, 3:-3] = stacked
    expected = torch.empty_like(x)
    for i in range(9):
        for j in range(7):
            score = (padded[:, :, i : i + 7, j : j + 7] * kernel).sum((1, 2, 3))
            expected[:, :, i, j] = x_channels[:, :, i, j] / (1 + (-score).exp())[:, None]
    torch.testing.assert_close(cbam(x), expected, rtol=1e-12, atol=1e-12)


def test_cbam_of_a_volume_is_its_formula():
    cbam = randomised(CBAM(4, spatial_dims=3))
    given = x = torch.randn(2, 4, 3, 5, 4, dtype=torch.float64)
    first, second = (layer.weight.flatten(1) for layer in (cbam.channel_attention.fc[0], cbam.channel_attention.fc[2]))
    gate = torch.zeros(2, 4, dtype=torch.float64)
    for vector in (x.mean((2, 3, 4)), x.amax((2, 3, 4))):
        gate += (vector @ first.T).clamp_min(0) @ second.T
    x = x / (1 + (-gate).exp())[:, :, None, None, None]
    padded = torch.zeros(2, 2, 9, 11, 10, dtype=torch.float64)
    padded[:, :, 3:-3, 3:-3, 3:-3] = torch.stack([x.mean(1), x.amax(1)], dim=1)
    expected = torch.empty_like(x)
    for d, h, w in np.ndindex(3, 5, 4):
        score = (padded[:, :, d : d + 7, h : h + 7, w : w + 7] * cbam.spatial_attention.conv.weight[0]).sum(
            (1, 2, 3, 4)
        )
        expected[:, :, d, h, w] = x[:, :, d, h, w] / (1 + (-score).exp())[:, None]
    torch.testing.assert_close(cbam(given), expected, rtol=1e-12, atol=1e-12)


def test_cbam_levels_share_nothing():
    features = levels()
    outputs = create_attention("cbam", CHANNELS).double()(features)
    for i, output in enumerate(outputs):
        gradients = torch.autograd.grad(output.sum(), features, allow_unused=True, retain_graph=True)
        assert [g is not None and bool(g.abs().sum() > 0) for g in gradients] == [j == i for j in range(3)]


# ---- pooled attention


def looped_attention(module: PooledAttention, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """One image, one place, one head at a time."""
    heads = module.num_heads
    width = module.query.out_features
    size = width // heads
    w_key, w_value = module.key_value.weight[:width], module.key_value.weight[width:]
    b_key, b_value = module.key_value.bias[:width], module.key_value.bias[width:]
    result = x.clone()
    for b in range(x.shape[0]):
        keys, values = context[b] @ w_key.T + b_key, context[b] @ w_value.T + b_value
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                position = x[b, :, i, j]
                normed = (position - position.mean()) / (position.var(correction=0) + module.norm.eps).sqrt()
                query = module.query.weight @ (normed * module.norm.weight + module.norm.bias) + module.query.bias
                answer = []
                for h in range(heads):
                    part = slice(h * size, (h + 1) * size)
                    scores = torch.tensor([float(query[part] @ key[part]) / math.sqrt(size) for key in keys])
                    weights = (scores.double() - scores.double().max()).exp()
                    answer.append((weights / weights.sum()) @ values[:, part])
                update = module.out.weight @ torch.cat(answer) + module.out.bias
                result[b, :, i, j] = position + module.gamma * update
    return result


@pytest.mark.parametrize("channels, context_channels, heads", [(16, 16, 2), (12, 20, 3), (6, 5, 4)], ids=str)
def test_pooled_attention_is_the_loop(channels, context_channels, heads):
    module = randomised(PooledAttention(channels, context_channels, heads))
    x, context = torch.randn(2, channels, 5, 3).double(), torch.randn(2, 7, context_channels).double()
    with torch.no_grad():
        # Scores pass through float32 in the loop's list of floats.
        torch.testing.assert_close(module(x, context), looped_attention(module, x, context), rtol=1e-5, atol=1e-5)


def test_pooled_attention_takes_a_volume_as_a_list_of_places():
    module = randomised(PooledAttention(16, 20, 2))
    x, context = torch.randn(2, 16, 3, 5, 2).double(), torch.randn(2, 7, 20).double()
    torch.testing.assert_close(module(x, context).flatten(2), module(x.flatten(2), context), rtol=0, atol=0)


def test_a_volume_has_about_as_many_keys_as_an_image():
    for kind in (MultiScaleAttention, CrossScaleAttention):
        assert kind(CHANNELS, 4).grid ** 2 == 49 and kind(CHANNELS, 4, spatial_dims=3).grid ** 3 == 64
        assert kind(CHANNELS, 4, grid=2, spatial_dims=3).grid == 2


def test_a_fresh_module_changes_features_a_little():
    """gamma starts at 0.1, so that pretrained features are nearly kept."""
    torch.manual_seed(0)
    module = PooledAttention(32, 32, 4)
    x = torch.randn(2, 32, 6, 6)
    change = (module(x, torch.randn(2, 9, 32)) - x).norm() / x.norm()
    assert 0 < change < 0.1
    module.gamma.data.zero_()
    assert torch.equal(module(x, torch.randn(2, 9, 32)), x)


@pytest.mark.parametrize("channels, heads", [(24, 5), (4, 8), (100, 8)], ids=str)
def test_any_number_of_heads_works(channels, heads):
    module = PooledAttention(channels, channels, heads)
    assert module(torch.randn(1, channels, 3, 3), torch.randn(1, 4, channels)).shape == (1, channels, 3, 3)


# ---- who sees whom


def seen_by(module: nn.Module, features: list[torch.Tensor], target: int, position=(0, 0)) -> list[torch.Tensor]:
    """|d output[target] at one place / d level|, for each level; zeros where there is no path."""
    output = module(features)[target][(slice(None), slice(None), *position)].sum()
    gradients = torch.autograd.grad(output, features, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g.abs() for g, x in zip(gradients, features)]


@pytest.mark.parametrize("target", range(3))
def test_multi_scale_sees_its_own_level_whole_and_no_other(target):
    features = levels()
    seen = seen_by(randomised(MultiScaleAttention(CHANNELS, 4, grid=3)), features, target)
    for i, gradient in enumerate(seen):
        if i == target:
            assert gradient.sum(1).min() > 0, "every place of the level is pooled into some key"
        else:
            assert gradient.abs().max() == 0


@pytest.mark.parametrize("spatial_dims, sizes", [(2, SIZES), (3, VOLUME_SIZES)], ids=["2d", "3d"])
@pytest.mark.parametrize("target", range(3))
def test_cross_scale_sees_all_other_levels_and_of_its_own_only_the_place_itself(target, spatial_dims, sizes):
    features = levels(sizes)
    module = randomised(CrossScaleAttention(CHANNELS, 4, width=12, grid=3, spatial_dims=spatial_dims))
    seen = seen_by(module, features, target, (0,) * spatial_dims)
    for i, gradient in enumerate(seen):
        gradients = gradient.sum(1)
        if i == target:
            assert (gradients.flatten(1)[:, 0] > 0).all()
            assert gradients.flatten(1)[:, 1:].abs().max() == 0, "its own tokens are among its keys"
        else:
            assert gradients.min() > 0


def test_cross_scale_keys_are_the_tokens_of_the_others(monkeypatch):
    """Built by hand: area means, LayerNorm, linear, level embedding; then the same attention."""
    module = randomised(CrossScaleAttention(CHANNELS, 2, width=12, grid=2))
    features = levels([(4, 4), (2, 4), (1, 1)])
    given = {}
    for i, attend in enumerate(module.levels):
        attend.register_forward_hook(lambda _, arguments, __, i=i: given.update({i: arguments[1]}))
    module(features)
    tokens: list[list[torch.Tensor]] = []
    for x, (norm, linear), embedding in zip(features, module.projections, module.level_embeddings):
        rows, columns = min(2, x.shape[2]), min(2, x.shape[3])
        cells = [cell for part in x.chunk(rows, dim=2) for cell in part.chunk(columns, dim=3)]
        tokens.append([])
        for mean in (cell.mean((2, 3)) for cell in cells):
            centred = mean - mean.mean(1, keepdim=True)
            normed = centred / (mean.var(1, correction=0, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
            tokens[-1].append(normed @ linear.weight.T + linear.bias + embedding)
    assert [len(level) for level in tokens] == [4, 4, 1]
    for i in range(3):
        others = [token for j, level in enumerate(tokens) if j != i for token in level]
        torch.testing.assert_close(given[i], torch.stack(others, dim=1), rtol=1e-10, atol=1e-10)


def test_cross_scale_needs_two_levels():
    with pytest.raises(ValueError, match="two levels or more, got 1"):
        CrossScaleAttention([8])


# ---- one step per level


def previous_forward(attention: nn.Module, features: list[torch.Tensor]) -> list[torch.Tensor]:
    """All levels at once, as before there were steps."""
    if isinstance(attention, PyramidCBAM):
        return [cbam(x) for cbam, x in zip(attention.cbam_modules, features)]
    if isinstance(attention, MultiScaleAttention):
        contexts = [norm(pooled_tokens(x, attention.grid)) for norm, x in zip(attention.context_norms, features)]
    else:
        parts = zip(attention.projections, features, attention.level_embeddings)
        tokens = [project(pooled_tokens(x, attention.grid)) + embedding for project, x, embedding in parts]
        contexts = [torch.cat(tokens[:i] + tokens[i + 1 :], dim=1) for i in range(len(tokens))]
    return [attend(x, context) for attend, x, context in zip(attention.levels, features, contexts)]


@pytest.mark.parametrize("spatial_dims, sizes", [(2, SIZES), (3, VOLUME_SIZES)], ids=["2d", "3d"])
@pytest.mark.parametrize("mode", ATTENDING)
def test_steps_are_all_levels_at_once_bit_for_bit(mode, spatial_dims, sizes):
    attention = randomised(create_attention(mode, CHANNELS, 4, spatial_dims)).float()
    features = [x.detach().float().requires_grad_() for x in levels(sizes)]
    state = run_plainly(attention.steps(), State(levels=tuple(features)))
    expected = previous_forward(attention, features)
    inputs = [*features, *attention.parameters()]
    assert state.tensors() == list(state.levels)
    for outputs in (state.levels, attention(features)):
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
        mine = torch.autograd.grad(sum(y.square().sum() for y in outputs), inputs, retain_graph=True)
        other = torch.autograd.grad(sum(y.square().sum() for y in expected), inputs, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_names_of_steps():
    assert create_attention("none", CHANNELS).steps() == []
    for mode in ("cbam", "multi_scale"):
        names = [step.name for step in create_attention(mode, CHANNELS, 4).steps()]
        assert names == [f"attention level {i}" for i in range(3)]
    cross_scale = create_attention("cross_scale", CHANNELS, 4)
    assert [step.name for step in cross_scale.steps()] == ["attention tokens", *names]
    state = cross_scale.float().steps()[0].run(State(levels=tuple(x.float() for x in levels())))
    assert len(state.levels) == 3 and [t.shape[1] for t in state.tokens] == [49, 30, 6]


@pytest.mark.parametrize("mode", ATTENTION_MODES)
def test_attention_is_copied_and_pickled_after_use(mode):
    attention, features = create_attention(mode, CHANNELS, 4).double(), levels()
    expected = attention(features)
    for again in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert all(torch.equal(a, b) for a, b in zip(again(features), expected, strict=True))


# ---- cost


def costs(mode: str, factor: int) -> tuple[int, int, int]:
    """FLOPs of forward and backward, bytes saved for backward, and the largest saved tensor, at factor × the size."""
    module = create_attention(mode, CHANNELS, 4)
    features = [torch.randn(1, c, factor * s, factor * s, requires_grad=True) for c, s in zip(CHANNELS, (16, 14, 12))]
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # The plain kernel keeps every matrix it makes and is counted in full.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = sum(y.sum() for y in module(features))
        total.backward()
    return counter.get_total_flops(), sum(saved.values()), max(saved.values())


@pytest.mark.parametrize("mode", ATTENDING)
def test_time_and_memory_are_linear_in_the_number_of_places(mode):
    """Four times the places: four times the work. An (HW)² matrix would be sixteen times."""
    small, large = costs(mode, 1), costs(mode, 2)
    for before, after in zip(small, large):
        assert 0 < after <= 4.1 * before
    assert large[2] < 4 * 32**4, "a tensor as large as (HW)² of the finest level"
