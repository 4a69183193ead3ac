"""Every registered backbone keeps its promises; maps equal timm's own features_only models with the same weights."""

from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn

from configs.errors import ModelError
from models.backbones import BaseVisionBackbone, create_backbone, list_backbones
from models.backbones.timm_backbones import TIMM_BACKBONES
from test_modern_models import smallest_of_each_family

SMALL = smallest_of_each_family(list_backbones())
LARGER = [name for name in list_backbones() if name not in SMALL]


@cache
def build(name: str, size: tuple[int, int], in_channels: int = 3) -> BaseVisionBackbone:
    torch.manual_seed(0)
    return create_backbone(name, in_channels=in_channels, image_size=size).eval()


def assert_promised_pyramid(backbone: BaseVisionBackbone, maps: list[Tensor], size: tuple[int, int]) -> None:
    """Channels first, channels and strides as announced, finest first."""
    assert len(maps) == len(backbone.feature_channels) == len(backbone.feature_strides)
    assert sorted(backbone.feature_strides) == backbone.feature_strides
    for x, channels, stride in zip(maps, backbone.feature_channels, backbone.feature_strides):
        assert x.shape[:2] == (2, channels)
        for side, length in zip(size, x.shape[2:]):
            assert length in (side // stride, -(-side // stride)), f"{side} at stride {stride} gave {length}"


def test_families_are_told_apart():
    assert {"resnet18", "convnext_tiny", "swin_tiny", "efficientnetv2_s", "tf_efficientnet_lite0"} <= set(SMALL)
    assert len(SMALL) < len(list_backbones())


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 96)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_channels_and_strides_are_true(name, size):
    backbone = build(name, size)
    with torch.no_grad():
        maps = backbone.forward_features(torch.randn(2, 3, *size))
    assert_promised_pyramid(backbone, maps, size)
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("name", LARGER)
def test_channels_and_strides_of_larger_members_are_true(name):
    """Without memory and time: only shapes are computed on the meta device."""
    for size, in_channels in (((64, 64), 3), ((64, 96), 1)):
        with torch.device("meta"):
            backbone = create_backbone(name, in_channels=in_channels, image_size=size).eval()
        maps = backbone.forward_features(torch.empty(2, in_channels, *size, device="meta"))
        assert_promised_pyramid(backbone, maps, size)


@pytest.mark.parametrize("size", [(65, 71), (33, 100)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_sizes_that_strides_do_not_divide(name, size):
    backbone = build(name, size)
    with torch.no_grad():
        assert_promised_pyramid(backbone, backbone.forward_features(torch.randn(2, 3, *size)), size)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_members_run(name):
    """About 10 s together."""
    backbone = create_backbone(name, image_size=(64, 64)).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        assert_promised_pyramid(backbone, backbone.forward_features(x), (64, 64))
        assert backbone(x).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_no_parameter_is_left_over(name):
    """Pruned to what the four levels need: classifier, last norm and the like are gone."""
    backbone = build(name, (64, 64))
    backbone.zero_grad()
    torch.cat([x.flatten() for x in backbone.forward_features(torch.randn(1, 3, 64, 64))]).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("in_channels, feature_dim", [(3, None), (1, 10)])
@pytest.mark.parametrize("name", SMALL)
def test_forward_is_the_projected_mean_of_the_coarsest_level(name, in_channels, feature_dim):
    torch.manual_seed(0)
    backbone = create_backbone(name, False, in_channels, feature_dim, image_size=(64, 64)).eval()
    x = torch.randn(2, in_channels, 64, 64)
    with torch.no_grad():
        expected = backbone.forward_features(x)[-1].mean((2, 3))
        if feature_dim:
            expected = expected @ backbone.projection.weight.T + backbone.projection.bias
        torch.testing.assert_close(backbone(x), expected)
    assert backbone.feature_dim == expected.shape[1] == (feature_dim or backbone.feature_channels[-1])


def reference_maps(name: str, backbone: BaseVisionBackbone, x: Tensor) -> list[Tensor]:
    """timm's features_only model with the same weights: other wrapper, other code path, names with _ for dots."""
    spec = TIMM_BACKBONES[name]
    options = {"img_size": x.shape[2:]} if spec.sized else {}
    model = timm.create_model(spec.timm_name, features_only=True, **options).eval()
    weights = {key.replace(".", "_"): tensor for key, tensor in backbone.body.state_dict().items()}
    names = {key.replace(".", "_"): key for key in model.state_dict()}
    shared = names.keys() & weights.keys()
    assert {names[key] for key in names.keys() - shared} <= {k for k in names.values() if "norm" in k or "bn" in k}
    model.load_state_dict({names[key]: weights[key] for key in shared}, strict=False)
    maps = model(x)[-len(backbone.feature_channels) :]
    if "swin" in spec.timm_name:  # channels last in this wrapper
        maps = [y.permute(0, 3, 1, 2) for y in maps]
    return maps


@pytest.mark.parametrize("name", [name for name in SMALL if name in TIMM_BACKBONES])
def test_maps_are_those_of_timms_own_wrapper(name):
    backbone, x = build(name, (64, 96)), torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, theirs in zip(backbone.forward_features(x), reference_maps(name, backbone, x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_drop_path_acts_in_training_only(name):
    """BatchNorm kept in eval mode, so that nothing but drop-path can make two passes differ."""

    def passes(drop_path: float, training: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        backbone = create_backbone(name, drop_path=drop_path, image_size=(64, 64)).train(training)
        for module in backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
                # timm's residual branches begin at zero, and dropping zero shows nothing.
                nn.init.ones_(module.weight)
            if hasattr(module, "gamma") and isinstance(module.gamma, nn.Parameter):
                nn.init.ones_(module.gamma)
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            return backbone(x), backbone(x)

    assert not torch.equal(*passes(0.9, True))
    assert torch.equal(*passes(0.9, False))
    assert torch.equal(*passes(0.0, True))


@pytest.mark.parametrize("name", list_backbones())
def test_normalisation_is_that_of_the_published_weights_and_only_resnets_are_classic(name):
    with torch.device("meta"):
        backbone = create_backbone(name)
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


@pytest.mark.parametrize("wrong", ["vim_small", "", "🫁"])
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
