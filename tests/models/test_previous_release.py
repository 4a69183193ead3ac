"""ResNets of the previous release: its files, loaded as its guide says, give its very logits."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.default_config import Config
from configs.errors import WeightsError, WeightsUnavailableError
from models import HybridMedNet, create_model
from models.legacy import rename_previous_release

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


def network(variant: str) -> HybridMedNet:
    """What a user of the previous release gets by naming the backbone: everything else on auto."""
    backbone, head = variant.split("/")
    config = Config()
    config.MODEL["backbone"] = backbone
    config.MODEL.pretrained = False  # nothing is fetched for tests
    config.MODEL.hierarchical = head == "hierarchical"
    config.DATA.image_size = 96
    return HybridMedNet(config).eval()


QUICK = ("resnet34/flat", "resnet50/hierarchical")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[pytest.param(v, marks=() if v in QUICK else SLOW) for v in VARIANTS])
def built(request, recipe) -> tuple[str, HybridMedNet, dict[str, Tensor]]:
    """A variant, its network, and the previous release's weights for it under their old names."""
    return request.param, network(request.param), recipe.state_dict(request.param)


@torch.no_grad()
def forget(model: HybridMedNet) -> None:
    """So that weights which are not loaded are noticed."""
    for tensor in model.state_dict().values():
        tensor.zero_()


@pytest.mark.parametrize(
    "prefix", ["", *(pytest.param(p, marks=SLOW) for p in ("module.", "_orig_mod.")), "module._orig_mod.module."]
)
def test_the_three_lines_of_the_old_guide_give_the_old_logits(prefix, built, recipe, golden, tmp_path):
    variant, model, weights = built
    forget(model)
    content = {"epoch": 7, "model_state_dict": {prefix + name: tensor for name, tensor in weights.items()}}
    torch.save(content | {"val_auc": 0.8123}, tmp_path / "old_model.pth")
    checkpoint = torch.load(tmp_path / "old_model.pth")
    (tmp_path / "old_model.pth").unlink()  # 200 MB
    assert str(model.load_state_dict(checkpoint["model_state_dict"])) == "<All keys matched successfully>"
    with torch.no_grad():
        output = model(recipe.golden_input())
    names = ("coarse", "fine") if variant.endswith("hierarchical") else ("logits",)
    assert set(golden[variant]) == set(names)
    deviation = 0.0
    for name, logits in zip(names, output if isinstance(output, tuple) else (output,), strict=True):
        expected = torch.tensor(golden[variant][name])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        deviation = max(deviation, float((logits - expected).abs().max()))
    print(f"{variant} under '{prefix}': logits within {deviation:.1e} of the previous release's")


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
    weights = rename_previous_release(recipe.state_dict(variant))
    expected = torch.tensor(golden[variant]["logits"])
    for part in PARTS:
        changed = {
            name: tensor * 1.5 if name.startswith(part) and tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
        model.load_state_dict(changed)
        with torch.no_grad():
            assert (model(x) - expected).abs().max() > 1e-3, part


def test_the_three_lines_work_without_internet(monkeypatch, tmp_path, recipe, golden, caplog):
    """As they stand, with MODEL.pretrained at its default: the network waits for the file's weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    torch.save({"epoch": 7, "model_state_dict": recipe.state_dict("resnet34/flat")}, tmp_path / "old_model.pth")
    config = Config()
    config.MODEL["backbone"] = "resnet34"
    model = HybridMedNet(config)
    assert "are not available" in caplog.text and "before load_state_dict" in caplog.text
    with pytest.raises(WeightsUnavailableError, match=r"are not available.*Three ways to continue"):
        model(recipe.golden_input())
    with pytest.raises(WeightsError):
        model.load_state_dict({"backbone.body.conv1.weight": torch.zeros(1)})
    with pytest.raises(WeightsUnavailableError):
        model(recipe.golden_input())
    with pytest.raises(WeightsUnavailableError):
        create_model(config)  # what train.py builds must not begin from random weights
    checkpoint = torch.load(tmp_path / "old_model.pth")
    model.load_state_dict(checkpoint["model_state_dict"])
    with torch.no_grad():
        logits = model.eval()(recipe.golden_input())
    torch.testing.assert_close(logits, torch.tensor(golden["resnet34/flat"]["logits"]), rtol=1e-4, atol=1e-4)
