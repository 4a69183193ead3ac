"""The script test_modern_models.py itself: what it chooses, what its table says and how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import test_modern_models as walk
from models import list_backbones
from models.backbones.families import family_and_size, smallest_of_each_family
from test_modern_models import Outcome, main

FINE = Outcome(11_000_000, (0.5, 0.625), (2**20, 2**18), ())


@pytest.mark.parametrize(
    "family, members",
    [
        ("resnet", ["resnet18", "resnet34", "resnet50", "resnet101"]),
        ("densenet", ["densenet121", "densenet169", "densenet201"]),
        ("regnety", ["regnety_004", "regnety_008", "regnety_016", "regnety_032", "regnety_080", "regnety_160"]),
        ("efficientnet", ["efficientnet_b0", "efficientnet_b1", "efficientnet_b2"]),
        ("efficientnetv2", ["efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l"]),
        ("tf_efficientnet_lite", ["tf_efficientnet_lite0"]),
        ("efficientvim", ["efficientvim_m1", "efficientvim_m2", "efficientvim_m3", "efficientvim_m4"]),
        ("mobilenetv2", ["mobilenetv2"]),
        ("mobilenetv3", ["mobilenetv3_small", "mobilenetv3_large"]),
        ("convnext", ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"]),
        ("convnextv2", ["convnextv2_tiny", "convnextv2_base"]),
        ("convnext3d", ["convnext3d_tiny"]),
        ("swin", ["swin_tiny", "swin_small", "swin_base"]),
        ("swinv2", ["swinv2_tiny"]),
        ("swin3d", ["swin3d_tiny", "swin3d_small", "swin3d_base"]),
        ("vit", ["vit_tiny", "vit_small", "vit_base"]),
        ("dinov2", ["dinov2_small", "dinov2_base"]),
        ("vim", ["vim_tiny", "vim_small", "vim_base"]),
        ("maxvit", ["maxvit_tiny"]),
        ("sam", ["sam_base"]),
    ],
)
def test_names_fall_into_families_from_small_to_large(family, members):
    found = [family_and_size(name) for name in members]
    assert {name for name, _ in found} == {family}
    assert found == sorted(found) and len(set(found)) == len(members)
    assert smallest_of_each_family(reversed(members)) == members[:1]


def test_every_backbone_falls_into_a_family():
    """None is in a family by itself only because its name was not understood."""
    alone = {name for name in list_backbones() if family_and_size(name)[0] == name}
    assert alone <= {"mobilenetv2"}


def test_odd_names_are_families_of_their_own():
    assert family_and_size("tiny") == ("tiny", 0) and family_and_size("") == ("", 0)
    assert family_and_size("timm/hiera_tiny_224") == ("timm/hiera_tiny", 224)


def test_the_table_and_the_exit_code(capsys, monkeypatch):
    def pretend(backbone: str, attention: str, image_size: int) -> Outcome:
        if attention == "cbam":
            raise ValueError("no such thing")
        return Outcome(*vars(FINE).values()) if attention != "multi_scale" else Outcome(1, (1, 1), (1, 1), ("odd",))

    monkeypatch.setattr(walk, "try_model", pretend)
    assert main(["--backbone", "resnet18", "--attention", "none"]) == 0
    assert main(["--backbone", "resnet18"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["resnet18", "none", "11.0", "M", "0.50", "→", "0.62", "1.0", "→", "0.2", "ok"]
    assert [line.endswith("ok") for line in lines[4:8]] == [True, False, False, True]
    assert "ValueError: no such thing" in lines[5] and "FAILED: odd" in lines[6]
    assert lines[-1] == "2 of 4 work at 64 × 64 pixels"


def test_names_of_timms_own_are_taken(monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(walk, "try_model", lambda *arguments: tried.append(arguments) or FINE)
    assert main(["--backbone", "timm/resnet26d", "--attention", "none", "--image-size", "96"]) == 0
    assert tried == [("timm/resnet26d", "none", 96)]
    assert main(["--quick", "--attention", "cbam"]) == 0
    assert [name for name, *_ in tried[1:]] == smallest_of_each_family(list_backbones())


@pytest.mark.parametrize("wrong, hint", [("resnet19", "resnet18"), ("timm/resnet26dd", "timm/resnet26d")])
def test_an_unknown_backbone_stops_the_script(wrong, hint, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--backbone", wrong])
    assert caught.value.code == 2 and f"did you mean '{hint}'" in capsys.readouterr().err


def test_volumes_are_half_as_deep_as_they_are_wide():
    assert walk._build("resnet18", "none", 96).image_size == (96, 96)
    assert walk._build("convnext3d_tiny", "none", 32).image_size == (16, 32, 32)


class Faulty(nn.Module):
    """Two linear layers of which one may be left out, or counts its passes."""

    def __init__(self, uses_both: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, walk.CLASSES), nn.Linear(4, walk.CLASSES)
        self.register_buffer("passes", torch.zeros(()))
        self.uses_both, self.scale = uses_both, scale

    def forward(self, x):
        self.passes += 1
        return self.first(x) * self.scale + (self.second(x) if self.uses_both else 0)


def step_of(**faults) -> walk._Step:
    torch.manual_seed(0)
    return walk._Step.of(Faulty(**faults), torch.randn(walk.BATCH, 4))


def test_a_fault_in_a_step_is_found():
    assert step_of().problems() == []
    assert step_of(uses_both=False).problems() == ["2 parameters without a finite gradient, second.weight for one"]
    assert "4 parameters" in step_of(scale=float("nan")).problems()[0]


def test_whatever_checkpointing_changes_is_found():
    assert step_of().differences(step_of()) == []
    found = step_of().differences(step_of(scale=1.0 + 1e-6))
    assert [problem.split()[1] for problem in found] == ["outputs", "gradients"]
    torch.manual_seed(0)
    model, x = Faulty(), torch.randn(walk.BATCH, 4)
    assert walk._Step.of(model, x).differences(walk._Step.of(model, x)) == [
        "1 buffers differ checkpointed, passes for one"
    ]


def test_help_does_not_wait_for_torch():
    code = "import sys, test_modern_models as t; t.parse_arguments([]); sys.exit('torch' in sys.modules)"
    folder = Path(walk.__file__).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0
