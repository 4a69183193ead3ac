"""CHECKPOINT.best_by in whole runs: which epoch is kept, when a run stops, and a resumed run with another figure."""

import json
import shutil

import pytest

from tests.golden.data import write_images
from tests.training_runs import arguments, metrics_of, run_main
from utils.checkpoint import load_checkpoint

EPOCHS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    write_images(folder)
    return folder


def best_of(rows, key, lowest=False):
    """The first of the best rows, found the plain way."""
    values = [key(row) for row in rows]
    return values.index(min(values) if lowest else max(values)) + 1


def auroc_of(name):
    return lambda row: next(one["auroc"] for one in row["per_class"] if one["name"] == name)


FIGURES = {
    "mean_average_precision": (lambda row: row["mean_average_precision"], False),
    "val_loss": (lambda row: row["val_loss"], True),
    "Bar": (auroc_of("Bar"), False),
}
FAST = {"TRAIN__epochs": EPOCHS, "TRAIN__learning_rate": 0.01, "CHECKPOINT__save_freq": 1, "TRAIN__batch_size": 8}


def test_the_best_epoch_by_each_figure_and_a_resumed_run_with_another(data, tmp_path):
    assert run_main(arguments(data, tmp_path, "run", CHECKPOINT__best_by="val_loss", **FAST)) == 0
    folder, by = tmp_path / "run", "val_loss"
    rows = [row for row in metrics_of(folder) if "epoch" in row][:EPOCHS]
    for name in (by, "mean_average_precision", "Bar"):
        key, lowest = FIGURES[name]
        if name != by:
            assert run_main(["--resume", folder, "--set", f"CHECKPOINT.best_by={name}"]) == 0
            by = name
        expected = best_of(rows, key, lowest)
        assert load_checkpoint(folder / "best_model.pth")["metrics"]["epoch"] == expected, name
        status = json.loads((folder / "status.json").read_text())
        assert status["best"] == {"by": name, "epoch": expected, "value": key(rows[expected - 1])}


def test_without_an_auroc_the_loss_decides_and_that_is_said(data, tmp_path, capsys):
    table = (data / "labels.csv").read_text().splitlines()
    # In the validation split nothing is positive.
    rows = [line.split(",") for line in table]
    for row in rows[1:]:
        row[1:4] = ["0", "0", "0"] if row[5] == "val" else row[1:4]
    other = tmp_path / "data"
    shutil.copytree(data, other)
    (other / "labels.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    assert run_main(arguments(other, tmp_path, "run", TRAIN__epochs=2)) == 0
    assert "lowest validation loss is the best one" in capsys.readouterr().err
    assert "best_by: val_loss" in (tmp_path / "run" / "config.yaml").read_text()
    losses = [row["val_loss"] for row in metrics_of(tmp_path / "run") if "val_loss" in row][:2]
    best = load_checkpoint(tmp_path / "run" / "best_model.pth")["metrics"]["epoch"]
    assert best == losses.index(min(losses)) + 1


@pytest.mark.parametrize(("best_by", "words"), [("ring", "did you mean 'Ring'?"), ("mean_auc", "mean_auroc")])
def test_an_unknown_figure_ends_the_run_before_training(data, tmp_path, capsys, best_by, words):
    assert run_main(arguments(data, tmp_path, "run", CHECKPOINT__best_by=best_by)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
