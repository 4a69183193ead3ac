"""evaluate.py and the user's errors, and which settings it follows."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.followed import EVALUATE
from tests.evaluation_runs import (
    NAMES,
    ROOT,
    call,
    metrics_of,
    read_rows,
    table_of,
    write_images,
    write_labels,
    write_run,
    write_volumes,
)
from tests.settings_read import DRAWING, settings_read
from tests.waiting import LIMIT_S
from training.precision import Precision
from utils.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "phantom")


@pytest.fixture(scope="module")
def first(images, tmp_path_factory) -> Path:
    """A run that nothing was fitted for; tests copy it."""
    return write_run(tmp_path_factory.mktemp("runs") / "first", images)


@pytest.fixture
def run(first, tmp_path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "run"))


@pytest.fixture
def complaint(capsys):
    """complaint(arguments…) → the one line of an evaluation that must end with exit code 2."""

    def say(*arguments: object) -> str:
        assert call(*arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and not [line for line in lines if "Traceback" in line]
        return "\n".join(lines[lines.index(errors[0]) :])

    return say


def test_help_needs_no_torch():
    code = (
        "import sys, evaluate\n"
        "try:\n    evaluate.parse_arguments(['--help'])\n"
        "except SystemExit as leave:\n    assert leave.code == 0\n"
        "print('heavy:', sorted({'torch', 'timm', 'cv2', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0 and "--calibrate" in done.stdout and done.stdout.endswith("heavy: []\n"), done.stderr


def test_settings_without_effect_are_refused(complaint, run):
    for override, key in {
        "DATA.image_size=64": "DATA.image_size",
        "data.mean=[0.5]": "DATA.mean",
        "DATA.window=[0, 1]": "DATA.window",
        "MODEL.dropout=0.1": "MODEL.dropout",
        "model.backbone.type=resnet18": "MODEL.backbone",
        "training.epochs=3": "TRAIN.epochs",
        "DATA.class_names=[a, b, c, d]": "DATA.class_names",
    }.items():
        messages = complaint(run, "--set", override)
        assert f"--set {key}: no effect in evaluate.py" in messages and "TRAIN.device" in messages, override
    assert "did you mean 'num_workers'" in complaint(run, "--set", "DATA.num_worker=1")
    assert not (run / "evaluation-test").exists()


def test_every_followed_setting_is_read(run, monkeypatch):
    read = settings_read(lambda: call(run), monkeypatch)
    assert read >= {*EVALUATE.keys, "MODEL.task"} - DRAWING
    assert not {"DATA.window", "DATA.resize", "DATA.mean", "LOGGING.format", "TRAIN.epochs"} & read


def test_overrides_reach_the_compared_model_in_any_spelling(run, first, monkeypatch):
    devices = []
    monkeypatch.setattr(
        "training.precision.choose_available_precision",
        lambda wanted, _: devices.append(wanted) or Precision("cpu", None),
    )
    assert call(run, "--compare", first, "--set", "train.mixed_precision=true") == 0
    assert devices == [True, True]


def test_a_setting_that_fits_the_checkpoint_alone(tmp_path):
    """A window is for volumes: a file of volumes that is silent about its preprocessing takes one."""
    data = write_volumes(tmp_path / "data")
    run = write_run(tmp_path / "run", data, "MODEL.backbone=convnext3d_tiny", size=[8, 32, 32])
    content = load_checkpoint(run / "best_model.pth")
    del content["preprocessing"]
    save_checkpoint(content, run / "best_model.pth")
    for override in (["--set", "DATA.window=[-1, 1]"], []):
        assert call(run, "--output", tmp_path / f"out{len(override)}", *override) == 0
    names = [one["name"] for one in metrics_of(tmp_path / "out0")["classes"]]
    assert not np.array_equal(table_of(tmp_path / "out0", names)[1], table_of(tmp_path / "out2", names)[1])


def test_wishes_that_cannot_be(complaint, run):
    assert "did you mean 'youden'" in complaint(run, "--threshold", "yuden")
    assert "temperature, platt, none" in complaint(run, "--calibrate", "isotonic")
    assert "--draws 0" in complaint(run, "--draws", "0")
    assert "did you mean 'sex'" in complaint(run, "--subgroups", "sexx")
    assert "no split 'val'" in complaint(run, "--split", "all", "--threshold", "f1")


def test_checkpoints_that_are_none(complaint, run, tmp_path):
    assert "nowhere.pth' does not exist" in complaint(tmp_path / "nowhere.pth")
    (tmp_path / "empty").mkdir()
    assert "there is no best_model.pth and no last.pth" in complaint(tmp_path / "empty")
    assert "nowhere.pth' does not exist" in complaint(run, "--compare", tmp_path / "nowhere.pth")
    (run / "best_model.pth").write_bytes((run / "best_model.pth").read_bytes()[:5000])
    assert "damaged" in complaint(run)


def test_a_path_in_the_checkpoint_is_not_opened(complaint, run):
    (run / "config.yaml").unlink()
    assert "--data FOLDER" in complaint(run)


def test_splits_that_are_not_there(complaint, run, images, tmp_path):
    data = Path(shutil.copytree(images, tmp_path / "hospital"))
    rows = [
        row | {"split": "train" if number % 2 else "val"} for number, row in enumerate(read_rows(data / "labels.csv"))
    ]
    write_labels(data / "labels.csv", rows[1:], NAMES, ("split",))
    message = complaint(run, "--data", data)
    assert "no test split" in message and "train (30 images), val (29 images)" in message and "--split all" in message
    write_labels(data / "labels.csv", rows[1:])
    assert "there are none" in complaint(run, "--data", data)


def test_a_split_file_that_does_not_fit_the_runs_own_data(complaint, run):
    path = run / "split.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("test", "train", 1), encoding="utf-8")
    assert "damaged or was edited" in complaint(run)


def test_data_that_lack_a_class(complaint, run, images, tmp_path):
    data = Path(shutil.copytree(images, tmp_path / "hospital"))
    write_labels(data / "labels.csv", read_rows(data / "labels.csv"), NAMES[:3])
    assert "'Unsure'" in complaint(run, "--data", data, "--split", "all")


def test_a_folder_that_cannot_be_made(complaint, run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "name another by --output" in complaint(run, "--output", tmp_path / "file" / "x")
