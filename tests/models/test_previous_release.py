"""ResNets of the previous release: its weights under today's names give its very logits."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.default_config import Config
from models import HybridMedNet

LEGACY = Path(__file__).resolve().parents[2].parent / "shared" / "legacy"
VARIANTS = [
    f"{backbone}/{head}" for backbone in ("resnet34", "resnet50", "resnet101") for head in ("flat", "hierarchical")
]

pytestmark = pytest.mark.skipif(not LEGACY.is_dir(), reason="no ../shared/legacy here: goldens of the previous release")


@pytest.fixture(scope="module")
def recipe():
    """make_checkpoint.py as a module: it fills the old names with known numbers."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", LEGACY / "make_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((LEGACY / "golden.json").read_text(encoding="utf-8"))


RENAMED = (
    ("feature_extractor.backbone.conv1.0.", "backbone.body.conv1."),
    ("feature_extractor.backbone.conv1.1.", "backbone.body.bn1."),
    ("feature_extractor.backbone.", "backbone.body."),
    ("feature_extractor.fpn.", "fpn."),
    ("fusion.weight_generator.1.", "fusion.weight_generator."),
)


def renamed(old: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old names → today's; a network a class becomes rows of one matrix."""
    new: dict[str, Tensor] = {}
    classes: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, tensor in old.items():
        match = re.fullmatch(r"classifier\.classifiers\.(\d+)\.(0|3)\.(weight|bias)", name)
        if match:
            classes.setdefault((match[2], match[3]), {})[int(match[1])] = tensor
            continue
        for before, after in RENAMED:
            if name.startswith(before):
                name = after + name.removeprefix(before)
                break
        new[name] = tensor.flatten(1) if name == "fusion.weight_generator.weight" else tensor
    today = {
        ("0", "weight"): "hidden.weight",
        ("0", "bias"): "hidden.bias",
        ("3", "weight"): "weight",
        ("3", "bias"): "bias",
    }
    for part, tensors in classes.items():
        new[f"classifier.classifiers.{today[part]}"] = torch.cat([tensors[k] for k in range(len(tensors))])
    return new


def network(variant: str) -> HybridMedNet:
    """What a user of the previous release gets by naming the backbone: everything else on auto."""
    backbone, head = variant.split("/")
    config = Config()
    config.MODEL.backbone, config.MODEL.pretrained = backbone, False
    config.MODEL.hierarchical = head == "hierarchical"
    config.DATA.image_size = 96
    return HybridMedNet(config).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_previous_release(variant, recipe, golden):
    model = network(variant)
    model.load_state_dict(renamed(recipe.state_dict(variant)), strict=True)
    with torch.no_grad():
        output = model(recipe.golden_input())
    names = ("coarse", "fine") if variant.endswith("hierarchical") else ("logits",)
    assert set(golden[variant]) == set(names)
    for name, logits in zip(names, output if isinstance(output, tuple) else (output,), strict=True):
        torch.testing.assert_close(logits, torch.tensor(golden[variant][name]), rtol=1e-4, atol=1e-4)


def test_all_variants_of_the_golden_file_are_compared(golden):
    assert sorted(golden) == sorted(VARIANTS)


PARTS = (
    "backbone.body.layer1",
    "fpn.lateral_convs.3",
    "fpn.output_convs.0",
    "attention.",
    "fusion.scale_convs.2",
    "fusion.weight_generator",
    "classifier.feature_fusion",
    "classifier.classifiers.hidden",
)


def test_the_golden_logits_depend_on_every_part(recipe, golden):
    """The comparison above would notice a part that is left out: each part's weights move the logits."""
    variant = "resnet34/flat"
    model, x = network(variant), recipe.golden_input()
    weights = renamed(recipe.state_dict(variant))
    expected = torch.tensor(golden[variant]["logits"])
    for part in PARTS:
        changed = {
            name: tensor * 1.5 if name.startswith(part) and tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
        model.load_state_dict(changed)
        with torch.no_grad():
            assert (model(x) - expected).abs().max() > 1e-3, part
