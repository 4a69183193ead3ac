"""The start-up benchmark: its arithmetic, and the stages of one small run in this process."""

import subprocess
import sys

import pytest

from benchmarks import startup
from data.phantom.radiographs import write_phantom

REPORT = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |   numpy.core
import time:      2000 |       2100 | numpy
import time:       500 |        500 | torch._C
import time:   1000000 |    1000500 | torch
something else | 7 | numpy
"""


def test_imports_are_summed_by_package():
    assert startup.own_seconds(REPORT) == [("torch", pytest.approx(1.0005)), ("numpy", pytest.approx(0.0021))]


def test_the_interpreters_own_report_is_understood():
    command = [sys.executable, "-X", "importtime", "-c", "import json.decoder"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = dict(startup.own_seconds(report))
    assert found["json"] > 0 and sum(found.values()) < 60


def test_medians_take_turns():
    order = []

    def gives(name, values):
        values = iter(values)
        return lambda: order.append(name) or {"all": next(values)}

    found = startup.medians({"a": gives("a", [3, 1, 2]), "b": gives("b", [9, 8, 70])}, 3)
    assert found == {"a": {"all": 2}, "b": {"all": 9}} and order == ["a", "b"] * 3


def test_a_command_that_fails_is_not_a_time():
    with pytest.raises(subprocess.CalledProcessError):
        startup.run_seconds(["-c", "raise SystemExit(3)"])


def test_stages_go_as_far_as_the_first_step(tmp_path):
    write_phantom(tmp_path / "images", 40, 64)
    settings = {
        "MODEL.backbone": "mobilenetv3_small",
        "MODEL.pretrained": "false",
        "MODEL.fusion_channels": 8,
        "DATA.data_dir": tmp_path / "images",
        "DATA.image_size": 32,
        "DATA.num_workers": 0,
        "TRAIN.batch_size": 2,
        "TRAIN.device": "cpu",
    }
    seconds = startup.stages([f"{key}={value}" for key, value in settings.items()])
    assert list(seconds) == list(startup.STAGES) and all(value >= 0 for value in seconds.values())


def test_page():
    figures = {
        "environment": {"time": "2026-01-02T03", "processor": "P", "cores": 2, "python": "3", "packages": {}},
        "processes": 3,
        "size": 64,
        "commands": {**dict.fromkeys(startup.HELP, 0.25), "import torch": 1.5},
        "cpu": {**dict.fromkeys(startup.HELP, 0.1), "import torch": 1.25},
        "stages": {"resnet18": {**dict.fromkeys(startup.STAGES, 0.5), "all": 5.0}},
        "imports": [("torch", 1.25)],
    }
    figures["environment"]["packages"] = {"torch": "2", "timm": "1"}
    text = startup.page(figures)
    assert "| `import torch` | 1.50 | 1.25 |" in text and "under 0.5 s: met" in text and "torch 1.25" in text
    assert f"| resnet18 |{' 0.50 |' * len(startup.STAGES)} 5.00 |" in text
    assert {"train.py --help", "python -m explain --help"} <= {*startup.HELP}
    figures["commands"]["evaluate.py --help"] = 0.75
    assert "under 0.5 s: MISSED" in startup.page(figures)
