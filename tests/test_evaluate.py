"""evaluate.py from the command line to report, metrics and predictions, on drawn data and untrained networks."""

import csv
import re
import shutil
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from configs.errors import CheckpointError
from data.transforms.images import Preprocess
from evaluation.calibration import Calibration
from evaluation.results import evaluate_scores
from models.saved_model import load_model
from tests.evaluation_runs import (
    COUNT,
    HOSTILE,
    NAMES,
    SIZE,
    call,
    metrics_of,
    read_rows,
    table_of,
    write_images,
    write_labels,
    write_run,
    write_volumes,
)
from tests.training_runs import write_class_folders
from utils.checkpoint import load_checkpoint, save_checkpoint, write_safetensors
from utils.claim import claimed


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


@pytest.fixture(scope="module")
def evaluated(first, tmp_path_factory, drawing) -> Path:
    """A run that was evaluated once, with everything on."""
    run = Path(shutil.copytree(first, tmp_path_factory.mktemp("evaluated") / "run"))
    with drawing():
        assert call(run, "--calibrate", "platt", "--subgroups", "sex", "age", "--compare", first, figures=True) == 0
    return run


# ---- the figures


def test_every_figure_is_that_of_scikit_learn_on_the_predictions(evaluated):
    results, (rows, scores, labels) = metrics_of(evaluated / "evaluation-test"), table_of(evaluated / "evaluation-test")
    assert len(rows) == results["images"] and {row["split"] for row in rows} == {"test"}
    worst = 0.0
    for k, one in enumerate(results["classes"]):
        known = ~np.isnan(labels[:, k])
        y, p = labels[known, k], scores[known, k]
        assert (one["name"], one["positives"], one["negatives"]) == (NAMES[k], y.sum(), len(y) - y.sum())
        figures = {name: figure["value"] for name, figure in one["figures"].items()}
        expected = {"brier": brier_score_loss(y, p)}
        if NAMES[k] == "Never":
            assert figures["auroc"] is None and figures["average_precision"] is None
            assert one["threshold"] == 0.5 and not one["threshold_chosen"]
        else:
            flagged = p >= one["threshold"]
            expected |= {
                "auroc": roc_auc_score(y, p),
                "average_precision": average_precision_score(y, p),
                "sensitivity": flagged[y == 1].mean(),
                "specificity": 1 - flagged[y == 0].mean(),
            }
        worst = max([worst, *(abs(figures[name] - value) for name, value in expected.items())])
    print(f"largest difference from scikit-learn: {worst:.1e}")
    assert worst < 1e-9  # the table has nine digits
    defined = [one["figures"]["auroc"]["value"] for one in results["classes"] if one["name"] != "Never"]
    assert results["mean"]["defined_classes"] == 3
    assert results["mean"]["figures"]["auroc"]["value"] == pytest.approx(np.mean(defined), abs=1e-15)


def test_unknown_labels_are_empty_and_rows_name_their_patient(evaluated, images):
    rows, _, labels = table_of(evaluated / "evaluation-test")
    assert np.isnan(labels[:, 3]).any() and not np.isnan(labels[:, :3]).any()
    with (images / "labels.csv").open(encoding="utf-8", newline="") as file:
        truth = {row["image"]: row for row in csv.DictReader(file)}
    for row in rows:
        assert row["patient_id"] == truth[row["image"]]["patient_id"]
        assert [row[f"label {name}"] for name in NAMES] == [truth[row["image"]][name] for name in NAMES]


def test_probabilities_are_the_calibrated_ones_of_the_network(evaluated, images):
    rows, scores, _ = table_of(evaluated / "evaluation-test")
    saved = load_model(evaluated / "best_model.pth")
    preprocess = Preprocess.from_dict(saved.preprocessing)
    decoded = [cv2.imread(str(images / row["image"]), cv2.IMREAD_UNCHANGED) for row in rows]
    with torch.no_grad():
        logits = saved.model(torch.stack([torch.from_numpy(preprocess(image)) for image in decoded])).double().numpy()
    calibration = Calibration.from_dict(saved.description["operating_point"]["calibration"])
    assert calibration.method == "platt" and "no positives" in calibration.reasons[2]
    np.testing.assert_allclose(scores, calibration.probabilities(logits), atol=1e-6)


def test_a_model_compared_with_itself_does_not_differ(evaluated):
    comparison = metrics_of(evaluated / "evaluation-test")["comparison"]
    assert [one["name"] for one in comparison["classes"]] == NAMES
    for one in comparison["classes"]:
        if one["name"] != "Never":
            assert one["difference"]["value"] == 0 and one["p"] == 1 and one["p_holm"] == 1
    assert comparison["mean"]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_subgroups_cover_every_image(evaluated):
    results = metrics_of(evaluated / "evaluation-test")
    assert [one["column"] for one in results["subgroups"]] == ["sex", "age"]
    for one in results["subgroups"]:
        assert sum(group["images"] for group in one["groups"]) == results["images"]


# ---- the files


def test_all_files_are_there_and_are_images(evaluated):
    folder = evaluated / "evaluation-test"
    images = {"roc.png", "pr.png", "calibration.png", "confusion.png"}
    assert {path.name for path in folder.iterdir()} == images | {
        "report.html",
        "metrics.json",
        "curves.json",
        "predictions.csv",
    }
    for path in folder.glob("*.png"):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert min(image.shape) > 300 and (image < 128).any()


def test_the_report_opens_and_runs_nothing_and_escapes_names(evaluated):
    page = (evaluated / "evaluation-test" / "report.html").read_text(encoding="utf-8")
    tags = re.findall(r"<[a-zA-Z!][^>]*>", page)  # what a browser would take for a tag
    assert not [tag for tag in tags if re.search(r"\b(href|src)\s*=", tag) and 'src="data:image/png;base64,' not in tag]
    assert not re.search(r"<\s*(script|link|iframe|object|embed|base)\b|@import|url\(|\son\w+=", "".join(tags))
    assert "http" not in "".join(tags) and len([tag for tag in tags if tag.startswith("<img")]) == 8
    assert HOSTILE not in page and HOSTILE in unescape(page)
    assert "https://" not in page and page.count("http://") == page.count("http://evil.example")


def test_the_report_says_what_and_how(evaluated):
    page = unescape((evaluated / "evaluation-test" / "report.html").read_text(encoding="utf-8"))
    results = metrics_of(evaluated / "evaluation-test")
    for text in (
        "best_model.pth",
        "weights of epoch 3",
        "split.csv' says",
        "youden",
        "platt scaling",
        "DeLong",
    ):
        assert text in page, text
    assert "Without positives, hence undefined and not in the means: Never." in page
    mean = results["mean"]["figures"]["auroc"]
    assert f"{mean['low']:.3f} to {mean['high']:.3f}" in page


def test_cells_are_no_formulas(tmp_path, images):
    data = Path(shutil.copytree(images, tmp_path / "data"))
    rows = read_rows(data / "labels.csv")
    (data / rows[0]["image"]).rename(data / "=1.png")
    rows[0] |= {"image": "=1.png", "patient_id": "@x"}
    write_labels(data / "labels.csv", rows)
    run = write_run(tmp_path / "run", data)
    assert call(run, "--split", "all") == 0
    text = (run / "evaluation-all" / "predictions.csv").read_text(encoding="utf-8")
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert "'@x" in cells and "'=1.png" in cells


# ---- the operating point


def test_what_was_fitted_is_kept_and_used_again(evaluated, tmp_path, capsys):
    run = Path(shutil.copytree(evaluated, tmp_path / "run"))
    before, stored = (run / "best_model.pth").read_bytes(), load_checkpoint(run / "best_model.pth")["operating_point"]
    assert (stored["rule"], stored["split"], stored["thresholds"][2]) == ("youden", "val", None)
    assert call(run, "--output", tmp_path / "again") == 0
    assert (run / "best_model.pth").read_bytes() == before and "val" not in capsys.readouterr().err
    again, first = metrics_of(tmp_path / "again"), metrics_of(run / "evaluation-test")
    assert again["classes"] == first["classes"] and again["threshold_rule"] == "youden"
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (
        run / "evaluation-test" / "predictions.csv"
    ).read_bytes()


def test_thresholds_are_chosen_on_val_for_what_was_asked(run):
    weights = load_checkpoint(run / "best_model.pth")["model"]
    assert call(run, "--threshold", "sensitivity=0.9", "--split", "val") == 0
    results, (_, scores, labels) = metrics_of(run / "evaluation-val"), table_of(run / "evaluation-val")
    for k, one in enumerate(results["classes"]):
        positives = scores[labels[:, k] == 1, k]
        if not positives.size:
            continue
        assert (positives >= one["threshold"]).mean() >= 0.9 and one["figures"]["sensitivity"]["value"] >= 0.9
        called = positives[positives >= one["threshold"]]
        assert (called > called.min()).sum() / positives.size < 0.9, "it is the highest such threshold"
    content = load_checkpoint(run / "best_model.pth")
    assert content["operating_point"]["rule"] == "sensitivity=0.9" and content["metrics"] == {"epoch": 3}
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in weights.items())
    assert "flattered" in (run / "evaluation-val" / "report.html").read_text(encoding="utf-8")


def test_a_checkpoint_that_cannot_be_written_is_no_obstacle(run, monkeypatch, capsys):
    def full(*_):
        raise CheckpointError("the disk is full")

    monkeypatch.setattr("utils.checkpoint.operating_point.save_checkpoint", full)
    assert call(run) == 0
    assert "not saved" in (reported := capsys.readouterr().err) and "the disk is full" in reported
    assert (run / "evaluation-test" / "report.html").is_file()


def test_a_checkpoint_is_left_alone_where_it_is_asked(run):
    before = (run / "best_model.pth").read_bytes()
    assert call(run, "--calibrate", "platt", "--no-save") == 0
    assert metrics_of(run / "evaluation-test")["calibration"]["method"] == "platt"
    assert (run / "best_model.pth").read_bytes() == before


@pytest.mark.parametrize("weights", ["others", "the same"])
def test_an_operating_point_goes_into_the_weights_that_were_scored(run, monkeypatch, capsys, weights):
    """A training writes a better model while the old one is scored; or another evaluation adds a key to the file."""
    path = run / "best_model.pth"

    def and_then(*arguments):
        content = dict(load_checkpoint(path))
        if weights == "others":
            content["model"] = {name: tensor + 1 for name, tensor in content["model"].items()}
        save_checkpoint({**content, "metrics": {"epoch": 4}}, path)
        return evaluate_scores(*arguments)

    monkeypatch.setattr("evaluation.results.evaluate_scores", and_then)
    assert call(run) == 0
    content, messages = load_checkpoint(path), capsys.readouterr().err
    assert content["metrics"] == {"epoch": 4}
    assert ("operating_point" in content) == (weights == "the same")
    assert ("its weights were changed while they were evaluated" in messages) == (weights == "others")


def test_of_two_evaluations_of_a_checkpoint_one_stores(run, tmp_path, capsys):
    before = (run / "best_model.pth").read_bytes()
    with claimed(run / "best_model.pth") as alone:
        assert alone and call(run, "--output", tmp_path / "second") == 0
    assert "another evaluation of this file was running" in capsys.readouterr().err
    assert (run / "best_model.pth").read_bytes() == before and metrics_of(tmp_path / "second")[
        "threshold_rule"
    ] == "youden"
    assert call(run, "--output", tmp_path / "third") == 0, "the lock is gone with its holder"
    assert (run / "best_model.pth").read_bytes() != before


def test_two_evaluations_do_not_write_into_one_folder(run, capsys):
    (run / "evaluation-test").mkdir()
    with claimed(run / "evaluation-test"):
        assert call(run) == 2
    assert "another evaluation is writing into" in capsys.readouterr().err and not any(
        (run / "evaluation-test").iterdir()
    )


def test_without_a_validation_split_thresholds_are_not_chosen(run):
    assert call(run, "--split", "all") == 0
    results = metrics_of(run / "evaluation-all")
    assert results["threshold_rule"] == "0.5, not chosen" and results["images"] == COUNT
    assert {one["threshold"] for one in results["classes"]} == {0.5}
    assert "trained on" in results["warnings"][0]
    assert "0.5, not chosen" in (run / "evaluation-all" / "report.html").read_text(encoding="utf-8")


# ---- other data, other models


def test_other_data_are_scored_by_class_names_and_fit_nothing_into_the_file(run, images, tmp_path):
    """The same images elsewhere, columns in another order, a further column: the same figures."""
    data = Path(shutil.copytree(images, tmp_path / "hospital"))
    rows = [row | {"site": "B"} for row in read_rows(data / "labels.csv")]
    rows[0] |= {"patient_id": "somebody else"}  # so that the run's split.csv is not of these data
    write_labels(data / "labels.csv", rows, NAMES[::-1], ("site",))
    before = (run / "best_model.pth").read_bytes()
    assert call(run, "--split", "all", "--output", tmp_path / "mine") == 0
    assert call(run, "--data", data, "--split", "all", "--subgroups", "site") == 0
    theirs = metrics_of(run / "evaluation-all-hospital")
    mine = metrics_of(tmp_path / "mine")
    assert [one["figures"]["auroc"]["value"] for one in theirs["classes"]] == [
        one["figures"]["auroc"]["value"] for one in mine["classes"]
    ]
    assert "have names that the model was trained on" in theirs["warnings"][0]
    assert (run / "best_model.pth").read_bytes() == before


def test_thresholds_of_other_data_stay_out_of_the_checkpoint(run, images, tmp_path, capsys):
    data = Path(shutil.copytree(images, tmp_path / "hospital"))
    rows = read_rows(data / "labels.csv")
    write_labels(data / "labels.csv", [row | {"split": "val"} for row in rows[1:]], NAMES, ("split",))
    before = (run / "best_model.pth").read_bytes()
    assert call(run, "--data", data, "--split", "val") == 0
    assert (run / "best_model.pth").read_bytes() == before
    assert "not saved" in capsys.readouterr().err


def test_two_models_that_differ(run, images, tmp_path):
    """The other knows fewer classes, at another size: compared over what both have, against scikit-learn."""
    other_data = Path(shutil.copytree(images, tmp_path / "fewer"))
    write_labels(other_data / "labels.csv", read_rows(images / "labels.csv"), [NAMES[3], NAMES[0]])
    other = write_run(tmp_path / "other", other_data, seed=7, size=48)
    assert call(run, "--compare", other, "--split", "all") == 0
    assert call(other, "--split", "all") == 0
    comparison = metrics_of(run / "evaluation-all")["comparison"]
    assert [one["name"] for one in comparison["classes"]] == [NAMES[0], NAMES[3]]
    names = [NAMES[0], NAMES[3]]
    for folder, key in ((run, "auroc"), (other, "other_auroc")):
        _, scores, labels = table_of(folder / "evaluation-all", names)
        for k, one in enumerate(comparison["classes"]):
            known = ~np.isnan(labels[:, k])
            assert one[key] == pytest.approx(roc_auc_score(labels[known, k], scores[known, k]), abs=1e-12)
    assert "Not compared" in " ".join(metrics_of(run / "evaluation-all")["notes"])


def test_safetensors_carry_what_was_fitted(run, tmp_path):
    content = load_checkpoint(run / "best_model.pth")
    weights = content.pop("model")
    (run / "best_model.pth").unlink()
    write_safetensors(run / "model.safetensors", weights, content)
    assert call(run / "model.safetensors", "--calibrate", "temperature") == 0
    saved = load_model(run / "model.safetensors")
    assert saved.description["operating_point"]["calibration"]["method"] == "temperature"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in saved.model.state_dict().items())


def write_npz(root: Path) -> Path:
    arrays = {}
    for split, count in (("train", 8), ("val", 20), ("test", 20)):
        rng = np.random.default_rng(count)
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    root.mkdir()
    np.savez(root / "data.npz", **arrays)
    return root / "data.npz"


@pytest.mark.parametrize(
    ("write", "overrides", "size", "task"),
    [
        (write_class_folders, [], SIZE, "multi_class"),
        (write_npz, [], SIZE, "binary"),
        (write_volumes, ["MODEL.backbone=convnext3d_tiny"], [8, 32, 32], "multi_label"),
    ],
    ids=["classes", "binary", "volumes"],
)
def test_every_kind_of_task(tmp_path, write, overrides, size, task):
    run = write_run(tmp_path / "run", write(tmp_path / "data"), *overrides, size=size)
    options = ["--calibrate", "temperature"] if task != "multi_label" else []
    assert call(run, *options) == 0
    results = metrics_of(run / "evaluation-test")
    names = [one["name"] for one in results["classes"]]
    _, scores, labels = table_of(run / "evaluation-test", names)
    if task == "multi_class":
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-12)
        expected = (scores.argmax(axis=1) == labels.argmax(axis=1)).mean()
        assert results["accuracy"]["value"] == pytest.approx(expected, abs=1e-12)
        assert len(set(results["calibration"]["slopes"])) == 1
    assert task in results["evaluated"]["task"]


def test_a_hierarchical_model_is_scored_by_its_findings(images, tmp_path):
    groups = f"MODEL.coarse_groups={{heart: [{NAMES[0]}], other: [{NAMES[2]}]}}"
    run = write_run(tmp_path / "run", images, "MODEL.hierarchical=true", groups)
    assert call(run) == 0
    assert len(metrics_of(run / "evaluation-test")["classes"]) == 4
