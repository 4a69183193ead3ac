"""Studies through train.py, --resume and evaluate.py."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tests.evaluation_runs import call, metrics_of
from tests.kill_harness import flatten, identical
from tests.training_runs import arguments, run_main
from utils.checkpoint import load_checkpoint

STUDIES = {
    "DATA__study_column": "study_id",
    "DATA__class_names": "[lesion]",
    "DATA__view_kinds": "{frontal: [PA, AP], lateral: [LL]}",
    "DATA__table.file": "clinical.csv",
    "DATA__table.columns": "{age: numeric, sex: categorical}",
    "MODEL__views.aggregator": "attention",
    "MODEL__views.dropout": 0.3,
    "MODEL__table.fusion": "gated",
    "MODEL__table.dropout": 0.3,
    "TRAIN__lr_scheduler": "constant",  # so that a run of one epoch is the beginning of one of two
    "TRAIN__warmup_epochs": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """30 studies of 15 patients: a frontal image, in half of them a lateral one, in most of them a row of a table."""
    folder = tmp_path_factory.mktemp("studies") / "data"
    folder.mkdir()
    images, table, rng = [], [], np.random.default_rng(0)
    for number in range(30):
        label = int(rng.random() < 0.5)
        for view in ("PA", "LL")[: 1 + number % 2]:
            name = f"{number:02d}_{view}.png"
            pixels = rng.integers(0, 120, (32, 32)).astype(np.uint8) + 80 * label
            assert cv2.imwrite(str(folder / name), pixels)
            images.append((name, f"s{number}", f"p{number // 2}", view, label))
        if number % 5:
            table.append((f"s{number}", "" if number % 7 == 0 else 40 + number, "FM"[number % 2]))
    for name, rows in (
        ("labels.csv", [("image", "study_id", "patient_id", "view", "lesion"), *images]),
        ("clinical.csv", [("study_id", "age", "sex"), *table]),
    ):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert run_main(arguments(data, runs, "run", **STUDIES)) == 0
    return runs / "run"


def test_what_the_network_is_built_for_is_written_out(run):
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["MODEL"]["view_kinds"] == ["frontal", "lateral", "other"]
    assert config["MODEL"]["table_columns"] == {"age": "numeric", "sex": 2}
    checkpoint = load_checkpoint(run / "best_model.pth")
    assert checkpoint["view_kinds"] == ["frontal", "lateral", "other"] and checkpoint["table"] is not None
    assert any(name.startswith("classifier.study.") for name in checkpoint["model"])


def test_resuming_is_bit_equal(data, run, tmp_path):
    assert run_main(arguments(data, tmp_path, "run", **STUDIES, TRAIN__epochs=1)) == 0
    assert run_main(["--resume", tmp_path / "run", "--set", "TRAIN.epochs=2"]) == 0
    one, two = (dict(flatten(load_checkpoint(path / "last.pth")["model"])) for path in (run, tmp_path / "run"))
    assert one.keys() == two.keys() and all(identical(one[name], two[name]) for name in one)


def test_evaluation_is_of_studies(run, data):
    assert call(run, "--split", "all") == 0
    results = metrics_of(run / "evaluation-all")
    assert (results["images"], results["patients"]) == (30, 15)


def test_a_table_beside_single_images_trains_and_is_evaluated(data, tmp_path):
    """Each image is a study; its column is the labels table's."""
    alone = {"DATA__study_column": "null", "DATA__view_kinds": "null", "MODEL__views.aggregator": "null"}
    table = {"DATA__table.file": "null", "DATA__table.columns": "{view: categorical}"}
    assert run_main(arguments(data, tmp_path, "run", **{**STUDIES, **alone, **table, "TRAIN__epochs": 1})) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert config["MODEL"]["view_kinds"] is None and config["MODEL"]["table_columns"] == {"view": 2}
    assert call(tmp_path / "run", "--split", "all") == 0
    assert metrics_of(tmp_path / "run" / "evaluation-all")["images"] == 45


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"MODEL__views.aggregator": "null"}, "set MODEL.views.aggregator"),
        ({"MODEL__table.fusion": "null"}, "set MODEL.table.fusion"),
        ({"DATA__table.columns": "[]"}, "no column of it is taken, name them in DATA.table.columns"),
        ({"DATA__table.columns": "[]", "DATA__table.file": "null"}, "there is no table: set DATA.table.columns"),
        (
            {"DATA__study_column": "null", "DATA__view_kinds": "null", "DATA__table.file": "null"}
            | {"DATA__table.columns": "[]", "MODEL__table.fusion": "null"},
            "set DATA.study_column",
        ),
        ({"TRAIN__quantization_aware": "true"}, "TRAIN.quantization_aware is for models of single images"),
        ({"MODEL__gradient_checkpointing.enabled": "true", "MODEL__views.backbones": "separate"}, "separate"),
    ],
)
def test_what_would_not_be_seen_or_is_lacking_is_refused(changed, words, data, tmp_path, capsys):
    assert run_main(arguments(data, tmp_path, "run", **{**STUDIES, **changed})) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_given_what_the_network_is_given(data, run, tmp_path, capsys):
    teacher = str(run / "best_model.pth")
    assert run_main(arguments(data, tmp_path, "run", **STUDIES, TRAIN__epochs=1, LOSS__teacher=teacher)) == 0
    capsys.readouterr()
    for name, changed, words in (
        (
            "images",
            {"MODEL__table.fusion": "null", "DATA__table.file": "null", "DATA__table.columns": "[]"},
            "LOSS.teacher takes views: frontal, lateral, other; table: age, sex, and the network views: frontal",
        ),
        ("split", {"TRAIN__seed": 3}, "not the one that LOSS.teacher was trained with"),
    ):
        assert run_main(arguments(data, tmp_path, name, **{**STUDIES, **changed, "LOSS__teacher": teacher})) == 2
        assert words in capsys.readouterr().err
