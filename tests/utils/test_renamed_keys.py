"""Files of earlier versions under today's keys."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from utils.checkpoint import load_checkpoint, read_safetensors, save_checkpoint, write_safetensors
from utils.renamed_keys import todays_content, todays_figures
from utils.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
OLD_RUNS = sorted((ROOT / "golden" / "old_runs").iterdir())
OLD = {
    "progress": {"epoch": 2, "micro_splits": 4, "sums": {"batches": 3, "pictures": 12, "waited": 0.5}},
    "operating_point": {"rule": "youden", "thresholds": [0.5], "pictures": 9},
    "training_data": {"kind": "pictures", "pictures": 64, "of": 70, "ranges": {"pictures": [0, 1]}},
    "metrics": {"epoch": 1, "pictures_per_second": 3.0, "waiting_for_data": 0.25},
    "scalars": {"step": 7, "figures": {"system/pictures_per_second": 3.0, "train/loss": 0.5}},
    "class_names": ["pictures", "waited"],
}
TODAY = {
    "progress": {"epoch": 2, "micro_batch_splits": 4, "sums": {"batches": 3, "images": 12, "data_wait_seconds": 0.5}},
    "operating_point": {"rule": "youden", "thresholds": [0.5], "images": 9},
    "training_data": {"kind": "images", "images": 64, "of": 70, "ranges": {"pictures": [0, 1]}},
    "metrics": {"epoch": 1, "images_per_second": 3.0, "data_wait_fraction": 0.25},
    "scalars": {"step": 7, "figures": {"system/images_per_second": 3.0, "train/loss": 0.5}},
    "class_names": ["pictures", "waited"],
}


def test_old_keys_become_todays_and_nothing_else_changes():
    before = copy.deepcopy(OLD)
    assert todays_content(OLD) == TODAY and before == OLD
    assert todays_content(TODAY) == TODAY, "today's content is left as it is"


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], {}, {"sums": None}, {"sums": []}, {"figures": 1}, {"kind": []}, {1: 2}]
)
def test_damaged_content_is_left_to_those_who_check_it(value):
    for name in OLD:
        assert todays_content({name: value}) == {name: value}


def test_rows_and_tags():
    old = {"epoch": 1, "pictures_per_second": 3.0, "waiting_for_data": 0.25, "mean_auroc": None}
    assert todays_figures(old) == {"epoch": 1, "images_per_second": 3.0, "data_wait_fraction": 0.25, "mean_auroc": None}
    assert todays_figures({"system/waiting_for_data": 0.5}) == {"system/data_wait_fraction": 0.5}


def test_both_kinds_of_files_are_read_under_todays_keys(tmp_path):
    save_checkpoint(OLD, tmp_path / "a.pth")
    assert TODAY.items() <= load_checkpoint(tmp_path / "a.pth").items()
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, OLD)
    assert read_safetensors(tmp_path / "a.safetensors")[1] == TODAY


@pytest.mark.parametrize("run", OLD_RUNS, ids=lambda run: run.name)
def test_runs_of_before_have_todays_keys(run, tmp_path):
    content = load_checkpoint(run / "last.pth")
    assert {"images", "data_wait_seconds"} <= content["progress"]["sums"].keys()
    assert content["progress"]["micro_batch_splits"] == 1
    (tmp_path / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    assert "pictures_per_second" in json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    history = RunFolder.open(tmp_path, last_epoch=9).history
    assert history and all(math.isfinite(row["images_per_second"]) for row in history)
    assert all(0 <= row["data_wait_fraction"] <= 1 and "waiting_for_data" not in row for row in history)
