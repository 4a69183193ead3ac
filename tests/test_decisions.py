"""What evaluate.py measures is what predict.py, python -m explain and a reader of an exported file call."""

import csv
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

import export
import predict
from data.transforms.images import Preprocess
from evaluation.operating_points import threshold_figures
from models.saved_model import load_model
from tests.evaluation_runs import call, metrics_of
from tests.training_runs import arguments, run_main
from utils.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("logging_as_it_was")  # main() takes over logging

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COUNTS = {"train": 24, "val": 30, "test": 20}


def write_image(path: Path, brightness: float, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rng.normal(brightness, 40, (32, 32)).clip(0, 255).astype(np.uint8))


def write_classes(root: Path, names: tuple[str, ...]) -> Path:
    """Class folders of images that overlap in brightness."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for number in range(count):
            k = number % len(names)
            write_image(root / split / names[k] / f"{split}{number}.png", rng.normal(60 + 60 * k, 30), rng)
    return root


def write_findings(root: Path) -> Path:
    """A table of two findings, and one that nobody in the training split has."""
    rng, rows = np.random.default_rng(1), []
    for split, count in COUNTS.items():
        for number in range(count):
            one, other, name = number % 3 == 0, number % 4 == 0, f"{split}{number}.png"
            write_image(root / name, rng.normal(90 + 30 * one + 20 * other, 15), rng)
            rows.append((name, f"{split}{number}", split, int(one), int(other), int(split == "test" and one)))
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "patient_id", "split", "Wide", "Small", "Rare"), *rows])
    return root


SOURCES = {
    "pair": lambda root: write_classes(root, ("normal", "pneumonia")),
    "classes": lambda root: write_classes(root, ("a", "b", "c")),
    "findings": write_findings,
}


@pytest.fixture(scope="module")
def make_run(tmp_path_factory) -> Callable[[str], tuple[str, Path, Path]]:
    """A kind of task → (kind, data, run) of a short training, made once; tests do not change it."""

    @cache
    def make(kind: str) -> tuple[str, Path, Path]:
        folder = tmp_path_factory.mktemp(kind)
        data = SOURCES[kind](folder / "data")
        settings = {
            "TRAIN__epochs": 8 if kind == "classes" else 2,
            "TRAIN__learning_rate": 3e-3,
            "TRAIN__warmup_epochs": 0,
            "MODEL__fpn": "false",
        }
        settings |= {"CHECKPOINT__save_freq": 0, "LOGGING__tensorboard": "false", "DATA__augment": "false"}
        assert run_main(arguments(data, folder / "runs", "run", **settings)) == 0
        return kind, data, folder / "runs" / "run"

    return make


@pytest.fixture(params=SOURCES)
def trained(request, make_run) -> tuple[str, Path, Path]:
    return make_run(request.param)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def calls_by_numpy(decision: dict, probabilities: np.ndarray) -> list[str]:
    """As the page says that a reader of an exported file does it."""
    names, thresholds = decision["classes"], decision["thresholds"]
    if decision["rule"] == "thresholds":
        return ["|".join(n for n, x in zip(names, row) if x >= thresholds[n]) for row in probabilities]
    if decision["rule"] == "most_probable_class":
        return [names[k] for k in probabilities.argmax(axis=1)]
    positive = decision["positive_class"]
    (other,) = (name for name in names if name != positive)
    called = probabilities[:, names.index(positive)] >= thresholds[positive]
    return [positive if one else other for one in called]


def by_onnx(file: Path, images: list[Path]) -> tuple[dict, list[str]]:
    session = onnxruntime.InferenceSession(str(file))
    metadata = session.get_modelmeta().custom_metadata_map
    preprocess = Preprocess.from_dict(json.loads(metadata["preprocessing"]))
    pixels = np.stack([preprocess(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) for path in images])
    decision = json.loads(metadata["decision"])
    return decision, calls_by_numpy(decision, session.run(None, {session.get_inputs()[0].name: pixels})[0])


def calibrated(kind: str) -> list[str]:
    return ["--calibrate", "platt" if kind == "findings" else "temperature"]


@pytest.mark.parametrize("options", [[], ["--split", "val"], ["calibrated"]], ids=["as trained", "val", "calibrated"])
def test_evaluation_measures_what_prediction_calls(trained, options, tmp_path):
    kind, data, source = trained
    run = Path(shutil.copytree(source, tmp_path / "run"))
    assert call(run, "--output", tmp_path / "e", *(calibrated(kind) if options == ["calibrated"] else options)) == 0
    evaluated, results = rows_of(tmp_path / "e" / "predictions.csv"), metrics_of(tmp_path / "e")
    images = [str(data / row["image"]) for row in evaluated]
    assert predict.main([*images, "--checkpoint", str(run), "--output", str(tmp_path / "p"), "--device", "cpu"]) == 0
    predicted = {row["image"]: row["findings"] for row in rows_of(tmp_path / "p" / "predictions.csv")}
    called = [row["findings"] for row in evaluated]
    assert [predicted[image] for image in images] == called and len(set(called)) > 1
    content = json.loads((tmp_path / "p" / "predictions.json").read_text(encoding="utf-8"))
    assert content["decision"] == results["decision"]
    probabilities = [list(one["probabilities"].values()) for one in content["images"]]
    assert calls_by_numpy(results["decision"], np.array(probabilities)) == called
    check_figures(results, evaluated)


@pytest.mark.parametrize(
    "kind", ["pair", *(pytest.param(one, marks=pytest.mark.slow) for one in ("classes", "findings"))]
)
def test_a_reader_of_the_exported_file_calls_the_same(kind, make_run, tmp_path):
    _, data, source = make_run(kind)
    run = Path(shutil.copytree(source, tmp_path / "run"))
    assert call(run, "--output", tmp_path / "e", "--split", "val", *calibrated(kind)) == 0
    evaluated = rows_of(tmp_path / "e" / "predictions.csv")
    assert export.main([str(run), "--output", str(tmp_path / "model.onnx")]) == 0
    decision, called = by_onnx(tmp_path / "model.onnx", [data / row["image"] for row in evaluated])
    assert called == [row["findings"] for row in evaluated] and len(set(called)) > 1
    assert decision == metrics_of(tmp_path / "e")["decision"]


def check_figures(results: dict, rows: list[dict[str, str]]) -> None:
    """Every figure at the operating point is that of the calls in the table beside it, by counting."""
    for one in results["classes"]:
        label = np.array([row[f"label {one['name']}"] == "1" for row in rows])
        called = np.array([one["name"] in row["findings"].split("|") for row in rows])
        counts = [int(np.sum(x)) for x in (called & label, called & ~label, ~called & ~label, ~called & label)]
        assert one["confusion"] == dict(zip(("tp", "fp", "tn", "fn"), counts))
        for name, value in threshold_figures(np.array(counts, float)[:, None]).items():
            figure = one["figures"][name]["value"]
            assert (figure is None and np.isnan(value[0])) or figure == pytest.approx(value[0], abs=1e-12)
    if results["accuracy"]:
        right = [
            all((row[key] == "1") == (key[6:] in row["findings"].split("|")) for key in labels(row)) for row in rows
        ]
        assert results["accuracy"]["value"] == pytest.approx(np.mean(right), abs=1e-12)


def labels(row: dict[str, str]) -> list[str]:
    return [key for key in row if key.startswith("label ")]


def test_the_best_model_leaves_with_an_operating_point(trained, tmp_path, capsys):
    """An evaluation elsewhere, without a validation split, uses it, and does not touch the file."""
    kind, data, run = trained
    content = load_checkpoint(run / "best_model.pth")
    point, names = content["operating_point"], content["class_names"]
    assert point["images"] == COUNTS["val"] and point["split"] == "val" and point["calibration"] is None
    labels = np.array([[float(row[f"label {n}"]) for n in measured(kind, names)] for row in val_rows(run, tmp_path)])
    for k, name in enumerate(measured(kind, names)):
        assert point["positives"][names.index(name)] == labels[:, k].sum()
        threshold = point["thresholds"][names.index(name)]
        enough = min(labels[:, k].sum(), (1 - labels[:, k]).sum()) >= 5
        assert (threshold is not None) == (enough and kind != "classes")
    before = (run / "best_model.pth").read_bytes()
    assert call(run, "--data", data, "--split", "all", "--output", tmp_path / "elsewhere") == 0
    results = metrics_of(tmp_path / "elsewhere")
    expected = {"pair": "youden", "classes": "the most probable class", "findings": "youden"}[kind]
    assert results["threshold_rule"] == expected and results["threshold_split"] == "val"
    assert (run / "best_model.pth").read_bytes() == before
    assert expected in capsys.readouterr().out


def val_rows(run: Path, tmp_path: Path) -> list[dict[str, str]]:
    assert call(run, "--split", "val", "--output", tmp_path / "val") == 0
    return rows_of(tmp_path / "val" / "predictions.csv")


def measured(kind: str, names: list[str]) -> list[str]:
    return ["pneumonia"] if kind == "pair" else names


def test_a_threshold_counts_or_is_refused(trained, tmp_path, capsys):
    kind, data, run = trained
    images = [str(path) for path in sorted(data.rglob("*.png"))[:4]]
    given = [*images, "--checkpoint", str(run), "--output", str(tmp_path), "--device", "cpu", "--threshold"]
    if kind == "classes":
        assert predict.main([*given, "0.1"]) == 2
        assert "of 3 exclusive classes the most probable one is called" in capsys.readouterr().err
        assert call(run, "--threshold", "youden", "--output", tmp_path / "e") == 2
        assert "of 3 exclusive classes the most probable one is called" in capsys.readouterr().err
        return
    called = []
    for threshold in ("0", "1"):
        assert predict.main([*given, threshold]) == 0
        called.append({row["findings"] for row in rows_of(tmp_path / "predictions.csv")})
    all_of_it = {"pair": "pneumonia", "findings": "Wide|Small|Rare"}[kind]
    assert called == [{all_of_it}, {"normal" if kind == "pair" else ""}]


def test_a_pair_is_one_task(trained, tmp_path, capsys):
    """One row, one panel, one test; the other class is the positive one where the user says so."""
    kind, _, run = trained
    if kind != "pair":
        pytest.skip("of two exclusive classes")
    assert load_model(run / "best_model.pth").config.DATA.positive_class == "pneumonia"
    assert call(run, "--compare", run, "--output", tmp_path / "one", "--no-save") == 0
    results, printed = metrics_of(tmp_path / "one"), capsys.readouterr().out
    assert [one["name"] for one in results["classes"]] == ["pneumonia"] and results["accuracy"] is not None
    assert [one["name"] for one in results["comparison"]["classes"]] == ["pneumonia"] and not results["notes"]
    assert "compared with" in printed and "p, Holm" in printed and "+0.000 [+0.000 to +0.000]" in printed
    assert call(run, "--set", "DATA.positive_class=normal", "--output", tmp_path / "other", "--no-save") == 0
    other = metrics_of(tmp_path / "other")
    auroc = [one["classes"][0]["figures"]["auroc"]["value"] for one in (results, other)]
    assert other["classes"][0]["name"] == "normal" and auroc[0] == pytest.approx(auroc[1], abs=1e-12)
    assert call(run, "--set", "DATA.positive_class=flu", "--output", tmp_path / "none") == 2
    assert "'flu' is neither 'normal' nor 'pneumonia'" in capsys.readouterr().err


def test_what_was_never_positive_in_training_is_marked_everywhere(trained, tmp_path, capsys):
    kind, data, run = trained
    if kind != "findings":
        pytest.skip("of a table")
    assert load_checkpoint(run / "best_model.pth")["training_positives"] == [8, 6, 0]
    assert "none of the 24 images of the training split is positive for Rare" in (run / "train.log").read_text()
    assert call(run, "--output", tmp_path, "--no-save", figures=True) == 0
    results, printed = metrics_of(tmp_path), capsys.readouterr().out
    assert [one["positive_in_training"] for one in results["classes"]] == [True, True, False]
    aurocs = [one["figures"]["auroc"]["value"] for one in results["classes"]]
    assert None not in aurocs and results["mean"]["defined_classes"] == 2
    assert results["mean"]["figures"]["auroc"]["value"] == pytest.approx(np.mean(aurocs[:2]), abs=1e-12)
    assert "Rare †" in printed and "† no positive image in training, so not in the means: Rare" in printed
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("Rare †") >= 2
    image = str(next(data.glob("test*.png")))
    assert predict.main([image, "--checkpoint", str(run), "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert "Rare †" in capsys.readouterr().out
    content = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert content["no_positive_in_training"] == ["Rare"]
