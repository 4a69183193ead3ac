"""Every registered backbone keeps its promises; maps equal timm's own features_only models with the same weights."""

import copy
import math
from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn

from configs.errors import ModelError
from models.backbones import BaseVisionBackbone, backbone_dims, create_backbone, list_backbones
from models.backbones.families import smallest_of_each_family
from models.backbones.timm_backbones import TIMM_BACKBONES
from tests.models.stochastic_depth import has_stochastic_depth
from utils.torch_private import BatchNorm

SMALL = smallest_of_each_family(list_backbones())
LARGER = [name for name in list_backbones() if name not in SMALL]
SLOW = pytest.mark.slow
# One of each kind; test_channels_and_strides_are_true walks all families, which have the rest in common.
QUICK = {
    *("resnet18", "mobilenetv3_small", "densenet121", "convnext_tiny", "swin_tiny", "vit_tiny"),
    *("efficientvim_m1", "vim_tiny", "swin3d_tiny", "convnext3d_tiny"),
    *("resnet50", "convnext_small", "swin_small", "vit_small", "swin3d_small"),
}


def mostly_slow(names: list[str]) -> list:
    """All but those of QUICK are marked slow."""
    return [name if name in QUICK else pytest.param(name, marks=SLOW) for name in names]


def shape_for(name: str, height: int = 64, width: int = 64) -> tuple[int, ...]:
    """(height, width), with a thin third axis in front for volumes."""
    return (height, width) if backbone_dims(name) == 2 else (16, height // 2, width // 2)


@cache
def build(name: str) -> BaseVisionBackbone:
    """In eval mode, for 64 px; tests leave it as it is."""
    torch.manual_seed(0)
    return create_backbone(name, image_size=shape_for(name)).eval()


@cache
def build_without_values(name: str, size: tuple[int, ...], in_channels: int = 3) -> BaseVisionBackbone:
    """On the meta device, where only shapes are computed; tests leave it as it is."""
    with torch.device("meta"):
        return create_backbone(name, in_channels=in_channels, image_size=size).eval()


def image(name: str, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, *shape_for(name), generator=torch.Generator().manual_seed(0))


def assert_promised_pyramid(backbone: BaseVisionBackbone, maps: list[Tensor], size: tuple[int, ...]) -> None:
    """Channels first, channels and strides as announced, finest first."""
    assert len(maps) == len(backbone.feature_channels) == len(backbone.feature_strides) == 4
    assert sorted(backbone.feature_strides) == backbone.feature_strides
    for x, channels, stride in zip(maps, backbone.feature_channels, backbone.feature_strides):
        assert x.shape[:2] == (2, channels) and x.ndim == 2 + backbone.spatial_dims
        size_divisor = getattr(backbone, "size_divisor", 1)
        for side, length in zip(size, x.shape[2:]):
            padded = -(-side // size_divisor) * size_divisor
            assert side // stride <= length <= math.ceil(padded / stride), f"{side} at stride {stride} gave {length}"


@pytest.mark.parametrize("name", SMALL)
def test_channels_and_strides_are_true(name):
    with torch.no_grad():
        maps = build(name).forward_features(image(name))
    assert_promised_pyramid(build(name), maps, shape_for(name))
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("name", mostly_slow(LARGER))
def test_channels_and_strides_of_larger_members_are_true(name):
    """Without memory and time."""
    size = shape_for(name, 64, 96)
    backbone = build_without_values(name, size, in_channels=1)
    maps = backbone.forward_features(torch.empty(2, 1, *size, device="meta"))
    assert_promised_pyramid(backbone, maps, size)


@pytest.mark.parametrize("sides", [(65, 71), *(pytest.param(s, marks=SLOW) for s in ((96, 64), (33, 100)))], ids=str)
@pytest.mark.parametrize("name", mostly_slow(SMALL))
def test_other_sizes(name, sides):
    """Those that strides do not divide are padded or rounded; a backbone may refuse one, with what it takes."""
    size = shape_for(name, *sides)
    image_size = (
        size if name not in TIMM_BACKBONES or TIMM_BACKBONES[name].fixed_input_size else shape_for(name)
    )  # no other listens
    try:
        backbone = build_without_values(name, image_size)
    except ModelError as error:
        assert name not in TIMM_BACKBONES and "multiple" in str(error)
        return
    assert_promised_pyramid(backbone, backbone.forward_features(torch.empty(2, 3, *size, device="meta")), size)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_members_run(name):
    """About 30 s together."""
    backbone, x = create_backbone(name, image_size=shape_for(name)).eval(), image(name)
    with torch.no_grad():
        assert_promised_pyramid(backbone, backbone.forward_features(x), shape_for(name))
        assert backbone(x).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_no_parameter_is_left_over(name):
    """Pruned to what the four levels need: classifier, last norm and the like are gone."""
    maps = build(name).forward_features(image(name, 1))
    parameters = dict(build(name).named_parameters())
    gradients = torch.autograd.grad(sum(x.sum() for x in maps), list(parameters.values()), allow_unused=True)
    assert [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None] == []


@pytest.mark.parametrize("name", mostly_slow(SMALL))
def test_forward_is_the_mean_of_the_coarsest_level(name):
    backbone, x = build(name), image(name)
    with torch.no_grad():
        expected = backbone.forward_features(x)[-1].flatten(2).mean(2)
        torch.testing.assert_close(backbone(x), expected)
    assert backbone.feature_dim == expected.shape[1] == backbone.feature_channels[-1]


@pytest.mark.parametrize("name", mostly_slow(SMALL))
def test_one_channel_and_a_projection(name):
    backbone = create_backbone(name, False, 1, 10, image_size=shape_for(name)).eval()
    with torch.no_grad():
        mean = backbone.forward_features(image(name, channels=1))[-1].flatten(2).mean(2)
        expected = mean @ backbone.projection.weight.T + backbone.projection.bias
        torch.testing.assert_close(backbone(image(name, channels=1)), expected)
        with pytest.raises(RuntimeError):
            backbone(image(name))
    assert backbone.feature_dim == expected.shape[1] == 10


def reference_maps(name: str, backbone: BaseVisionBackbone, x: Tensor) -> list[Tensor]:
    """timm's own forward pass of a whole model with the same weights; for one stride: the last map, normed."""
    spec, single = TIMM_BACKBONES[name], backbone.pyramid is not None
    options = {"img_size": tuple(x.shape[2:])} if spec.fixed_input_size else {}
    model = timm.create_model(spec.timm_name, **options).eval()
    missing, unexpected = model.load_state_dict(backbone.body.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith(("head", "fc", "classifier", "norm", "bn2", "conv_head", "weights")) for key in missing)
    maps = model.forward_intermediates(x, indices=None, norm=single, intermediates_only=True)
    return [level(maps[-1]) for level in backbone.pyramid] if single else maps[-len(backbone.feature_channels) :]


@pytest.mark.parametrize("name", mostly_slow([name for name in SMALL if name in TIMM_BACKBONES]))
def test_maps_are_those_of_timms_own_wrapper(name):
    """Bit for bit; of a map in EfficientViM's stem timm knows nothing. At a size that every patch divides."""
    side = 64 if 64 % TIMM_BACKBONES[name].size_divisor == 0 else 56
    backbone = build(name) if side == 64 else create_backbone(name, image_size=(side, side)).eval()
    x = image(name)[..., :side, :side].contiguous()
    with torch.no_grad():
        theirs = reference_maps(name, backbone, x)
        mine = backbone.forward_features(x)
    assert len(mine) == 4 and len(theirs) >= 3
    assert all(torch.equal(a, b) for a, b in zip(mine[-len(theirs) :], theirs, strict=True))


def wake(backbone: nn.Module) -> nn.Module:
    """Residual branches that begin at zero, or nearly so, get weight: dropping zero shows nothing.

    BatchNorm goes to eval mode, so that nothing but drop-path can make two passes differ.
    """
    for module in backbone.modules():
        if isinstance(module, BatchNorm):
            module.eval()
        if isinstance(getattr(module, "gamma", None), nn.Parameter):
            nn.init.ones_(module.gamma)
    for parameter in backbone.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return backbone


@pytest.mark.parametrize("name", mostly_slow(SMALL))
def test_drop_path_acts_in_training_only(name):
    if not has_stochastic_depth(name):
        with pytest.raises(ModelError, match=r"no stochastic depth: set MODEL\.drop_path to 0, it is 0\.1"):
            create_backbone(name, drop_path=0.1, image_size=shape_for(name))
        return
    backbone, x = create_backbone(name, drop_path=0.9, image_size=shape_for(name)), image(name)
    with torch.no_grad():
        wake(backbone.train())
        assert not torch.equal(backbone(x), backbone(x))
        backbone.eval()
        assert torch.equal(backbone(x), backbone(x))


@pytest.mark.parametrize("name", mostly_slow(SMALL))
def test_without_drop_path_training_is_not_random(name):
    backbone, x = copy.deepcopy(build(name)), image(name)
    with torch.no_grad():
        wake(backbone.train())
        assert torch.equal(backbone(x), backbone(x))


@pytest.mark.parametrize("name", SMALL)
def test_a_size_with_the_wrong_number_of_axes_is_refused(name):
    wrong = (64, 64, 64) if backbone_dims(name) == 2 else (64, 64)
    with pytest.raises(ModelError, match=f"{name} is for .*, not for a size of 64×64"):
        create_backbone(name, image_size=wrong)


@pytest.mark.parametrize("name", [*SMALL, *mostly_slow(LARGER)])
def test_normalisation_is_that_of_the_published_weights_and_only_resnets_are_classic(name):
    backbone = build(name) if name in SMALL else build_without_values(name, shape_for(name, 64, 96), in_channels=1)
    assert backbone.classic == name.startswith("resnet")
    assert len(backbone.mean) == len(backbone.std) == 3
    if name in TIMM_BACKBONES:
        published = timm.get_pretrained_cfg(TIMM_BACKBONES[name].timm_name)
        assert (backbone.mean, backbone.std) == (published.mean, published.std)
        assert published.hf_hub_id, "pretrained: true would have nothing to load"


@pytest.mark.parametrize(
    "wrong, meant", [("convnxt_tiny", "convnext_tiny"), ("resnet_50", "resnet50"), ("swin-tiny", "swin_tiny")]
)
def test_an_unknown_name_is_refused_with_its_neighbour(wrong, meant):
    with pytest.raises(ModelError, match=f"'{wrong}': did you mean '{meant}'.*all {len(list_backbones())}"):
        create_backbone(wrong)


@pytest.mark.parametrize("wrong", ["mamba", "", "🫁"])
def test_an_unknown_name_far_from_all_lists_what_there_is(wrong):
    with pytest.raises(ModelError, match="unknown backbone") as caught:
        create_backbone(wrong)
    if "did you mean" not in str(caught.value):
        assert all(name in str(caught.value) for name in list_backbones())


@pytest.mark.parametrize("size", [(96, 96), (64, 32), (96, 64)], ids=str)
def test_a_backbone_tied_to_its_size_says_so(size):
    backbone = create_backbone("swin_tiny", image_size=(64, 64))
    with pytest.raises(ModelError, match=rf"64×64 .* got {size[0]}×{size[1]}: set MODEL\.input_size"):
        backbone.forward_features(torch.randn(1, 3, *size))


def test_building_is_reproducible_from_the_seed():
    def weights() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return create_backbone("resnet18").state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)
