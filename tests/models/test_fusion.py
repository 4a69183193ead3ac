"""DynamicFusion against the direct way: resize every level first, then convolve, normalise and weigh."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.fusion import DynamicFusion

CHANNELS = [4, 6, 8, 10]
PYRAMIDS = {
    "even": [(16, 16), (8, 8), (4, 4), (2, 2)],
    "odd": [(25, 25), (13, 13), (7, 7), (4, 4)],
    "floored": [(25, 19), (12, 9), (6, 4), (3, 2)],
    "wide": [(8, 24), (4, 12), (2, 6), (1, 3)],
    "one place": [(2, 2), (1, 1), (1, 1), (1, 1)],
}


def direct_fusion(fusion: DynamicFusion, features: list[torch.Tensor], training: bool) -> torch.Tensor:
    """The formula as it stands, each step on full-size maps; F's functions where the module uses layers."""
    size = features[fusion.target_level].shape[2:]
    maps, means = [], []
    for x, (conv, norm, _) in zip(features, fusion.scale_convs):
        finer = x.shape[2] > size[0]
        resized = F.interpolate(x, size=size, mode="area") if finer else F.interpolate(x, size=size, mode="bilinear")
        y = torch.einsum("bchw,oc->bohw", resized, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]
        if training:
            mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        else:
            mean, variance = norm.running_mean, norm.running_var
        y = (y - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        maps.append((y * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp_min(0))
        means.append(resized.mean((2, 3)))
    scores = torch.cat(means, 1) @ fusion.weight_generator.weight.T + fusion.weight_generator.bias
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    return torch.stack([w[:, None, None, None] * y for w, y in zip(weights.T, maps)]).sum(0)


def used_fusion(target_level: int) -> DynamicFusion:
    torch.manual_seed(0)
    fusion = DynamicFusion(CHANNELS, 5, target_level).double()
    for module in fusion.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return fusion


def pyramid(sizes, batch: int = 3) -> list[torch.Tensor]:
    return [torch.randn(batch, c, *size, dtype=torch.float64, requires_grad=True) for c, size in zip(CHANNELS, sizes)]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("target_level", range(4))
@pytest.mark.parametrize("sizes", PYRAMIDS.values(), ids=PYRAMIDS)
def test_fusion_is_the_direct_formula(sizes, target_level, training):
    """1×1 convolutions commute with resizing; batch statistics and gradients are the same too."""
    fusion, features = used_fusion(target_level).train(training), pyramid(sizes)
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


def test_weights_add_up_to_one_and_depend_on_the_picture():
    fusion, features = used_fusion(0).eval(), pyramid(PYRAMIDS["even"])
    weights = fusion.level_weights(features, (16, 16))
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert (weights[0] - weights[1]).abs().max() > 1e-3


@pytest.mark.parametrize("target_level", range(4))
def test_the_result_has_the_size_of_the_target_level(target_level):
    sizes = PYRAMIDS["floored"]
    assert used_fusion(target_level).eval()(pyramid(sizes)).shape == (3, 5, *sizes[target_level])


def test_one_picture_trains_where_the_map_has_one_place():
    fusion = used_fusion(3).train()
    result = fusion(pyramid(PYRAMIDS["one place"], batch=1))
    assert result.shape == (1, 5, 1, 1) and result.isfinite().all()


def test_mixed_precision_stays_near_float32():
    fusion, features = used_fusion(0).float().eval(), [x.float() for x in pyramid(PYRAMIDS["odd"])]
    with torch.autocast("cpu", torch.bfloat16):
        low = fusion(features)
    torch.testing.assert_close(low.float(), fusion(features), rtol=0.05, atol=0.05)
