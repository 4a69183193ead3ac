"""Names from strangers go through training, evaluation, prediction and their errors, and act on nothing."""

import csv
import re
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

import predict
from tests.evaluation_runs import call
from tests.training_runs import arguments, process_state, run_main
from utils.checkpoint.__main__ import main as checkpoint_tool
from utils.log import setup_logging

# Colour, title of the terminal, a C1 control, the other direction of writing, a line of the log, HTML.
ATTACK = "\x1b[31m\x1b]0;x\x07\x9b2J\u202e\u2028\n12:00:00  ERROR: forged<script>alert(1)</script>"
CLASSES = ("Mass" + ATTACK, "Nodule\t\x1b[2J")


def cleanly(text: str, names: int = 0) -> None:
    """No control but line breaks, and of these none that begins with what a name has."""
    bad = {mark for mark in text if unicodedata.category(mark) in ("Cc", "Cf", "Zl", "Zp", "Cs")} - {"\n", "\r"}
    assert not bad, sorted(map(ascii, bad))
    assert not any(line.startswith("12:00:00  ERROR") for line in text.splitlines())
    assert text.count("\\x1b[31m") >= names, text


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "data"
    folder.mkdir()
    rows = []
    for number in range(24):
        image = np.random.default_rng(number).integers(0, 60, (32, 32)).astype(np.uint8) + 150 * (number % 2)
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), image)
        patient, sex = f"p{number}{ATTACK if number == 3 else ''}", f"F{ATTACK}" if number % 3 else "M"
        rows.append((f"{number:02d}.png", patient, number % 2, 1 - number % 2, sex))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "patient_id", *CLASSES, f"sex{ATTACK}"), *rows])
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert run_main(arguments(data, runs, "run", TRAIN__epochs=1, DATA__patient_ids="exact")) == 0
    return runs / "run"


def test_the_log_of_a_run_and_its_results(run, data, capsys):
    cleanly((run / "train.log").read_text(encoding="utf-8"), 1)
    assert call(run, "--split", "all", "--subgroups", f"sex{ATTACK}") == 0
    out, err = capsys.readouterr()
    cleanly(out, 1)
    cleanly(err)
    (report,) = run.rglob("report.html")
    page = report.read_text(encoding="utf-8")
    cleanly(page.replace("\n", " "), 3)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_errors_name_them_escaped(run, data, tmp_path, capsys):
    text = (data / "labels.csv").read_text(encoding="utf-8")
    other = tmp_path / "data"
    other.mkdir()
    for change in (f"p3{ATTACK}x,", f"p1{ATTACK},"):
        (other / "labels.csv").write_text(text.replace("p4,", change), encoding="utf-8")
        assert run_main(arguments(other, tmp_path / "runs", "run")) == 2
        assert call(run, "--data", other, "--split", "all") == 2
    assert call(run, "--data", data, "--subgroups", f"sex{ATTACK}x") == 2
    assert call(run, "--data", data, "--split", "all", "--set", f"DATA.labels_file=a{ATTACK}.csv") == 2
    out, err = capsys.readouterr()
    cleanly(out)
    cleanly(err, 3)
    assert err.count("error: ") >= 6


def test_predictions_and_their_errors(run, data, tmp_path, capsys):
    bad = tmp_path / f"bad{ATTACK.replace('/', '')}.png"
    bad.write_bytes(b"no image")
    with process_state():
        arguments = [str(data / "01.png"), str(bad), "--checkpoint", str(run), "--output", str(tmp_path / "out")]
        assert predict.main([*arguments, "--num-workers", "0", "--device", "cpu"]) == 3
        assert predict.main([str(data / "01.png"), *arguments[2:], "--num-workers", "0", "--device", "cpu"]) == 0
        assert predict.main([str(tmp_path / f"none{ATTACK}"), *arguments[2:]]) == 2
        setup_logging()
        for command in (["inspect"], ["verify"]):
            assert checkpoint_tool([*command, str(run / "best_model.pth")]) == 0
    out, err = capsys.readouterr()
    cleanly(out, 1)
    cleanly(err, 1)


def test_figures_and_scalars_are_written(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (run / "roc_curves.png").stat().st_size > 1000
    folders = {path.parent for path in run.parent.parent.rglob("events.out.tfevents*")}
    tags = [tag for folder in folders for tag in EventAccumulator(str(folder)).Reload().Tags()["scalars"]]
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", tag) for tag in tags)
