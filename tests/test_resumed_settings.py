"""train.py --resume after settings or data have changed: what is told, what is refused, where the schedule goes on."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import training_runs as helpers

SETTINGS = {
    "LOGGING__tensorboard": "false",
    "TRAIN__epochs": 4,
    "TRAIN__warmup_epochs": 0,
    "TRAIN__min_learning_rate": 0,
    "TRAIN__learning_rate": 1e-3,
    "CHECKPOINT__save_freq": 1,
}
SPLITS = ["train"] * 16 + ["val"] * 4 + ["test"] * 4


def write_table(folder: Path, labels: list[int], splits: list[str]) -> None:
    rows = [f"{n}.png,{label},{1 - label},{split}" for n, (label, split) in enumerate(zip(labels, splits))]
    (folder / "labels.csv").write_text("\n".join(["image,Mass,Nodule,split", *rows]) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 250, (24, 24)).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), pixels)
    write_table(folder, [n % 2 for n in range(24)], SPLITS)
    return folder


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory) -> Path:
    """The folder of a run of four epochs."""
    runs = tmp_path_factory.mktemp("runs")
    assert helpers.run_main(helpers.arguments(data, runs, "begun", **SETTINGS)) == 0
    return runs / "begun"


@pytest.fixture
def run(begun, data, tmp_path) -> Path:
    """A copy that has the first two epochs alone, of data that may be changed."""
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "runs" / "run"
    shutil.copytree(begun, folder)
    return folder


def resume(run: Path, *settings: str) -> int:
    moved = [f"DATA.data_dir={run.parent.parent / 'data'}", f"LOGGING.log_dir={run.parent / 'logs'}"]
    return helpers.run_main(["--resume", run / "epoch_0002.pth", "--set", *moved, *settings])


def log_of(run: Path) -> str:
    return (run / "train.log").read_text(encoding="utf-8")


def test_with_half_the_batch_the_cosine_goes_on_from_its_middle_to_its_end(run, capsys):
    """4 steps an epoch before, 8 now: after epochs 2, 3 and 4 of 4 the cosine is at 1/2, 3/4 and 1."""
    assert resume(run, "TRAIN.batch_size=2") == 0
    rates = [row["learning_rate"] for row in helpers.metrics_of(run) if "epoch" in row]
    cosine = [1e-3 * (1 + np.cos(np.pi * share)) / 2 for share in (0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx(cosine, abs=1e-12)
    status = json.loads((run / "status.json").read_text())
    assert status["step"] == status["total_steps"] == 2 * 4 + 2 * 8
    assert "goes on at 50.0 % of the training, step 16 of 32" in capsys.readouterr().err


def test_unchanged_data_and_settings_say_nothing(run, capsys):
    assert resume(run) == 0
    text = capsys.readouterr().err
    assert "epoch 4" in text
    assert "labels" not in text and "goes on at" not in text


def test_changed_labels_are_told_and_the_beginnings_stay_on_record(run):
    record = (run / "labels.json").read_bytes()
    write_table(run.parent.parent / "data", [1, *(n % 2 for n in range(1, 24))], SPLITS)
    assert resume(run) == 0
    assert "labels have changed since the run began: 1 of 24 images (train 1): 0.png" in log_of(run)
    assert "Mass 0 → 1 1 times, Nodule 1 → 0 1 times" in log_of(run)
    assert (run / "labels.json").read_bytes() == record


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (["test", *SPLITS[1:]], "name another split than"),
        (SPLITS[:-1], "split of other images"),
    ],
    ids=["another split", "a row less"],
)
def test_another_split_or_other_rows_are_refused(splits, words, run, capsys):
    write_table(run.parent.parent / "data", [n % 2 for n in range(len(splits))], splits)
    assert resume(run) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


def test_classes_in_another_order_are_refused(run, capsys):
    assert resume(run, "DATA.class_names=[Nodule, Mass]") == 2
    assert "has the classes Mass, Nodule, the data now have Nodule, Mass" in capsys.readouterr().err
