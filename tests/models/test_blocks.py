"""Blocks name what they are made of: every parameter of a network is in one, and a block calls what it names."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from configs.default_config import Config
from models.backbones import backbone_dims, list_backbones
from models.backbones.families import smallest_of_each_family
from models.hybrid_med_net import HybridMedNet
from utils.blocks import Block, State

FAST = smallest_of_each_family(list_backbones())
REGISTRY = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in list_backbones()]
# Parts behind the backbone, by settings: every attention with and without FPN, and both heads.
NECKS = [
    ["MODEL.attention=none", "MODEL.fpn=false"],
    ["MODEL.attention=cbam", "MODEL.fpn=true"],
    ["MODEL.attention=multi_scale", "MODEL.fpn=true", "MODEL.hierarchical=true", "MODEL.num_coarse_classes=2"],
    ["MODEL.attention=cross_scale", "MODEL.fpn=false"],
]
# timm's families that run as one block: theirs is the whole body, of which parts are called.
WHOLE = "timm/edgenext_xx_small"


def outline(backbone: str, *overrides: str) -> HybridMedNet:
    """A network of shapes without memory, in training."""
    size = 64 if backbone_dims(backbone) == 2 else [64, 64, 64]
    settings = [f"MODEL.backbone={backbone}", f"DATA.image_size={size}", *overrides]
    config = Config.from_overrides(settings).without_pretrained()
    with torch.device("meta"):
        return HybridMedNet(config).train()


def blocks_of(model: HybridMedNet) -> list[Block]:
    return model.blocks(torch.empty(2, model.in_channels, *model.image_size, device="meta"))


@contextmanager
def called_outermost(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Modules that are called while no other one is."""
    called: list[nn.Module] = []
    depth = 0

    def enter(module: nn.Module, arguments: tuple) -> None:
        nonlocal depth
        if depth == 0:
            called.append(module)
        depth += 1

    def leave(module: nn.Module, arguments: tuple, result: object) -> None:
        nonlocal depth
        depth -= 1

    handles = [module.register_forward_pre_hook(enter) for module in model.modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def assert_blocks_name_what_they_call(model: HybridMedNet) -> None:
    names = {module: name for name, module in model.named_modules()}
    state = State(torch.empty(2, model.in_channels, *model.image_size, device="meta"))
    for step in blocks_of(model):
        with called_outermost(model) as called, torch.no_grad():
            state = step.run(state)
        assert {names[m] for m in called} == {names[m] for m in step.modules}, step.name
    assert state.logits is not None


def assert_each_parameter_is_in_one_block(model: HybridMedNet) -> None:
    owners = Counter(parameter for step in blocks_of(model) for parameter in step.all_parameters())
    assert len(owners) > 10
    assert {name: owners[p] for name, p in model.named_parameters() if owners[p] != 1} == {}  # none is shared


@pytest.mark.parametrize("backbone", REGISTRY)
def test_each_parameter_is_in_one_block(backbone):
    assert_each_parameter_is_in_one_block(outline(backbone))


@pytest.mark.parametrize("backbone", REGISTRY)
def test_blocks_call_the_modules_that_they_name(backbone):
    assert_blocks_name_what_they_call(outline(backbone))


@pytest.mark.parametrize("neck", NECKS, ids=" ".join)
def test_blocks_behind_the_backbone(neck):
    for backbone in ("resnet18", "convnext3d_tiny"):
        model = outline(backbone, *neck)
        assert_each_parameter_is_in_one_block(model)
        assert_blocks_name_what_they_call(model)


def test_a_family_that_is_not_known_is_one_block_of_all_its_modules():
    model = outline(WHOLE)
    assert_each_parameter_is_in_one_block(model)
    first, state = blocks_of(model)[0], State(torch.empty(2, 3, 64, 64, device="meta"))
    assert first.modules == (model.backbone.body,)
    with called_outermost(model) as called:
        first.run(state)
    inside = set(model.backbone.body.modules())
    assert called and set(called) <= inside


def test_a_state_names_its_tensors():
    x, level = torch.zeros(1), torch.ones(2)
    state = State(x, (level, level), size=(3, 4), logits=(x, level))
    assert [id(tensor) for tensor in state.tensors()] == [id(t) for t in (x, level, level, x, level)]
    with pytest.raises(AssertionError, match="left no map"):
        State(levels=(level,)).current()
