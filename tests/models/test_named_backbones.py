"""Backbones as classes: the networks of the registry, under the names of the field."""

import copy
import pickle

import pytest
import torch

import models
from configs.errors import ModelError
from models.backbones import BaseVisionBackbone, create_backbone, list_backbones, named
from models.backbones.named import SwinTransformer3DBackbone, TimmFamily

CLASSES = {cls.__name__: cls for cls in TimmFamily.__subclasses__()}
# The smallest of each, as the field says it, and its name in the registry.
SMALLEST = {
    "ResNetBackbone": (18, "resnet18"),
    "MobileNetBackbone": ("v3_small", "mobilenetv3_small"),
    "EfficientNetBackbone": ("b0", "efficientnet_b0"),
    "EfficientNetV2Backbone": ("s", "efficientnetv2_s"),
    "ConvNeXtBackbone": ("tiny", "convnext_tiny"),
    "RegNetBackbone": ("004", "regnety_004"),
    "DenseNetBackbone": ("121", "densenet121"),
    "MaxViTBackbone": ("tiny", "maxvit_tiny"),
    "ViTBackbone": ("tiny", "vit_tiny"),
    "SwinTransformer2DBackbone": ("tiny", "swin_tiny"),
    "SwinTransformer3DBackbone": ("tiny", "swin3d_tiny"),
}
SLOW = pytest.mark.slow
QUICK = {"ResNetBackbone", "MobileNetBackbone", "RegNetBackbone", "ViTBackbone", "SwinTransformer3DBackbone"}


def build(kind: str, **options) -> BaseVisionBackbone:
    torch.manual_seed(0)
    size = (16, 32, 32) if kind == "SwinTransformer3DBackbone" else 64
    return getattr(models, kind)(SMALLEST[kind][0], image_size=size, **options)


def test_every_family_is_exported():
    exported = {name for name in vars(models) if name.endswith("Backbone")} - {"BaseVisionBackbone"}
    assert {*CLASSES, "SwinTransformer3DBackbone"} == set(SMALLEST)
    assert exported == {*SMALLEST, "VisionMambaBackbone"} == set(named.__all__)
    assert all(getattr(models.backbones, name) is getattr(models, name) for name in exported)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in QUICK else SLOW) for kind in SMALLEST])
def test_it_is_the_network_of_the_registry(kind):
    mine = build(kind, in_channels=1, feature_dim=6)
    torch.manual_seed(0)
    theirs = create_backbone(SMALLEST[kind][1], in_channels=1, feature_dim=6, image_size=mine.image_size)
    assert isinstance(mine, BaseVisionBackbone) and isinstance(mine, type(theirs))
    a, b = mine.state_dict(), theirs.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
    x = torch.randn(2, 1, *mine.image_size)
    with torch.no_grad():
        assert torch.equal(mine.eval()(x), theirs.eval()(x)) and mine(x).shape == (2, 6)


@pytest.mark.parametrize(
    "kind",
    ["MobileNetBackbone", *(pytest.param(f"{n}Backbone", marks=SLOW) for n in ("ResNet", "SwinTransformer2D"))]
    + [pytest.param("SwinTransformer3DBackbone", marks=SLOW)],
)
def test_copies_and_checkpointing_work(kind):
    backbone = build(kind).train()
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        twin.enable_gradient_checkpointing(3)
        assert type(twin) is type(backbone) and twin.is_gradient_checkpointing_enabled()
        x = torch.randn(2, 3, *backbone.image_size)
        backbone.zero_grad()
        for network in (backbone, twin):
            network(x).square().sum().backward()
        pairs = [(p.grad, q.grad) for p, q in zip(backbone.parameters(), twin.parameters(), strict=True)]
        # Levels that `forward` does not read have none.
        assert all((p is None and q is None) or torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("kind", SMALLEST)
def test_an_unknown_variant_is_refused_with_those_there_are(kind):
    for wrong in ("giant", "", 51):
        with pytest.raises(ModelError, match=f"unknown .*variant.*'{wrong}'.*: one of ") as caught:
            getattr(models, kind)(wrong)
        assert str(SMALLEST[kind][0]) in str(caught.value)


def test_variants_are_the_registrys_and_defaults_are_among_them():
    reached = [name for cls in CLASSES.values() for name in cls.variants().values()]
    assert len(reached) == len(set(reached)) and set(reached) <= set(list_backbones())
    assert all(cls.default in cls.variants() for cls in CLASSES.values())
    families = ("resnet", "mobilenet", "efficientnet_", "tf_e", "efficientnetv2", "convnext_", "convnextv2", "regnet")
    expected = [n for n in list_backbones() if n.startswith((*families, "densenet", "maxvit", "vit_", "dino", "swin"))]
    assert sorted(reached) == [name for name in expected if not name.startswith("swin3d")]


def test_without_arguments():
    """Defaults: 224 px or 64³, three channels, a vector as long as the coarsest level has channels."""
    with torch.device("meta"):
        for cls in [*CLASSES.values(), SwinTransformer3DBackbone]:
            backbone = cls()
            assert backbone.image_size == ((224, 224) if backbone.spatial_dims == 2 else (64, 64, 64))
            assert backbone.in_channels == 3 and backbone.feature_dim == backbone.feature_channels[-1]


def test_a_file_of_weights_is_read(tmp_path):
    weights = {key.removeprefix("body."): tensor for key, tensor in build("ResNetBackbone").state_dict().items()}
    torch.save({key: torch.ones_like(tensor) for key, tensor in weights.items()}, tmp_path / "w.pth")
    backbone = models.ResNetBackbone(18, str(tmp_path / "w.pth"), image_size=64)
    assert all(bool((tensor == 1).all()) for tensor in backbone.state_dict().values())


def test_sizes_have_one_number_an_axis():
    with pytest.raises(ModelError, match="is for images, not for a size of 8×8×8"):
        models.ResNetBackbone(18, image_size=(8, 8, 8))
    with pytest.raises(ModelError, match="is for volumes, not for a size of 8×8"):
        models.SwinTransformer3DBackbone(image_size=(8, 8))


def test_vision_mamba():
    torch.manual_seed(0)
    mine = models.VisionMambaBackbone("tiny", in_channels=1, feature_dim=6, image_size=32)
    torch.manual_seed(0)
    theirs = create_backbone("vim_tiny", in_channels=1, feature_dim=6, image_size=(32, 32))
    a, b = mine.state_dict(), theirs.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
    with torch.no_grad():
        assert mine(torch.randn(2, 1, 32, 32)).shape == (2, 6)
    with pytest.raises(ModelError, match="giant"):
        models.VisionMambaBackbone("giant")


def test_the_whole_name_is_a_variant_too():
    assert models.ResNetBackbone("resnet18", image_size=64).name == "resnet18"
    assert models.ConvNeXtBackbone.variants()["v2_tiny"] == models.ConvNeXtBackbone._registered("convnextv2_tiny")
