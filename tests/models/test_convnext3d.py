"""ConvNeXt for volumes against timm's 2-D network with the same weights, and against its own formula."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import ModelError
from models.backbones.convnext3d import ConvNeXt3D, inflate_convnext
from models.backbones.inflation import inflate, pad_to_divisor
from utils.blocks import State, run_plainly

CHANNELS = (96, 192, 384, 768)


@pytest.fixture(scope="module")
def flat() -> nn.Module:
    """timm's network with every part at work: a fresh one's layer scales of 1e-6 would hide the blocks."""
    torch.manual_seed(0)
    model = timm.create_model("convnext_tiny").eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.2, 1)
        elif parameter.ndim == 1:
            nn.init.normal_(parameter, float(name.endswith("weight")), 0.2)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def inflated(flat) -> nn.Module:
    return ConvNeXt3D(weights=flat.state_dict()).eval().requires_grad_(False)


def slices(size: int, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def levels_of(flat: nn.Module, x: Tensor) -> list[Tensor]:
    return copy.deepcopy(flat).double().forward_intermediates(x, intermediates_only=True)


# ---- inflation


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_an_inflated_kernel_does_the_same_in_every_slice(depth):
    x, kernel = slices(8), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    volume = x[:, :, None].expand(-1, -1, depth + 2, -1, -1)
    result = F.conv3d(volume, inflate(kernel, depth))
    assert result.shape[2] == 3
    for i in range(3):
        torch.testing.assert_close(result[:, :, i], F.conv2d(x, kernel), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first_axis, shape", [(1, (2, 3, 4, 5, 6)), (2, (2, 6, 3, 4, 5))], ids=str)
def test_padding_is_zeros_at_the_end(first_axis, shape):
    x = torch.ones(shape)
    padded = pad_to_divisor(x, 4, first_axis)
    assert padded.shape[first_axis : first_axis + 3] == (4, 4, 8) and padded.sum() == x.numel()
    corner = [slice(None)] * first_axis + [slice(0, n) for n in (3, 4, 5)]
    assert padded[tuple(corner)].min() == 1
    assert pad_to_divisor(padded, 4, first_axis) is padded


def test_features_of_a_constant_volume_are_those_of_its_slice(flat, inflated):
    """With the ends repeated instead of zeros beyond them, which leaves nothing but the weights: every level."""
    model, x = copy.deepcopy(inflated).double(), slices(64)
    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 7:
            module.padding = (0, 3, 3)
            module.register_forward_pre_hook(lambda _, args: F.pad(args[0], (0, 0, 0, 0, 3, 3), mode="replicate"))
    result = model.forward_features(x[:, :, None].expand(-1, -1, 32, -1, -1))
    for level, expected in zip(result, levels_of(flat, x), strict=True):
        for i in range(level.shape[2]):
            torch.testing.assert_close(level[:, :, i], expected, rtol=1e-6, atol=1e-6)


def test_away_from_the_ends_zeros_do_not_matter(flat, inflated):
    """The network as it is: three blocks of radius 3 reach 9 slices into the first level's map."""
    x = slices(32)
    model = copy.deepcopy(inflated).double()
    volume = x[:, :, None].expand(-1, -1, 20 * 4, -1, -1)
    (level,) = run_plainly(model.blocks(volume)[:4], State(volume)).levels
    expected = levels_of(flat, x)[0]
    assert level.shape == (1, 96, 20, 8, 8)
    for i in (9, 10):
        torch.testing.assert_close(level[:, :, i], expected, rtol=1e-6, atol=1e-6)
    assert (level[:, :, 0] - expected).abs().max() > 1e-3


# ---- the module


def test_a_block_is_its_formula(inflated):
    block = copy.deepcopy(inflated.stages[0].blocks[1]).double()
    x = torch.randn(1, 96, 2, 3, 4, dtype=torch.float64)
    y, padded = block(x), F.pad(x, [3] * 6)
    for d, h, w in np.ndindex(2, 3, 4):
        cube = padded[0, :, d : d + 7, h : h + 7, w : w + 7]
        z = (cube * block.conv_dw.weight[:, 0]).sum((1, 2, 3)) + block.conv_dw.bias
        z = (z - z.mean()) / (z.var(correction=0) + 1e-6).sqrt() * block.norm.weight + block.norm.bias
        z = block.mlp["fc1"].weight @ z + block.mlp["fc1"].bias
        z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
        z = block.mlp["fc2"].weight @ z + block.mlp["fc2"].bias
        torch.testing.assert_close(y[0, :, d, h, w], x[0, :, d, h, w] + block.gamma * z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("in_channels, size", [(1, (32, 32, 32)), (3, (20, 33, 47)), (1, (3, 16, 2))], ids=str)
def test_any_size_gives_four_levels(in_channels, size):
    backbone = ConvNeXt3D(in_channels=in_channels, feature_dim=5, image_size=size)
    x = torch.randn(1, in_channels, *size)
    for level, channels, stride in zip(backbone.forward_features(x), CHANNELS, (4, 8, 16, 32), strict=True):
        assert level.shape == (1, channels, *(-(-side // stride) for side in size)) and level.isfinite().all()
    assert backbone(x).shape == (1, 5) and backbone.spatial_dims == 3 and backbone.image_size == size


def test_a_step_reaches_every_parameter():
    backbone = ConvNeXt3D(in_channels=1).train()
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    torch.manual_seed(0)
    sum(y.square().sum() for y in backbone.forward_features(torch.randn(2, 1, 32, 32, 32))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_layer_scales_start_at_the_papers_value():
    scales = [p for name, p in ConvNeXt3D().named_parameters() if name.endswith("gamma")]
    assert len(scales) == 18 and all(bool((scale == 1e-6).all()) for scale in scales)


def test_drop_path_grows_with_depth():
    rates = [module.drop_prob for module in ConvNeXt3D(drop_path=0.34).modules() if hasattr(module, "drop_prob")]
    assert rates == pytest.approx([0.02 * i for i in range(18)])


def test_blocks_are_the_architectures_own():
    backbone = ConvNeXt3D()
    names = [step.name for step in backbone.blocks(torch.empty(0))]
    assert len(names) == 1 + 18 + 3 and names[:5] == [
        "stem",
        *(f"level 0 block {i}" for i in range(3)),
        "downsampling 1",
    ]
    x = torch.randn(1, 3, 16, 16, 16)
    backbone.eval()
    for again in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(again(x), backbone(x))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ModelError, match="'base': one of tiny"):
        ConvNeXt3D("base")


# ---- weights


def test_every_tensor_is_inflated_or_copied(flat, inflated):
    source, mine = flat.state_dict(), inflated.state_dict()
    assert {key for key in source if key not in mine} == {
        f"head.{k}" for k in ("norm.weight", "norm.bias", "fc.weight", "fc.bias")
    }
    for key, tensor in mine.items():
        if tensor.ndim < 5:
            assert torch.equal(tensor, source[key]), key
        else:
            assert tensor.shape[2] == tensor.shape[3] == tensor.shape[4]
            torch.testing.assert_close(tensor.sum(2), source[key], rtol=1e-5, atol=1e-6)


def test_one_channel_sums_the_filters_of_three(flat, inflated):
    grey = ConvNeXt3D(weights=flat.state_dict(), in_channels=1)
    torch.testing.assert_close(grey.stem[0].weight, inflated.stem[0].weight.sum(1, keepdim=True))


def test_its_own_weights_load_strictly(inflated):
    source = inflated.state_dict()
    again = ConvNeXt3D(weights=source, feature_dim=5)
    assert all(torch.equal(tensor, source[key]) for key, tensor in again.state_dict().items() if key in source)
    with pytest.raises(ModelError, match=r"do not fit convnext3d_tiny: .*stem\.0\.weight"):
        ConvNeXt3D(weights=source, in_channels=1)
    with pytest.raises(ModelError, match=r"Unexpected key.*extra"):
        ConvNeXt3D(weights={**source, "extra": torch.zeros(1)})


@pytest.mark.parametrize("name", ["resnet18", pytest.param("convnext_small", marks=pytest.mark.slow)])
def test_weights_of_another_network_are_refused(name):
    with pytest.raises(ModelError, match="do not fit convnext3d_tiny"):
        ConvNeXt3D(weights=timm.create_model(name).state_dict())


def test_without_the_published_weights_the_ways_on_are_named(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="'convnext3d_tiny' are not available") as caught:
        ConvNeXt3D(weights=True)
    assert "MODEL.pretrained=false" in str(caught.value)


def test_inflate_convnext_leaves_vectors_and_matrices():
    weights = {"a": torch.randn(3), "b": torch.randn(3, 4), "c": torch.randn(3, 1, 7, 7)}
    result = inflate_convnext(weights)
    assert result["a"] is weights["a"] and result["b"] is weights["b"] and result["c"].shape == (3, 1, 7, 7, 7)
