"""Cross-validation of studies with a table, of exclusive classes without patients, of volumes on two levels."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import cross_validate
import evaluate
import predict
from tests import study_runs, training_runs
from tests.evaluation_runs import write_volumes
from tests.training_runs import write_class_folders
from utils.checkpoint import load_checkpoint
from utils.runs.control import Control

pytestmark = pytest.mark.slow


def call(data: Path, runs: Path, *more: object, **settings: object) -> Path:
    given = training_runs.arguments(data, runs, "cv", **{"TRAIN__epochs": 1, **settings})
    options = cross_validate.parse_arguments([str(one) for one in [*more, "--draws", 20, *given]])
    with training_runs.process_state():
        assert cross_validate.cross_validate(options, Control()) is None
    return runs / "cv"


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_studies_with_a_table_whose_statistics_are_of_each_folds_training_part(tmp_path, logging_as_it_was):
    data = study_runs.write_studies(tmp_path / "data")
    settings = dict(
        one.replace(".", "__", one.partition("=")[0].count(".")).split("=", 1) for one in study_runs.STUDIES
    )
    folder = call(data, tmp_path, "--folds", 3, **settings)
    rows = table_of(folder / "predictions.csv")
    assert len({row["image"] for row in rows}) == len(rows) == study_runs.COUNT
    ages = {row["study_id"]: row["age"] for row in study_runs.rows_of_studies()[1]}
    means = set()
    for fold in range(3):
        split = table_of(folder / f"fold{fold}" / "split.csv")
        train = [float(ages[row["study"]]) for row in split if row["split"] == "train" and ages.get(row["study"])]
        (age,) = [one for one in columns_of(folder / f"fold{fold}" / "best_model.pth") if one["name"] == "age"]
        assert age["mean"] == pytest.approx(np.mean(train))
        means.add(age["mean"])
    assert len(means) == 3
    out = tmp_path / "predictions"
    given = [str(data / "labels.csv"), "--checkpoint", str(folder), "--output", str(out), "--table"]
    assert predict.main([*given, str(data / "clinical.csv"), "--set", "DATA.study_column=study_id"]) == 0
    assert len(table_of(out / "predictions.csv")) == study_runs.COUNT
    asked = [str(folder), "--data", str(data), "--split", "all", "--draws", "20", "--output", str(tmp_path / "out")]
    assert evaluate.main(asked) == 2, "its own studies, wherever they are said to be"


def columns_of(path: Path) -> list[dict]:
    table = load_checkpoint(path)["table"]
    return [dict(one) for one in table["columns"]]


def test_exclusive_classes_of_images_that_name_no_patient(tmp_path):
    data = write_class_folders(tmp_path / "data")
    folder = call(data, tmp_path, "--folds", 3, TRAIN__epochs=2)
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = table_of(folder / "predictions.csv")
    right = np.mean([row[f"label {row['findings']}"] == "1" for row in rows])
    assert metrics["accuracy"]["value"] == pytest.approx(right) and len(rows) == 36
    assert any("name no patient" in note for note in metrics["notes"])
    counts = [
        [sum(row[f"label {name}"] == "1" and row["split"] == f"fold{fold}" for row in rows) for fold in range(3)]
        for name in ("bright", "dark", "striped")
    ]
    assert counts == [[4, 4, 4]] * 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["over_folds"]["mean"]["accuracy"]["runs"] == 3


def test_volumes_and_two_levels_of_classes_with_an_average_of_weights(tmp_path):
    data = write_volumes(tmp_path / "data")
    settings = {
        "DATA__image_size": "[8,16,16]",
        "MODEL__backbone": "convnext3d_tiny",
        "MODEL__attention": "none",
        "MODEL__fpn": "false",
        "MODEL__hierarchical": "true",
        "TRAIN__channels_last": "auto",
        "TRAIN__ema_decay": 0.5,
        "TRAIN__gradient_accumulation_steps": 2,
        "TRAIN__batch_size": 2,
    }
    folder = call(data, tmp_path, "--folds", 2, "--validation", "held-out", **settings)
    rows = table_of(folder / "predictions.csv")
    assert len(rows) == 8 and {row["split"] for row in rows} == {"fold0", "fold1"}  # of train and val
    assert len(table_of(folder / "evaluation-test" / "predictions.csv")) == 4
