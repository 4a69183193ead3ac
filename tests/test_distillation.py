"""train.py with LOSS.teacher: a student of another run, killed and resumed, and teachers that do not fit."""

import sys
from pathlib import Path

import pytest

from tests.test_resume import prepare
from tests.training_runs import arguments, run_main, write_class_folders
from utils.checkpoint import load_checkpoint

QUIET = {
    "LOGGING__tensorboard": "false",
    "TRAIN__epochs": 1,
    "TRAIN__batch_size": 16,
    "MODEL__attention": "none",
    "MODEL__fpn": "false",
    "CHECKPOINT__save_freq": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def images(folder) -> Path:
    return write_class_folders(folder / "images")


@pytest.fixture(scope="module")
def teacher(folder, images) -> Path:
    """best_model.pth of a wider network, with another normalisation."""
    others = {**QUIET, "MODEL__fusion_channels": 24, "DATA__mean": "[0.4]"}
    assert run_main(arguments(images, folder, "teacher", **others)) == 0
    return folder / "teacher" / "best_model.pth"


def weights(path: Path) -> dict:
    return load_checkpoint(path)["model"]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_student_learns_from_it(teacher, images, folder, capsys):
    """Not the weights of a run without it; a weight of nearly nothing changes nearly nothing; the config keeps it."""
    assert run_main(arguments(images, folder, "alone", **QUIET)) == 0
    assert run_main(arguments(images, folder, "student", **QUIET, LOSS__teacher=teacher)) == 0
    slight = {**QUIET, "LOSS__teacher": teacher, "LOSS__distillation_weight": 1e-30}
    assert run_main(arguments(images, folder, "slight", **slight)) == 0
    alone, student, third = (weights(folder / name / "last.pth") for name in ("alone", "student", "slight"))
    assert not equal(alone, student) and equal(alone, third)
    content = load_checkpoint(folder / "student" / "last.pth")
    assert content["config"]["LOSS"]["teacher"] == str(teacher)
    assert f"learning from '{teacher}' too, with weight 0.5" in capsys.readouterr().err
    student_bytes, alone_bytes = ((folder / name / "last.pth").stat().st_size for name in ("student", "alone"))
    assert abs(student_bytes - alone_bytes) < 2000  # a path, no weights


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"LOSS__teacher": "gone.pth"}, "LOSS.teacher: 'gone.pth' does not exist"),
        ({"DATA__image_size": 40}, "sees other images than the student (size [32, 32] instead of [40, 40])"),
        ({"DATA__class_names": "[dark, bright, striped]", "LOSS__distillation_temperature": 0}, "temperature"),
    ],
)
def test_a_teacher_that_cannot_be_is_one_error(settings, words, teacher, images, folder, capsys):
    assert run_main(arguments(images, folder, "refused", **{**QUIET, "LOSS__teacher": teacher, **settings})) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not (folder / "refused").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the harness forks")
def test_stopped_and_resumed_bit_for_bit(tmp_path, harness):
    settings = {"CHECKPOINT.save_freq": 0, "TRAIN.epochs": 2, "LOGGING.tensorboard": "false"}
    harness.write_phantom(tmp_path / "data", 24, 64)
    harness.undisturbed(tmp_path / "data", tmp_path / "teacher", settings | {"MODEL.fusion_channels": 24})
    settings["LOSS.teacher"] = tmp_path / "teacher" / "last.pth"
    harness.undisturbed(tmp_path / "data", tmp_path / "whole", settings)
    arguments = harness.arguments_of(tmp_path / "data", tmp_path / "stopped", settings)
    for steps, given in ((2, arguments), (None, ["--resume", tmp_path / "stopped"])):
        log = tmp_path / "stopped.txt"
        code = harness.wait(harness.launch([str(a) for a in given], log, prepare(steps, "fp32")))
        assert code == (143 if steps else 0), log.read_text()[-3000:]
    assert harness.differing(tmp_path / "whole", tmp_path / "stopped") == []
