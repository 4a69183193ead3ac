"""train.py with MODEL.init_from: a run that starts from another run's weights."""

import shutil
from pathlib import Path

import pytest
import torch

from tests import training_runs as helpers
from utils.checkpoint import load_checkpoint

STILL = {"TRAIN__learning_rate": 1e-30, "TRAIN__epochs": 1, "TRAIN__mixed_precision": "false"}
QUIET = {"LOGGING__tensorboard": "false", "TRAIN__epochs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def images(folder) -> Path:
    """Three classes."""
    return helpers.write_class_folders(folder / "images")


@pytest.fixture(scope="module")
def first(folder, images) -> Path:
    """best_model.pth of a run on three classes."""
    assert helpers.run_main(helpers.arguments(images, folder, "first", **QUIET)) == 0
    return folder / "first" / "best_model.pth"


def parameters_of(path: Path) -> dict[str, torch.Tensor]:
    """Running statistics and counters move even where nothing is learned."""
    weights = load_checkpoint(path)["model"]
    return {name: t for name, t in weights.items() if "running" not in name and "num_batches" not in name}


def test_fine_tuning_on_other_classes(first, folder):
    """With a learning rate of nearly nothing, what was loaded is what is there after an epoch."""
    other = helpers.write_npz(folder / "npz")
    init = folder / "init.pth"
    shutil.copy(first, init)
    args = helpers.arguments(other, folder, "tuned", **QUIET | STILL, MODEL__init_from=init)
    assert helpers.run_main(args) == 0
    before, after = parameters_of(first), parameters_of(folder / "tuned" / "last.pth")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("classifier.") for name in changed)
    assert after["classifier.classifiers.bias"].shape == (1,)
    log = (folder / "tuned" / "train.log").read_text(encoding="utf-8")
    assert f"weights of '{init}' but for its head: that is for 3 classes, the new one for 1 class\n" in log
    init.unlink()  # a resumed run has everything in its checkpoint
    assert helpers.run_main(["--resume", folder / "tuned", "--set", "TRAIN.epochs=2"]) == 0


def test_fine_tuning_on_the_same_classes_keeps_the_head(first, images, folder):
    args = helpers.arguments(images, folder, "again", **QUIET | STILL, MODEL__init_from=first)
    assert helpers.run_main(args) == 0
    before, after = parameters_of(first), parameters_of(folder / "again" / "last.pth")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert "with its head for 3 classes" in (folder / "again" / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MODEL__fusion_channels": 24}, "of another shape (fusion."),
        ({"MODEL__init_from": "gone.pth"}, "'gone.pth' does not exist"),
        ({"MODEL__pretrained": "backbone.pth"}, "set one of them"),
    ],
)
def test_what_cannot_be_begun_from_is_one_error(settings, words, first, images, folder, capsys):
    args = helpers.arguments(images, folder, "refused", **{**QUIET, "MODEL__init_from": first, **settings})
    assert helpers.run_main(args) == 2
    message = capsys.readouterr().err
    assert "MODEL.init_from" in message and words in message and "Traceback" not in message
    assert not (folder / "refused").exists()
