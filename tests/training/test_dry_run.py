"""What --dry-run says: the figures against other ways to get them, and that nothing of a run is left."""

import math

import pytest
import torch

from configs.default_config import Config
from data.phantom.radiographs import write_phantom
from models import create_model
from tests.training_runs import NETWORK, arguments, run_main
from training.dry_run import saved_activations
from utils.gradient_checkpointing.activation_memory import SavedActivations


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, 40, 64)
    return folder


def test_a_dry_run_says_what_would_be_trained_and_leaves_nothing(data, tmp_path, capsys):
    settings = {"TRAIN__gradient_accumulation_steps": 2, "TRAIN__ema_decay": 0.9}
    before = sorted(path for path in data.rglob("*"))
    assert run_main([*arguments(data, tmp_path / "runs", "new", **settings), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "runs").exists() and sorted(path for path in data.rglob("*")) == before
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert lines["data"].startswith("40 studies: train 28, val 7, test 5")
    assert lines["steps"] == f"{math.ceil(28 / 4 / 2)} per epoch, 8 in 2 epochs"
    assert "M parameters" in lines["model"] and lines["classes"].startswith("14, positive in train: Atelectasis ")
    assert "by the tracer" in lines["memory"] and "on cpu" in lines["first step"] and "NOT" not in out
    assert out.endswith("no run's folder was written\n")


def test_a_resumed_run_is_left_as_it_is(data, tmp_path, capsys):
    assert run_main(arguments(data, tmp_path, "run")) == 0
    folder = tmp_path / "run"
    (folder / "control").write_text("stop")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = ["--resume", folder, "--set", "TRAIN.epochs=3", "--dry-run", "--print-config"]
    assert run_main(words) == 0
    out = capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "  epochs: 3  # --set\n" in out and f"  batch_size: 4  # {folder / 'config.yaml'}\n" in out
    assert "in 3 epochs" in out


def test_what_a_run_would_be_refused_for_is_refused(data, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").touch()
    assert run_main([*arguments(data, tmp_path, "taken"), "--dry-run"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run_main([*arguments(tmp_path / "nowhere", tmp_path, "new"), "--dry-run"]) == 2


def test_settings_that_the_data_decide_are_printed_with_a_dry_run(data, tmp_path, capsys):
    words = arguments(data, tmp_path, "new")
    assert run_main([*words, "--print-config"]) == 0
    assert "  num_classes: null  # default\n" in capsys.readouterr().out
    assert run_main([*words, "--print-config", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "  num_classes: 14  # from the data\n" in printed and "  batch_size: 4  # --set\n" in printed


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_those_that_a_step_really_holds(checkpointed):
    config = Config.from_overrides([f"{key}={value}" for key, value in NETWORK.items()])
    model = create_model(config.complete()).train()
    if checkpointed:
        model.enable_gradient_checkpointing(segments=3, batch_size=4)
    x = torch.randn(4, 3, 32, 32)
    foretold = saved_activations(model, 4, None)
    with SavedActivations(model, x) as memory:
        loss = model(x).sum()
        memory.start_backward()
        loss.backward()
    assert foretold == pytest.approx(memory.peak, rel=0.05)
