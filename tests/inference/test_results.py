"""predictions.csv and predictions.json: what stands in them, exactly, and nothing that runs."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs.errors import PredictionError
from inference.results import Row, count, image_table, make_folder, report, results_csv, results_json, write_results
from utils.decision import DecisionRule, Task

NAMES = ("=heart", "lung", "bone")


def ensemble(exclusive: bool = False, not_learnt: tuple[str, ...] = ()) -> SimpleNamespace:
    members = [SimpleNamespace(name="a.pth", facts={"sha256": "ab"}), SimpleNamespace(name="b.pth", facts={})]
    decision = DecisionRule(Task(NAMES, exclusive), (0.5, 0.5, 0.5))
    return SimpleNamespace(
        class_names=NAMES, members=members, decision=decision, threshold_source="0.5", not_learnt=not_learnt
    )


@pytest.fixture
def rows() -> list[Row]:
    found = [Row("@a.png", {"age": "-1", "note": "=cmd()"}), Row("b.png", {"age": "70"}), Row("c.png"), Row("d.png")]
    assert found[0].fill(np.array([0.1 + 0.2, 0.75, 0.9]), ["height 9 pixels", "colour"], ensemble())
    assert not found[1].fill(np.array([0.1, np.nan, 0.9]), [], ensemble())
    assert found[2].fill(np.array([0.1, 0.2, 1e-12]), [], ensemble())
    found[3].error = '-cannot read it, "really"\n'
    return found


def test_the_table(rows):
    read = list(csv.reader(io.StringIO(results_csv(rows, ensemble()))))
    assert read[0] == ["image", "age", "note", "probability =heart", "probability lung", "probability bone"] + [
        "findings",
        "warnings",
        "error",
    ]
    assert read[1] == ["'@a.png", "-1", "'=cmd()", "0.3", "0.75", "0.9", "lung|bone"] + [
        "height 9 pixels; colour",
        "",
    ]
    assert read[2] == ["b.png", "70", "", "", "", "", "", "", "a model gives NaN for it"]
    assert float(read[3][5]) == 1e-12 and read[3][6] == ""
    assert read[4][-1] == '\'-cannot read it, "really"\n'
    assert len({len(row) for row in read}) == 1


def test_a_finding_that_looks_like_a_formula_is_a_text(rows):
    rows[0].findings = (0, 1)
    assert "'=heart|lung" in results_csv(rows, ensemble())


def test_columns_that_are_called_like_ours():
    row = Row("a.png", {"error": "x", "findings": "y", "probability lung": "z", "age": "9"})
    header = results_csv([row], ensemble()).splitlines()[0].split(",")
    assert header[1:5] == ["input error", "input findings", "input probability lung", "age"]
    assert len(set(header)) == len(header)


def test_the_json(rows):
    content = json.loads(results_json(rows, ensemble(), {"time": "now", "precision": "fp32"}))
    assert content["time"] == "now" and content["models"] == [{"file": "a.pth", "sha256": "ab"}, {"file": "b.pth"}]
    assert content["thresholds"] == dict.fromkeys(NAMES, 0.5) and content["threshold_source"] == "0.5"
    assert content["counts"] == {"images": 4, "predicted": 2, "errors": 2, "warnings": 1} == count(rows)
    first, second, third, _ = content["images"]
    assert first["probabilities"]["=heart"] == 0.1 + 0.2 and first["findings"] == ["lung", "bone"]
    assert first["warnings"] == ["height 9 pixels", "colour"] and first["columns"]["note"] == "=cmd()"
    assert second["probabilities"] is None is second["findings"] and second["error"].endswith("NaN for it")
    assert third["findings"] == [] and third["error"] is None
    assert json.loads(results_json(rows, ensemble(exclusive=True), {}))["thresholds"] is None


def test_files_and_exit_codes(rows, tmp_path, capsys):
    folder = make_folder(str(tmp_path / "a" / "b"))
    assert [path.name for path in write_results(folder, ["csv"], rows, ensemble(), {})] == ["predictions.csv"]
    assert [path.name for path in folder.iterdir()] == ["predictions.csv"]
    assert report(rows, ensemble(), []) == 3 and report(rows[1:2], ensemble(), []) == 2
    assert report(rows[2:3], ensemble(), []) == 0
    assert "4 images: 2 predicted, 2 with an error, 1 with warnings" in capsys.readouterr().out


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictionError, match="name another by --output"):
        make_folder(str(tmp_path / "file" / "x"))
    (tmp_path / "predictions.csv").mkdir()
    (tmp_path / "predictions.csv" / "x").write_text("")
    with pytest.raises(PredictionError, match="cannot write results"):
        write_results(tmp_path, ["csv"], [], ensemble(), {})


def test_a_single_image_is_shown_by_probability(rows):
    lines = image_table(rows[0], ensemble()).splitlines()
    assert [line.split()[0] for line in lines] == ["class", "bone", "lung", "=heart"]
    assert lines[1].endswith("0.900      0.500  finding") and not lines[3].endswith("finding")
    assert "threshold" not in image_table(rows[0], ensemble(exclusive=True))
