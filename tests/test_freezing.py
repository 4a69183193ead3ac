"""Runs that thaw a part at an epoch: interrupted before and after it, they end as the undisturbed one."""

import shutil

import pytest

from tests.golden.data import write_images
from tests.training_runs import HARD, arguments, metrics_of, run_main, same_outcome
from training.loop import TrainingLoop
from utils.checkpoint import load_checkpoint

# BatchNorm, dropout, windows of two batches, an average, rates by layer.
RUN = {
    **HARD,
    "TRAIN__epochs": 3,
    "TRAIN__batch_size": 8,
    "TRAIN__freeze": "level_2",
    "TRAIN__unfreeze_epoch": 2,
    "TRAIN__layer_decay": 0.7,
}
CHECKPOINTED = {"TRAIN__optimizer": "sgd", "MODEL__gradient_checkpointing.enabled": "true"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    write_images(folder)
    return folder


def interrupted(monkeypatch, after: int) -> None:
    """Asks for a stop after so many optimizer steps of a process."""
    train_step, made = TrainingLoop.train_step, []

    def step(loop, *window):
        made.append(train_step(loop, *window))
        if len(made) == after:
            monkeypatch.setattr(loop, "should_stop", lambda: "stop")
        return made[-1]

    monkeypatch.setattr(TrainingLoop, "train_step", step)


@pytest.mark.parametrize("others", [{}, pytest.param(CHECKPOINTED, marks=pytest.mark.slow)], ids=["adamw", "sgd"])
def test_a_run_interrupted_before_and_after_it_thaws_ends_as_the_undisturbed_one(data, tmp_path, monkeypatch, others):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_main(arguments(data, tmp_path, "whole", **RUN, **others)) == 0
    steps = metrics_of(whole)[0]["step"]
    assert steps == 2
    for resume, after in ((False, 1), (True, 2)):  # in the first epoch, and in the second one
        with monkeypatch.context() as patch:
            interrupted(patch, after)
            given = ["--resume", parts] if resume else arguments(data, tmp_path, "parts", **RUN, **others)
            assert run_main(given) == 130
    assert run_main(["--resume", parts]) == 0
    same_outcome(whole, parts)


def test_a_run_with_a_frozen_backbone_has_its_weights_at_the_end(data, tmp_path, capsys):
    assert run_main(arguments(data, tmp_path, "first", TRAIN__epochs=1)) == 0
    first = tmp_path / "first" / "best_model.pth"
    shutil.copy(first, tmp_path / "start.pth")
    options = {"MODEL__init_from": tmp_path / "start.pth", "TRAIN__freeze": "linear_probe", "TRAIN__ema_decay": 0.9}
    assert run_main(arguments(data, tmp_path, "probe", TRAIN__weight_decay=0.5, **options)) == 0
    before, after = (load_checkpoint(path)["model"] for path in (first, tmp_path / "probe" / "best_model.pth"))
    different = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert different and all(name.startswith("classifier.") for name in different)
    log = (tmp_path / "probe" / "train.log").read_text()
    assert "parameters of all but the head are frozen" in log and "learning rate 0.0001: " in log


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"TRAIN__freeze": 99}, "has 6 blocks (stem"),
        ({"TRAIN__freeze": "backbone", "TRAIN__unfreeze_epoch": 9}, "after the last of TRAIN.epochs 2"),
        ({"TRAIN__freeze": "backone"}, "did you mean 'backbone'?"),
    ],
)
def test_mistakes_end_a_run_with_one_line(data, tmp_path, capsys, settings, words):
    assert run_main(arguments(data, tmp_path, "run", **settings)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
