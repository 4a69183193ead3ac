"""DynamicFusion against the direct way: resize every level first, then convolve, normalise and weigh."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.fusion import DynamicFusion
from utils.blocks import State, run_plainly

CHANNELS = [4, 6, 8, 10]
PYRAMIDS = {
    "even": [(16, 16), (8, 8), (4, 4), (2, 2)],
    "odd": [(25, 25), (13, 13), (7, 7), (4, 4)],
    "floored": [(25, 19), (12, 9), (6, 4), (3, 2)],
    "wide": [(8, 24), (4, 12), (2, 6), (1, 3)],
    "one place": [(2, 2), (1, 1), (1, 1), (1, 1)],
}


VOLUMES = {
    "cube": [(8, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1)],
    "odd": [(5, 9, 12), (3, 5, 6), (2, 3, 3), (1, 2, 2)],
    "thin": [(1, 8, 8), (1, 4, 4), (1, 2, 2), (1, 1, 1)],
}


def direct_fusion(fusion: DynamicFusion, features: list[torch.Tensor], training: bool) -> torch.Tensor:
    """The formula as it stands, each step on full-size maps; F's functions where the module uses layers."""
    size = features[fusion.target_level].shape[2:]
    maps, means = [], []
    for x, (conv, norm, _) in zip(features, fusion.scale_convs):
        finer = any(old > new for old, new in zip(x.shape[2:], size))
        mode = "area" if finer else {2: "bilinear", 3: "trilinear"}[len(size)]
        resized = F.interpolate(x, size=size, mode=mode)
        y = torch.einsum("bc...,oc->bo...", resized, conv.weight.flatten(1))
        y = (y.movedim(1, -1) + conv.bias).movedim(-1, 1)
        maps.append(direct_norm(norm, y, training).clamp_min(0))
        means.append(resized.flatten(2).mean(-1))
    scores = torch.cat(means, 1) @ fusion.weight_generator.weight.T + fusion.weight_generator.bias
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    return torch.stack([torch.einsum("b,b...->b...", w, y) for w, y in zip(weights.T, maps)]).sum(0)


def direct_norm(norm: nn.Module, y: torch.Tensor, training: bool) -> torch.Tensor:
    rows = y.movedim(1, -1)  # [B, *spatial, C]
    if isinstance(norm, nn.GroupNorm):
        groups = y.reshape(len(y), norm.num_groups, -1)
        groups = (groups - groups.mean(-1, keepdim=True)) / (
            groups.var(-1, correction=0, keepdim=True) + norm.eps
        ).sqrt()
        rows = groups.reshape(y.shape).movedim(1, -1)
    elif training:
        flat = rows.flatten(0, -2)
        rows = (rows - flat.mean(0)) / (flat.var(0, correction=0) + norm.eps).sqrt()
    else:
        rows = (rows - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    return (rows * norm.weight + norm.bias).movedim(-1, 1)


def used_fusion(target_level: int, spatial_dims: int = 2, norm: str = "batch", out_channels: int = 5) -> DynamicFusion:
    torch.manual_seed(0)
    fusion = DynamicFusion(CHANNELS, out_channels, target_level, spatial_dims, norm).double()
    for module in fusion.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm):
            module.weight.data.normal_()
            module.bias.data.normal_()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return fusion


def pyramid(sizes, batch: int = 3) -> list[torch.Tensor]:
    return [torch.randn(batch, c, *size, dtype=torch.float64, requires_grad=True) for c, size in zip(CHANNELS, sizes)]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("target_level", range(4))
@pytest.mark.parametrize("sizes", PYRAMIDS.values(), ids=PYRAMIDS)
def test_fusion_is_the_direct_formula(sizes, target_level, training):
    """1×1 convolutions commute with resizing; batch statistics and gradients are the same too."""
    assert_direct(used_fusion(target_level).train(training), pyramid(sizes), training)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("target_level", [0, 2, 3])
@pytest.mark.parametrize("sizes", VOLUMES.values(), ids=VOLUMES)
def test_fusion_of_volumes_is_the_direct_formula(sizes, target_level, norm):
    assert_direct(used_fusion(target_level, 3, norm, 32).train(), pyramid(sizes), training=True)


@pytest.mark.parametrize("target_level", range(4))
def test_fusion_with_group_norm_is_the_direct_formula(target_level):
    assert_direct(used_fusion(target_level, norm="group", out_channels=32).train(), pyramid(PYRAMIDS["odd"], 1), True)


def assert_direct(fusion: DynamicFusion, features: list[torch.Tensor], training: bool) -> None:
    expected = direct_fusion(fusion, features, training)
    result = fusion(features)
    # The means that decide on the weights are taken with float32 weights.
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    probe = torch.randn_like(expected)
    inputs = [*features, *fusion.parameters()]
    mine = torch.autograd.grad((result * probe).sum(), inputs)
    for one, other in zip(mine, torch.autograd.grad((expected * probe).sum(), inputs)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_those_of_resized_maps():
    fusion, features = used_fusion(0).train(), pyramid(PYRAMIDS["odd"])
    norm, conv = fusion.scale_convs[3][1], fusion.scale_convs[3][0]
    before = norm.running_mean.clone()
    fusion(features)
    mean = conv(F.interpolate(features[3], size=(25, 25), mode="bilinear")).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * mean)


def test_weights_add_up_to_one_and_depend_on_the_image():
    fusion, features = used_fusion(0).eval(), pyramid(PYRAMIDS["even"])
    weights = fusion.level_weights(features, (16, 16))
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert (weights[0] - weights[1]).abs().max() > 1e-3


# ---- one step per level


def previous_forward(fusion: DynamicFusion, features) -> torch.Tensor:
    """All levels in one loop, as before there were steps."""
    size = features[fusion.target_level].shape[2:]
    weights = fusion.level_weights(features, size)
    fused = None
    for i, (x, (conv, norm, activation)) in enumerate(zip(features, fusion.scale_convs)):
        finer = any(old > new for old, new in zip(x.shape[2:], size))
        if finer:
            x = conv(getattr(F, f"adaptive_avg_pool{len(size)}d")(x, tuple(size)))
        elif x.shape[2:] == size:
            x = conv(x)
        else:
            x = F.interpolate(conv(x), size=size, mode={2: "bilinear", 3: "trilinear"}[len(size)])
        level = activation(norm(x)) * weights[:, i, None, None, None].reshape(-1, *[1] * (x.ndim - 1))
        fused = level if fused is None else fused + level
    return fused


@pytest.mark.parametrize("target_level", range(4))
@pytest.mark.parametrize("spatial_dims, sizes", [(2, PYRAMIDS["odd"]), (3, VOLUMES["odd"])], ids=["2d", "3d"])
def test_steps_are_the_loop(spatial_dims, sizes, target_level):
    fusion = used_fusion(target_level, spatial_dims).train()
    other, features = copy.deepcopy(fusion), [x.detach().requires_grad_() for x in pyramid(sizes)]
    mine = run_plainly(fusion.steps(), State(levels=tuple(features))).current()
    expected = previous_forward(other, features)
    first = torch.autograd.grad(mine.square().sum(), [*features, *fusion.parameters()])
    second = torch.autograd.grad(expected.square().sum(), [*features, *other.parameters()])
    found, wanted = [mine, *first, *fusion.buffers()], [expected, *second, *other.buffers()]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_a_level_is_dropped_once_it_is_added():
    fusion, state = used_fusion(2), State(levels=tuple(pyramid(PYRAMIDS["odd"])))
    counts = []
    for step in fusion.steps():
        state = step.run(state)
        counts.append(len(state.tensors()))
    assert [step.name for step in fusion.steps()] == ["fusion weights", *(f"fusion level {i}" for i in range(4))]
    assert counts == [5, 5, 4, 3, 1]  # levels, weights, sum


def test_fusion_is_copied_and_pickled_after_use():
    fusion, features = used_fusion(0).eval(), pyramid(PYRAMIDS["even"])
    expected = fusion(features)
    for again in (copy.deepcopy(fusion), pickle.loads(pickle.dumps(fusion))):
        assert torch.equal(again(features), expected)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="unknown norm 'instance'"):
        DynamicFusion(CHANNELS, 5, norm="instance")


@pytest.mark.parametrize("target_level", range(4))
def test_the_result_has_the_size_of_the_target_level(target_level):
    sizes = PYRAMIDS["floored"]
    assert used_fusion(target_level).eval()(pyramid(sizes)).shape == (3, 5, *sizes[target_level])


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("spatial_dims, sizes", [(2, PYRAMIDS["one place"]), (3, VOLUMES["cube"])], ids=["2d", "3d"])
def test_one_image_trains_where_the_map_has_one_place(spatial_dims, sizes, norm):
    fusion = used_fusion(3, spatial_dims, norm, 32).train()
    result = fusion(pyramid(sizes, batch=1))
    assert result.shape == (1, 32, *[1] * spatial_dims) and result.isfinite().all()
    result.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in fusion.parameters())


def test_mixed_precision_stays_near_float32():
    fusion, features = used_fusion(0).float().eval(), [x.float() for x in pyramid(PYRAMIDS["odd"])]
    with torch.autocast("cpu", torch.bfloat16):
        low = fusion(features)
    torch.testing.assert_close(low.float(), fusion(features), rtol=0.05, atol=0.05)
