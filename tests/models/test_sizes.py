"""Sizes: every backbone runs on an image of any size, or refuses it in words that name the least side."""

import re
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

import models.backbones.sizes as sizes
from configs.default_config import Config
from configs.errors import ModelError
from models import HybridMedNet, backbone_dims, check_backbone, create_backbone, list_backbones
from models.backbones import ConvNeXtBackbone
from models.backbones.families import smallest_of_each_family

SLOW = pytest.mark.slow
Built = TypeVar("Built")
SIZES = [(28, 28, 28), (31, 31, 31), (32, 32, 32), (28, 31, 30), (96, 31, 28), (1, 1, 1), (5, 40, 33), (63, 33, 17)]
REFUSING = {"convnext_tiny": 32, "densenet121": 29, "swin_tiny": 4}
SMALL = smallest_of_each_family(list_backbones())
# Families that take sizes as the others of their kind do.
QUICK = {"resnet18", "convnext_tiny", "mobilenetv3_small", "efficientvim_m1", "swin3d_tiny", "convnext3d_tiny"}


def size_for(name: str, size: tuple[int, ...]) -> tuple[int, ...]:
    return size[: backbone_dims(name)]


def network(name: str, size: tuple[int, ...], **model) -> HybridMedNet:
    config = Config()
    values = {"backbone": name, "pretrained": False, "fpn_channels": 8, "fusion_channels": 16, "num_classes": 2}
    for key, value in {**values, "input_size": list(size), **model}.items():
        config.MODEL[key] = value
    config.DATA.image_size = list(size)
    return HybridMedNet(config)


def built(name: str, size: tuple[int, ...], make: Callable[..., Built]) -> Built | None:
    """make(name, size); None where it is refused as it should be."""
    try:
        return make(name, size)
    except ModelError as error:
        least = re.search(r"no side may be below (\d+) pixels", str(error))
        assert least is not None and int(least[1]) > min(size), error
        assert name in str(error) and "×".join(map(str, size)) in str(error) and "DATA.image_size" in str(error)
        return None


def reaches_all_levels(name: str, size: tuple[int, ...]) -> None:
    """A training step of one image on tensors without values."""
    with torch.device("meta"):
        backbone = built(name, size, lambda name, size: create_backbone(name, image_size=size))
        if backbone is not None:
            maps = backbone.train().forward_features(torch.zeros(1, 3, *size))
            sum(level.sum() for level in maps).backward()
            assert all(level.numel() > 0 for level in maps)


def gives_finite_numbers(name: str, size: tuple[int, ...]) -> None:
    """A training step of one image through the whole network, and its evaluation."""
    torch.manual_seed(0)
    model, x = built(name, size, network), torch.randn(1, 3, *size)
    if model is None:
        return
    logits = model.train()(x)
    logits.square().sum().backward()
    assert logits.shape == (1, 2) and logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=SLOW) for n in SMALL])
@pytest.mark.parametrize("size", [s if s in SIZES[:1] else pytest.param(s, marks=SLOW) for s in SIZES], ids=str)
def test_small_images_run_or_are_refused(name, size):
    reaches_all_levels(name, size_for(name, size))


@SLOW
@pytest.mark.parametrize("name", [name for name in list_backbones() if name not in SMALL])
def test_the_rest_of_the_registry(name):
    for size in SIZES:
        reaches_all_levels(name, size_for(name, size))


@SLOW
@pytest.mark.parametrize("name", SMALL)
def test_small_images_give_finite_numbers(name):
    for size in SIZES:
        gives_finite_numbers(name, size_for(name, size))


@pytest.mark.parametrize("name", [n if n == "convnext_tiny" else pytest.param(n, marks=SLOW) for n in REFUSING])
def test_the_least_side_is_the_least(name):
    """ConvNeXt: 4 · 2 · 2 · 2, rounded down each time; DenseNet: ⌈⌈29 / 2⌉ / 2⌉ = 8, halved thrice; Swin: a patch."""
    least = REFUSING[name]
    check_backbone(name, (least, least))
    for size in [(least - 1, 96), (1, 1)]:
        with pytest.raises(ModelError, match=rf"'{name}' does not run on {size[0]}×{size[1]} .* below {least} pixels"):
            check_backbone(name, size)


@pytest.mark.parametrize("settings", [{"attention": "cbam", "fpn": True}, {"attention": "multi_scale"}, {}], ids=str)
def test_one_pixel_trains_in_every_form_of_the_network(settings):
    model = network("resnet18", (1, 1), num_heads=2, **settings).train()
    logits = model(torch.randn(1, 3, 1, 1))
    logits.sum().backward()
    assert logits.isfinite().all()


@SLOW
def test_densenet_trains_on_one_image_whose_coarsest_map_is_one_value():
    """33 to 63 pixels; the norms that see more than one value learn their statistics, the others keep them."""
    backbone = create_backbone("densenet121", image_size=(40, 40)).train()
    maps = backbone.forward_features(torch.randn(1, 3, 40, 40))
    assert maps[-1].shape[2:] == (1, 1) and maps[-1].isfinite().all()
    assert backbone.body.features.norm0.num_batches_tracked == 1
    assert backbone.body.features.denseblock4.denselayer1.norm1.num_batches_tracked == 0
    assert all(module.training for module in backbone.modules())


def test_another_size_than_it_is_built_for_is_refused_too():
    backbone = create_backbone("timm/test_convnext", image_size=(64, 64))
    with pytest.raises(ModelError, match="'timm/test_convnext' does not run on 28×64 images: no side may be below 32"):
        backbone.forward_features(torch.randn(1, 3, 28, 64))
    with pytest.raises(ModelError, match="does not run on 16×16 images"):
        ConvNeXtBackbone("tiny", image_size=16)


@pytest.mark.parametrize("size", [(0, 32), (-4, 32)], ids=str)
def test_no_pixels_are_no_size(size):
    with pytest.raises(ModelError, match=r"resnet18 is for images, not for a size of"):
        check_backbone("resnet18", size)


def test_a_size_is_tried_once_and_costs_no_random_number(monkeypatch):
    monkeypatch.setattr(sizes, "_KNOWN", {})
    before = torch.get_rng_state()
    with pytest.raises(ModelError):
        check_backbone("convnext_tiny", (30, 30))
    monkeypatch.setattr(sizes, "_least_side", lambda *_: pytest.fail("tried again"))
    with pytest.raises(ModelError, match="below 32"):
        check_backbone("convnext_tiny", (30, 30))
    check_backbone("convnext_tiny", (64, 64))
    assert torch.equal(before, torch.get_rng_state())


def test_what_no_size_mends_is_not_called_a_size(monkeypatch):
    def broken(size):
        raise RuntimeError("never")

    monkeypatch.setattr(sizes, "_KNOWN", {})
    sizes.refuse_unfit_size("broken", (32, 32), broken)
