"""export.py on a checkpoint: numbers, metadata, real images, the page's example, and errors of one line."""

import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

import export
from configs.default_config import Config
from configs.followed import EXPORT
from data.builder import saved_preprocess
from data.phantom.radiographs import draw_images, save_png
from data.readers.images import read_image
from data.run_images import real_images
from data.transforms.images import Preprocess
from deployment.onnx_format import open_onnx, read_metadata
from evaluation.fitting import stored_point
from inference.predictor import Predictor
from models import HybridMedNet
from models.saved_model import load_model
from tests.settings_read import DRAWING, settings_read
from training.precision import Precision
from utils.batch import Inputs
from utils.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["heart", "肺", "bone"]
PREPROCESSING = Preprocess((32, 32), 3, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]).as_dict()
CALIBRATION = {
    "method": "platt",
    "exclusive": False,
    "slopes": [0.5, 2.0, 1.5],
    "intercepts": [0.3, -0.2, 0.1],
    "reasons": [""] * 3,
}
POINT = {"calibration": CALIBRATION, "thresholds": [0.2, None, 0.4], "rule": "youden", "split": "val", "images": 9}
IMAGES = np.stack([Preprocess.from_dict(PREPROCESSING)(drawn.image) for drawn in draw_images(8, 64)])
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def save_model(path: Path, point: dict | None = POINT, **settings) -> Path:
    """A checkpoint of a network of 0.1 M parameters that gives different answers to different images."""
    given = {
        "backbone": "timm/test_resnet",
        "attention": "none",
        "fusion_channels": 32,
        "pretrained": False,
        **settings,
    }
    config = Config.from_overrides(["DATA.image_size=32", *(f"MODEL.{key}={value}" for key, value in given.items())])
    config = config.resolve(tuple(NAMES))
    torch.manual_seed(0)
    model = HybridMedNet(config)
    with torch.no_grad():
        for _ in range(30):  # running statistics, without which all images look alike to it
            model(torch.from_numpy(IMAGES))
    described = {"config": config.model_dump(mode="json"), "class_names": NAMES, "preprocessing": PREPROCESSING}
    save_checkpoint(described | {"model": model.state_dict()} | ({"operating_point": point} if point else {}), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder: a checkpoint, and a config.yaml that names six images."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "best_model.pth")
    rows = ["image,labels,patient_id"]
    (folder / "data").mkdir()
    for i, drawn in enumerate(draw_images(6, 64)):
        save_png(folder / "data" / f"{i}.png", drawn.image)
        rows.append(f"{i}.png,{NAMES[i % 3]},{i}")
    (folder / "data" / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "config.yaml").write_text(f"DATA: {{data_dir: {folder / 'data'}}}\n", encoding="utf-8")
    return folder


def run_export(capsys, *arguments) -> tuple[int, str, str]:
    code = export.main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


@pytest.fixture(scope="module")
def onnx_file(run) -> Path:
    """best_model.onnx of the run; the one ONNX export of this file."""
    assert export.main([str(run)]) == 0
    return run / "best_model.onnx"


def test_settings_are_followed_or_refused(run, tmp_path, capsys, monkeypatch):
    arguments = [run, "--output", tmp_path / "x.onnx", "--set"]
    for override, key in {"DATA.image_size=64": "DATA.image_size", "train.device=cpu": "TRAIN.device"}.items():
        code, _, err = run_export(capsys, *arguments, override)
        assert code == 2 and f"--set {key}: no effect in export.py" in err
    monkeypatch.setattr("deployment.formats.export_file", lambda *_: 0.0)
    read = settings_read(lambda: run_export(capsys, *arguments, f"data.data_dir={run / 'data'}"), monkeypatch)
    assert read >= {*EXPORT.keys, "MODEL.task"} - DRAWING


def test_the_file_agrees_with_prediction(onnx_file, run):
    """Images as predict.py reads them, logits and probabilities as it makes them."""
    saved = load_model(run / "best_model.pth")
    preprocess = saved_preprocess(
        saved.preprocessing, saved.config, saved.model.backbone.mean, saved.model.backbone.std
    )
    images = np.stack([preprocess(read_image(run / "data" / f"{i}.png")) for i in range(6)])
    (logits,) = Predictor([saved.model], Precision("cpu", None)).logits(Inputs.of_images(torch.from_numpy(images)))
    expected = stored_point(saved.description["operating_point"], 3).probabilities(logits.numpy(), False)
    found = open_onnx(onnx_file)(images)
    assert found.dtype == np.float32 and np.ptp(expected, axis=0).min() > 1e-3, "all images look alike to it"
    print(f"largest |Δ| to prediction: {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_file_says_what_it_is(onnx_file, run):
    reported = read_metadata(onnx_file)
    assert json.loads(reported["classes"]) == NAMES and json.loads(reported["preprocessing"]) == PREPROCESSING
    assert json.loads(reported["operating_point"]).items() >= POINT.items()
    assert json.loads(reported["decision"]) == {
        "rule": "thresholds",
        "classes": NAMES,
        "thresholds": {"heart": 0.2, "肺": 0.5, "bone": 0.4},
        "positive_class": None,
    }
    assert json.loads(reported["coarse_classes"]) == []
    assert (reported["task"], reported["output"]) == ("multi_label", "calibrated probabilities")
    assert (reported["backbone"], reported["attention"]) == ("timm/test_resnet", "none")
    assert reported["checkpoint_sha256"] == sha256((run / "best_model.pth").read_bytes()).hexdigest()
    assert reported["program"] == "HybridMedNet" and reported["torch"] and reported["program_commit"]
    assert json.loads(reported["calibration"]) == {**CALIBRATION, "applied": True}
    assert json.loads(reported["libraries"])["torch"] == reported["torch"] and reported["schema_version"] == "1"
    described, given = json.loads(reported["input"]), dict(PREPROCESSING)
    assert described["kind"] == "images" and described["resize"]["mode"] == given.pop("resize_mode")
    assert described.items() >= given.items()


def test_a_calibration_that_is_not_in_the_file_is_said_all_the_same(run, capsys, tmp_path):
    code, *_ = run_export(capsys, run, "--format", "torch_export", "--logits", "--output", tmp_path / "a.pt2")
    reported = {"calibration": "", "output": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=reported)
    assert code == 0 and reported["output"] == "logits"
    assert json.loads(reported["calibration"]) == {**CALIBRATION, "applied": False}


def images_for(path: Path) -> tuple[np.ndarray, str]:
    return real_images(load_model(path).config, path.parent, Preprocess.from_dict(PREPROCESSING))


def test_real_images_are_the_runs(run):
    found, origin = images_for(run / "best_model.pth")
    expected = [Preprocess.from_dict(PREPROCESSING)(read_image(run / "data" / f"{i}.png")) for i in range(6)]
    np.testing.assert_array_equal(found, expected)
    assert origin == "the run's data"


@pytest.mark.parametrize("names", [None, "./data/sample_chest_xray", "nowhere"])
def test_else_they_are_drawn_but_never_into_a_folder(names, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(run / "best_model.pth", tmp_path)
    if names:
        (tmp_path / "config.yaml").write_text(f"DATA: {{data_dir: {names}}}\n", encoding="utf-8")
    found, origin = images_for(tmp_path / "best_model.pth")
    assert found.shape == (8, 3, 32, 32) and origin == "drawn sample data"
    assert not (tmp_path / "data").exists() and not (tmp_path / "nowhere").exists()


def test_what_is_said_in_the_end(run, capsys, tmp_path):
    code, reported, _ = run_export(capsys, run, "--format", "torch_export", "--logits", "--output", tmp_path / "a.pt2")
    assert code == 0 and (tmp_path / "a.pt2").is_file()
    assert "a.pt2: torch_export in fp32, gives logits of 3 classes" in reported
    assert re.search(r"largest \|Δ\| to the network: \S+, over 4 random images and 6 of the run's data", reported)


def test_a_hierarchical_model_has_a_second_output(capsys, tmp_path):
    path = save_model(tmp_path / "h.pth", hierarchical=True, num_coarse_classes=2)
    assert run_export(capsys, path, "--format", "torch_export", "--fixed-batch", 2)[0] == 0
    reported = {"coarse_classes": "", "classes": ""}
    program = torch.export.load(tmp_path / "h.pt2", extra_files=reported).module()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        fine, coarse = program(x)
        logits = load_model(path).model(x)[0]
    assert fine.shape == (2, 3) and json.loads(reported["coarse_classes"]) == ["any finding", "no finding"]
    torch.testing.assert_close(coarse, logits.sigmoid())


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--output", "x.bin"], "of format onnx ends in .onnx"),
        (["--format", "torch_export", "--opset", "18"], "--opset is for --format onnx, openvino, tensorrt"),
        (["--opset", "17"], "opset 17: torch writes opset 18 or newer"),
        (["--fixed-batch", "0"], "at least 1 image"),
        (["--precision", "bf16"], "onnx in bf16 cannot be run here"),
        (["--format", "tensorrt"], "pip install tensorrt"),
    ],
)
def test_errors_are_one_line(run, arguments, reason, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if "tensorrt" in arguments:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, reported, error = run_export(capsys, run, *arguments)
    last = error.splitlines()[-1]
    assert code == 2 and reported == "" and last.startswith("error: ") and reason in last and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_calibration_that_is_asked_for_must_be_there(capsys, tmp_path):
    path = save_model(tmp_path / "plain.pth", None)
    code, _, error = run_export(capsys, path, "--calibrated")
    assert code == 2 and "has no calibration; evaluate.py --calibrate fits one" in error
    code, _, error = run_export(capsys, tmp_path / "nothing.pth")
    assert code == 2 and "does not exist" in error


def test_torchscript_is_called_deprecated(run, capsys, tmp_path, caplog):
    code, _, error = run_export(capsys, run, "--format", "torchscript", "--output", tmp_path / "x.torchscript")
    assert code == 0 and "TorchScript is deprecated by PyTorch" in caplog.text + error
    assert torch.jit.load(tmp_path / "x.torchscript")(torch.zeros(5, 3, 32, 32)).shape == (5, 3)


def test_help_does_not_wait_for_torch():
    code = "import sys, export; export.parse_arguments(['x']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
