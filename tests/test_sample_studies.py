"""configs/study.yaml on the drawn studies: the table and the lateral view bring what was drawn, and are seen to."""

import pytest

from tests.evaluation_runs import call, metrics_of
from tests.training_runs import ROOT, run_main


@pytest.mark.slow
def test_the_table_and_the_lateral_view_bring_what_was_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["TRAIN.device=cpu", f"CHECKPOINT.save_dir={tmp_path}", f"LOGGING.log_dir={tmp_path / 'logs'}"]
    assert run_main(["--config", ROOT / "configs" / "study.yaml", "--set", *settings]) == 0
    assert call(tmp_path / "study", "--without", "table", "lateral", "--draws", "500", "--set", "TRAIN.device=cpu") == 0
    found = {one["input"]: one["comparison"] for one in metrics_of(tmp_path / "study" / "evaluation-test")["without"]}
    for one in found.values():
        assert one["mean"]["auroc"] > 0.85 and one["mean"]["difference"]["low"] > 0
    brings = {
        name: {row["name"]: row["difference"] for row in comparison["classes"]} for name, comparison in found.items()
    }
    assert brings["table"]["Pneumonia"]["low"] > 0 and brings["table"]["Effusion"]["low"] < 0.02
    assert brings["lateral"]["Hernia"]["low"] > 0 and brings["lateral"]["Effusion"]["low"] > 0
    assert abs(brings["lateral"]["Pneumothorax"]["value"]) < 0.02  # it is on the frontal view only
