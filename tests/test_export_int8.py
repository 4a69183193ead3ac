"""export.py --quantize: the int8 file beside the ONNX file, its images, and what it lacks."""

import json
from pathlib import Path

import numpy as np
import pytest

from data import run_images
from data.builder import open_data
from data.phantom.radiographs import draw_images, save_png
from data.splits.assignment import write_split
from deployment.onnx_format import open_onnx, read_metadata
from models.saved_model import load_model
from tests.test_export import NAMES, run_export, save_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with images and a split.csv: images 1 and 4 are tested on."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "best_model.pth")
    (folder / "data").mkdir()
    rows = ["image,labels,patient_id"]
    for i, drawn in enumerate(draw_images(6, 64)):
        save_png(folder / "data" / f"{i}.png", drawn.image)
        rows.append(f"{i}.png,{NAMES[i % 3]},{i}")
    (folder / "data" / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "config.yaml").write_text(f"DATA: {{data_dir: {folder / 'data'}}}\n", encoding="utf-8")
    config = load_model(folder / "best_model.pth").config
    config.DATA.data_dir = str(folder / "data")
    write_split(folder / "split.csv", open_data(config), np.array(["train", "test", "train", "val", "test", "train"]))
    return folder


def test_static_with_the_runs_training_images(run, capsys, monkeypatch):
    seen = []
    original = run_images.training_images

    def watched(*arguments):
        for image in original(*arguments):
            seen.append(image)
            yield image

    monkeypatch.setattr(run_images, "training_images", watched)
    code, reported, problems = run_export(capsys, run, "--quantize", "static", "--calibration-count", 2)
    assert code == 0, problems
    target = run / "best_model.int8.onnx"
    assert f"{target}: int8 static" in reported and "is to be measured" in reported
    assert [image.shape for image in seen] == [(1, 3, 32, 32)] * 2  # of three
    assert json.loads(read_metadata(target)["classes"]) == NAMES
    images = np.concatenate(seen)
    difference = np.abs(open_onnx(target)(images) - open_onnx(run / "best_model.onnx")(images)).max()
    print(f"int8 against fp32: {difference:.4f}")
    assert 0 < difference < 0.1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--quantize", "dynamic", "--format", "torch_export"], "--quantize makes an int8 file of a float32 ONNX"),
        (["--quantize", "static", "--precision", "fp16"], "--quantize makes an int8 file of a float32 ONNX"),
        (["--quantize", "static", "--calibration-count", 0], "--calibration-count 0: at least 1"),
    ],
)
def test_errors_are_one_line(run, arguments, reason, capsys):
    code, _, problems = run_export(capsys, run, *arguments)
    assert code == 2 and reason in problems and "Traceback" not in problems


def test_static_needs_to_know_what_was_trained_on(run, capsys, tmp_path):
    save_model(tmp_path / "best_model.pth")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    code, _, problems = run_export(capsys, tmp_path, "--quantize", "static")
    assert code == 2 and "split.csv', which says what it was trained on" in problems
    assert not list(tmp_path.glob("*.onnx"))
