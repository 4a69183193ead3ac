"""`python -m explain` from a checkpoint to table, overlays and localization.json."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.followed import EXPLAIN
from data.builder import open_data
from data.phantom.radiographs import FINDINGS, write_phantom
from data.transforms.images import Preprocess
from explain import __main__ as script
from tests.explain.networks import network
from tests.settings_read import DRAWING, settings_read
from utils.checkpoint import save_checkpoint
from utils.seed import random_state

DRAWN = True  # see blank_figures in tests/conftest.py

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with an untrained network over 14 classes, its data beside it."""
    folder = tmp_path_factory.mktemp("run")
    write_phantom(folder / "data", 12, 64)
    model = network("mobilenetv3_small", size=(32, 32), classes=14)
    from configs.default_config import Config

    config = Config()
    for key, value in {"backbone": "mobilenetv3_small", "pretrained": False, "num_classes": 14}.items():
        config.MODEL[key] = value
    config.MODEL.fpn_channels = config.MODEL.fusion_channels = 32
    config.MODEL.input_size = config.DATA.image_size = [32, 32]
    config.DATA.data_dir, config.DATA.class_names = str(folder / "data"), list(FINDINGS)
    names = open_data(config).class_names
    save_checkpoint(
        {
            "config": config.model_dump(mode="json"),
            "class_names": list(names),
            "preprocessing": Preprocess((32, 32), 3, [0.5], [0.25], "letterbox").as_dict(),
            "model": model.state_dict(),
        },
        folder / "best_model.pth",
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


def test_table_overlays_and_json(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "SANITY_IMAGES", 1)
    output = tmp_path / "out"
    arguments = [str(run), "--split", "all", "--count", "2", "--limit", "4", "--sanity", "--output", str(output)]
    assert script.main([*arguments, "--method", "grad_cam", "eigen_cam"]) == 0
    printed = capsys.readouterr().out
    assert "grad_cam, level auto, all split" in printed and "eigen_cam" in printed
    assert "chance" in printed and "random" in printed and "sanity check" in printed
    written = json.loads((output / "localization.json").read_text())
    assert written["images"] == 12 and written["regions"] == "boxes"
    grad_cam = written["methods"]["grad_cam"]
    total = grad_cam["all"]["trained"]["maps"]
    assert total == sum(row["trained"]["maps"] for row in grad_cam["classes"].values()) > 3
    for row in [grad_cam["all"], *grad_cam["classes"].values()]:
        for side in ("trained", "random"):
            hit = row[side]["hit"]
            assert 0 <= hit["low"] <= hit["value"] <= hit["high"] <= 1
        assert 0 < row["trained"]["chance"] < 1
    assert grad_cam["sanity"]["stages"][-1]["randomised"] == "backbone, part 1 of 4"
    drawn = sorted((output / "grad_cam").glob("*.png"))
    assert len(drawn) == 2
    with Image.open(drawn[0]) as overlay:
        assert overlay.width > 600 and np.asarray(overlay.convert("RGB")).std() > 20


def test_masks_instead_of_boxes(run, tmp_path):
    arguments = [str(run), "--split", "all", "--count", "1", "--limit", "2", "--output", str(tmp_path)]
    assert script.main([*arguments, "--masks", str(run / "data" / "masks")]) == 0
    assert json.loads((tmp_path / "localization.json").read_text())["regions"] == "masks"


def test_a_method_that_cannot_be_had_is_said_and_left_out(run, tmp_path, capsys):
    arguments = [str(run), "--split", "all", "--count", "1", "--limit", "2", "--output", str(tmp_path)]
    assert script.main([*arguments, "--method", "attention_rollout"]) == 2
    assert "error: attention_rollout needs a backbone" in capsys.readouterr().err
    assert script.main([*arguments, "--method", "grad_cam", "attention_rollout"]) == 0
    methods = json.loads((tmp_path / "localization.json").read_text())["methods"]
    assert "all" in methods["grad_cam"] and "needs a backbone" in methods["attention_rollout"]["error"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "gradcam"], "unknown method 'gradcam'"),
        (["--table", "shapley"], "takes one image and no table: there are no columns and no views"),
        (["--split", "all", "--classes", "Masse"], "no class 'Masse': did you mean 'Mass'?"),
        (["--split", "all", "--level", "7"], "unknown level 7"),
        (["--split", "all", "--level", "coarse"], "unknown level 'coarse'"),
        (["--split", "all", "--masks", "/nowhere"], "there is no folder '/nowhere'"),
        (["--split", "all", "--boxes", "/nowhere.csv"], "nowhere.csv"),
        (["--split", "val"], "no val split"),
        (["--data", "/nowhere"], "does not exist"),
    ],
)
def test_errors_are_one_line(run, tmp_path, capsys, arguments, message):
    assert script.main([str(run), "--output", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_settings_are_followed_or_refused(run, tmp_path, capsys, monkeypatch):
    arguments = [str(run), "--split", "all", "--count", "1", "--limit", "1", "--output", str(tmp_path)]
    for override, key in {"DATA.image_size=64": "DATA.image_size", "train.batch_size=4": "TRAIN.batch_size"}.items():
        assert script.main([*arguments, "--set", override]) == 2
        assert f"--set {key}: no effect in python -m explain" in capsys.readouterr().err
    read = settings_read(lambda: script.main([*arguments, "--set", "training.device=cpu"]), monkeypatch)
    assert read >= {*EXPLAIN.keys} - DRAWING


def test_help_needs_no_torch():
    code = "import sys\nfrom explain.__main__ import parse_arguments\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_world_is_not_reseeded(run, tmp_path, monkeypatch):
    """Torch's, NumPy's and Python's streams go on where they were, with random networks and noise in between."""
    monkeypatch.setattr(script, "SANITY_IMAGES", 1)

    def streams() -> dict:
        return {name: state.tolist() if name == "cpu" else state for name, state in random_state().items()}

    before = streams()
    arguments = [str(run), "--split", "all", "--count", "1", "--limit", "1", "--sanity", "--output", str(tmp_path)]
    assert script.main([*arguments, "--method", "grad_cam", "smooth_grad"]) == 0
    assert streams() == before
