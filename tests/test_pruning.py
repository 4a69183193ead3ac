"""train.py with TRAIN.pruning: fine-tuned, resumed, and read again as what it is."""

from pathlib import Path

import pytest
import torch

from models.saved_model import load_model
from tests.training_runs import arguments, run_main, write_class_folders
from utils.checkpoint import load_checkpoint

SMALL = {
    "LOGGING__tensorboard": "false",
    "TRAIN__epochs": 1,
    "TRAIN__ema_decay": 0.9,
    "MODEL__backbone": "timm/test_resnet",
    "MODEL__attention": "none",
    "CHECKPOINT__save_freq": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """best_model.pth of the network to prune."""
    write_class_folders(folder / "images")
    assert run_main(arguments(folder / "images", folder, "whole", **SMALL)) == 0
    return folder / "whole" / "best_model.pth"


def zeros(weights: dict) -> dict:
    return {n: int((w == 0).sum()) for n, w in weights.items() if n.endswith("weight") and "classifier" not in n}


@pytest.mark.parametrize("method", [pytest.param("unstructured", marks=pytest.mark.slow), "structured"])
def test_fine_tuned_resumed_and_read_again(method, whole, folder, capsys):
    pruning = {"MODEL__init_from": whole, "TRAIN__pruning.method": method, "TRAIN__pruning.amount": 0.5}
    assert run_main(arguments(folder / "images", folder, method, **{**SMALL, **pruning})) == 0
    reported = capsys.readouterr().err
    assert ("pruned 50.0 %" if method == "unstructured" else "channels taken out: ") in reported
    first = load_checkpoint(folder / method / "last.pth")
    assert run_main(["--resume", folder / method, "--set", "TRAIN.epochs=2"]) == 0
    second = load_checkpoint(folder / method / "last.pth")
    assert first["removed_channels"] == second["removed_channels"]
    if method == "unstructured":
        for part in (second["model"], second["ema"]["shadow"]):
            assert zeros(part) == zeros(first["model"]) and sum(zeros(part).values()) > 1000
    saved = load_model(folder / method / "best_model.pth")
    shapes = {n: t.shape for n, t in saved.model.state_dict().items()}
    assert shapes == {n: t.shape for n, t in second["model"].items()}
    sizes = [sum(t.numel() for t in weights.values()) for weights in (load_checkpoint(whole)["model"], second["model"])]
    assert sizes[1] < sizes[0] if method == "structured" else sizes[1] == sizes[0]
    assert saved.model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
