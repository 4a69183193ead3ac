"""predict.py from the command line to its files: every kind of input, what it must equal, and what it must survive."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import predict
from configs.default_config import Config
from configs.followed import OF_STUDIES, PREDICT
from data.builder import build_loaders, open_data, saved_preprocess, split_data
from data.phantom.radiographs import write_phantom
from data.phantom.volumes import write_phantom_volumes
from evaluation.calibration import Calibration
from evaluation.operating_points import OperatingPoint
from inference.tta import IMAGE_TRANSFORMS, show
from models import HybridMedNet
from models.saved_model import load_model
from tests.data.readers import bad_images
from tests.settings_read import settings_read
from training.evaluation import Evaluator
from training.losses import TrainingLoss, binary_cross_entropy
from training.precision import Precision
from utils.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("logging_as_it_was")  # main() takes over logging

SIZE, COUNT = 32, 20
SETTINGS = [
    "MODEL.backbone=timm/test_resnet",
    "MODEL.pretrained=false",
    "MODEL.fpn_channels=8",
    "MODEL.fusion_channels=8",
    "TRAIN.mixed_precision=false",
    "TRAIN.channels_last=false",
    "DATA.num_workers=0",
]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, COUNT, 64, seed=6)  # of which each of the 14 findings has a positive
    return folder


def write_model(path: Path, data: Path, *settings: str, seed: int = 0, **description) -> Path:
    """A checkpoint as train.py writes it, of a network that has learnt nothing."""
    config = Config.from_overrides([*SETTINGS, f"DATA.data_dir={data}", f"DATA.image_size={SIZE}", *settings])
    dataset_index = open_data(config)
    config = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    torch.manual_seed(seed)
    model = HybridMedNet(config).eval()
    with torch.no_grad():  # logits of fresh networks are all alike
        for parameter in model.classifier.parameters():
            parameter.mul_(4)
    loaders = build_loaders(
        config, dataset_index, split_data(config, dataset_index), model.backbone.mean, model.backbone.std
    )
    names = list(dataset_index.class_names)
    content = {"config": config.model_dump(mode="json"), "class_names": names, "model": model.state_dict()}
    save_checkpoint(content | loaders.describe() | description, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(phantom, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "one.pth", phantom)


def run(output: Path, *arguments: object, code: int = 0) -> list[dict[str, str]]:
    """predict.main: the rows of its table."""
    given = [str(argument) for argument in (*arguments, "--output", output, "--device", "cpu")]
    assert predict.main(given) == code
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_results(output: Path) -> dict:
    return json.loads((output / "predictions.json").read_text("utf-8"))


def probabilities(rows: list[dict[str, str]], names) -> np.ndarray:
    return np.array([[float(row[f"probability {name}"]) for name in names] for row in rows])


# ---- what it must equal


def test_predictions_are_those_of_evaluation(phantom, checkpoint, tmp_path):
    rows = run(tmp_path, phantom / "labels.csv", "--checkpoint", checkpoint, "--batch-size", 5)
    saved = load_model(checkpoint)
    dataset_index = open_data(saved.config)
    backbone = saved.model.backbone
    loaders = build_loaders(saved.config, dataset_index, np.full(COUNT, "test"), backbone.mean, backbone.std)
    evaluator = Evaluator(saved.model, TrainingLoss(binary_cross_entropy), Precision("cpu", None), saved.class_names)
    scores = evaluator(loaders.test, "test").scores
    assert [row["image"] for row in rows] == [study.name for study in dataset_index.studies]
    difference = np.abs(probabilities(rows, saved.class_names) - scores).max()
    print(f"largest difference to evaluation: {difference:.1e}; probabilities {scores.min():.3f} to {scores.max():.3f}")
    assert difference < 1e-6 and np.ptp(scores) > 0.1
    assert [row["patient_id"] for row in rows] == [study.patient_id for study in dataset_index.studies]


def test_twice_the_same_bytes_whatever_the_random_state(phantom, checkpoint, tmp_path):
    contents = set()
    for seed, workers in ((0, 0), (1, 2)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            run(tmp_path, phantom / "images", "--checkpoint", checkpoint, "--num-workers", workers)
        contents.add((tmp_path / "predictions.csv").read_bytes())
    assert len(contents) == 1


def by_hand(path: Path, images: list[Path], transforms=IMAGE_TRANSFORMS[:1]) -> np.ndarray:
    """Logits of a file's model, image by image and view by view."""
    saved = load_model(path)
    backbone = saved.model.backbone
    preprocess = saved_preprocess(saved.preprocessing, saved.config, backbone.mean, backbone.std)
    found = []
    with torch.no_grad():
        for image in images:
            x = torch.from_numpy(preprocess(cv2.imread(str(image), cv2.IMREAD_UNCHANGED)))[None]
            found.append(
                np.mean([saved.model(show(x, transform))[0].double().numpy() for transform in transforms], axis=0)
            )
    return np.array(found)


def test_an_ensemble_with_views_is_the_mean_by_hand(phantom, checkpoint, tmp_path):
    """Another size, other normalisation, another order of classes, a calibration of its own."""
    calibration = Calibration("platt", False, (0.7,) * 14, tuple(np.linspace(-1, 1, 14).tolist()), ("",) * 14)
    point = OperatingPoint((0.2,) * 14, "youden", "val", 5, calibration)
    names = load_model(checkpoint).class_names[::-1]
    other = write_model(
        tmp_path / "other.pth",
        phantom,
        f"DATA.class_names=[{','.join(names)}]",
        "DATA.image_size=40",
        "DATA.mean=[0.5]",
        "DATA.std=[0.5]",
        seed=1,
        operating_point=point.as_dict(),
    )
    images = sorted((phantom / "images").iterdir())[:2]
    rows = run(tmp_path / "out", *images, "--checkpoint", checkpoint, other, "--tta")
    one, two = (by_hand(path, images, IMAGE_TRANSFORMS) for path in (checkpoint, other))
    want = (1 / (1 + np.exp(-one)) + calibration.probabilities(two)[:, ::-1]) / 2
    difference = np.abs(probabilities(rows, names[::-1]) - want).max()
    print(f"largest difference to the hand loop: {difference:.1e}")
    assert difference < 1e-6
    content = read_results(tmp_path / "out")
    assert [model["calibrated"] for model in content["models"]] == [False, True]
    assert content["threshold_source"] == "means of 1 of 2 models (youden, chosen on val (5 images))"
    assert set(content["thresholds"].values()) == {0.2} and content["test_time_augmentation"] is True


def test_the_operating_point_of_the_file(phantom, checkpoint, tmp_path, capsys):
    thresholds = (float("nan"), *np.linspace(0.1, 0.9, 13).tolist())
    calibration = Calibration("temperature", False, (0.5,) * 14, (0.0,) * 14, ("",) * 14)
    point = OperatingPoint(thresholds, "f1", "val", 7, calibration)
    path = write_model(tmp_path / "x.pth", phantom, operating_point=point.as_dict())
    image = sorted((phantom / "images").iterdir())[0]
    (row,) = run(tmp_path / "out", image, "--checkpoint", path)
    names = load_model(path).class_names
    chances = 1 / (1 + np.exp(-by_hand(path, [image])[0] / 2))
    np.testing.assert_allclose(probabilities([row], names)[0], chances, atol=1e-6)
    limits = (0.5, *thresholds[1:])
    want = [name for name, p, limit in zip(names, chances, limits) if p >= limit]
    assert want and row["findings"].split("|") == want
    assert read_results(tmp_path / "out")["images"][0]["findings"] == want
    assert (
        "f1, chosen on val (7 images); 0.5 where it was undefined" in read_results(tmp_path / "out")["threshold_source"]
    )
    displayed = capsys.readouterr().out
    assert displayed.count("  finding\n") == len(want) and "1 image: 1 predicted" in displayed
    (row,) = run(tmp_path / "out", image, "--checkpoint", path, "--threshold", 0)
    assert row["findings"].split("|") == list(names)


def test_the_results_name_models_versions_and_time(phantom, checkpoint, tmp_path):
    import hashlib

    run(tmp_path, phantom / "images", "--checkpoint", checkpoint, "--format", "csv", "json")
    content = read_results(tmp_path)
    (model,) = content["models"]
    assert model["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert model["backbone"] == "timm/test_resnet" and model["preprocessing"]["size"] == [SIZE, SIZE]
    assert content["packages"]["torch"] == torch.__version__.partition("+")[0] and content["time"].startswith("20")
    assert content["threshold_source"].startswith("0.5, as none were chosen")


# ---- inputs


def test_bad_files_are_rows_among_good_ones(phantom, checkpoint, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = sorted((phantom / "images").iterdir())[:3]
    for path in good:
        (folder / path.name).write_bytes(path.read_bytes())
    bad = []
    for kind in (bad_images.header_only, bad_images.truncated, bad_images.postscript, bad_images.animated):
        case = kind(np.random.default_rng(0), 14)
        assert case.must == "refuse"
        bad.append(f"bad_{kind.__name__}_{case.name}")
        (folder / bad[-1]).write_bytes(case.content)
    rows = run(tmp_path / "out", folder, "--checkpoint", checkpoint, code=3)
    assert [row["image"] for row in rows] == sorted([path.name for path in good] + bad)
    for row in rows:
        assert bool(row["error"]) == (row["image"] in bad) == (row["probability Edema"] == "")
    assert read_results(tmp_path / "out")["counts"] == {"images": 7, "predicted": 3, "errors": 4, "warnings": 0}
    run(tmp_path / "out", *(folder / name for name in bad), "--checkpoint", checkpoint, code=2)
    assert read_results(tmp_path / "out")["counts"]["predicted"] == 0


def test_dicom_and_jpeg(phantom, checkpoint, tmp_path):
    pixels = cv2.imread(str(sorted((phantom / "images").iterdir())[0]), cv2.IMREAD_UNCHANGED)
    (tmp_path / "a.dcm").write_bytes(bad_images.dicom(pixels))
    Image.fromarray(pixels).save(tmp_path / "b.jpg", quality=95)
    rows = run(tmp_path / "out", tmp_path / "a.dcm", tmp_path / "b.jpg", "--checkpoint", checkpoint)
    assert [row["error"] for row in rows] == ["", ""]
    assert rows[0]["warnings"] == "windowed DICOM (training: 8 bits)" and rows[1]["warnings"] == ""


def test_a_hostile_table(phantom, checkpoint, tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "images").mkdir(parents=True)
    name = "=cmd()|x.png"
    (folder / "images" / name).write_bytes(sorted((phantom / "images").iterdir())[0].read_bytes())
    table = folder / "list.csv"
    table.write_text(f'image,"@note",error\n"{name}","+SUM(A1)",-1\n', "utf-8")
    (row,) = run(tmp_path / "out", table, "--checkpoint", checkpoint)
    assert row["image"] == "images/" + name and row["'@note"] == "'+SUM(A1)" and row["input error"] == "-1"
    for outside in ("../secret.png", "/etc/passwd"):
        table.write_text(f"image\n{outside}\n", "utf-8")
        assert predict.main([str(table), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out2")]) == 2
        assert "line 2" in capsys.readouterr().err


# ---- warnings


def test_training_images_give_no_warning_and_others_do(phantom, checkpoint, tmp_path):
    rows = run(tmp_path / "out", phantom / "labels.csv", "--checkpoint", checkpoint)
    assert {row["warnings"] for row in rows} == {""}
    odd = tmp_path / "odd"
    odd.mkdir()
    pixels = cv2.imread(str(sorted((phantom / "images").iterdir())[0]), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(odd / "a_large.png"), cv2.resize(pixels, (256, 256)))
    cv2.imwrite(str(odd / "b_colour.png"), np.stack([pixels, pixels // 2, pixels // 3], axis=2))
    cv2.imwrite(str(odd / "c_deep.png"), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(odd / "d_white.png"), np.full_like(pixels, 255))
    cv2.imwrite(str(odd / "e_fine.png"), pixels)
    (odd / "list.csv").write_text(
        "image,view\n" + "\n".join(f"{path.name},PA" for path in sorted(odd.iterdir())) + "\ne_fine.png,SWIMMER\n"
    )
    large, colour, deep, white, fine, view = run(tmp_path / "out", odd / "list.csv", "--checkpoint", checkpoint)
    assert large["warnings"] == "height 256 pixels (training: 64); width 256 pixels (training: 64)"
    assert "colour (training: grey)" in colour["warnings"] and "16 bits (training: 8 bits)" in deep["warnings"]
    assert "mean brightness 1.00" in white["warnings"] and fine["warnings"] == ""
    assert view["warnings"].startswith("view SWIMMER (training: AP, ")
    assert read_results(tmp_path / "out")["counts"]["warnings"] == 5


# ---- heatmaps


def test_heatmaps_of_findings_or_of_the_likeliest(phantom, checkpoint, tmp_path, drawing):
    image = sorted((phantom / "images").iterdir())[0]
    with drawing():
        run(tmp_path, image, "--checkpoint", checkpoint, checkpoint, "--heatmaps", "--threshold", 1)
    (row,) = read_results(tmp_path)["images"]
    likeliest = max(row["probabilities"], key=row["probabilities"].get)
    assert row["findings"] == [] and row["heatmaps"] == [f"heatmaps/00000_1_{likeliest}.png"]
    with Image.open(tmp_path / row["heatmaps"][0]) as opened:
        assert opened.width > 400 and len(opened.convert("RGB").getcolors(2**20)) > 300
    second = sorted(row["probabilities"].values())[-2]
    run(tmp_path, image, "--checkpoint", checkpoint, "--heatmaps", "layer_cam", "--threshold", second - 1e-9)
    (row,) = read_results(tmp_path)["images"]
    assert len(row["heatmaps"]) == len(row["findings"]) == 2
    assert all((tmp_path / name).is_file() for name in row["heatmaps"])


# ---- other models


def test_volumes(tmp_path):
    data = tmp_path / "scans"
    write_phantom_volumes(data, 6, 64)
    settings = ("MODEL.backbone=convnext3d_tiny", "DATA.image_size=[8,16,16]")
    path = write_model(tmp_path / "v.pth", data, *settings)
    table = tmp_path / "scans" / "two.csv"
    table.write_text("\n".join((data / "labels.csv").read_text("utf-8").splitlines()[:3]) + "\n", "utf-8")
    rows = run(tmp_path / "out", table, "--checkpoint", path, "--heatmaps", "--threshold", 1)
    assert len(rows) == 2 and all(row["error"] == row["warnings"] == "" for row in rows)
    for image in read_results(tmp_path / "out")["images"]:
        assert [(tmp_path / "out" / name).is_file() for name in image["heatmaps"]] == [True]


def test_exclusive_and_hierarchical_models(phantom, tmp_path):
    for name in ("yes", "no", "perhaps"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    for index, image in enumerate(sorted((phantom / "images").iterdir())[:12]):
        location = tmp_path / "classes" / ("yes", "no", "perhaps")[index % 3] / image.name
        location.write_bytes(image.read_bytes())
    path = write_model(tmp_path / "e.pth", tmp_path / "classes")
    rows = run(tmp_path / "out", tmp_path / "classes", "--checkpoint", path)
    chances = probabilities(rows, ("no", "perhaps", "yes"))
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-12)
    assert [row["findings"] for row in rows] == [("no", "perhaps", "yes")[k] for k in chances.argmax(1)]
    path = write_model(tmp_path / "h.pth", phantom, "MODEL.hierarchical=true")
    rows = run(tmp_path / "out", phantom / "images", "--checkpoint", path)
    assert len(rows) == COUNT and probabilities(rows, load_model(path).class_names).shape == (COUNT, 14)


LEGACY = Path(predict.__file__).resolve().parents[1] / "shared" / "legacy"


@pytest.mark.skipif(not LEGACY.is_dir(), reason="no ../shared/legacy here: how the previous release's files are made")
def test_a_file_of_the_previous_release(phantom, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("make_checkpoint", LEGACY / "make_checkpoint.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    torch.save({"epoch": 7, "model_state_dict": recipe.state_dict("resnet34/flat")}, tmp_path / "old.pth")
    image = sorted((phantom / "images").iterdir())[0]
    (row,) = run(tmp_path / "out", image, "--checkpoint", tmp_path / "old.pth", "--set", "DATA.image_size=64")
    assert row["error"] == "" and "probability class 14" in row
    (model,) = read_results(tmp_path / "out")["models"]
    assert model["source"] == "previous release" and model["preprocessing"].startswith("as its settings")
    messages = capsys.readouterr().err
    for words in ("does not name its classes", "does not say how images", "does not describe its training images"):
        assert words in messages


# ---- the user's errors


def test_settings_are_followed_or_refused(phantom, checkpoint, tmp_path, capsys, monkeypatch):
    given = [str(phantom / "images"), "--checkpoint", str(checkpoint), "--output", str(tmp_path), "--device", "cpu"]
    for override, key in {
        "DATA.image_size=32": "DATA.image_size",
        "train.device=cpu": "TRAIN.device",
        "DATA.class_names=[a]": "DATA.class_names",
        "MODEL.task=multi_class": "MODEL.task",
    }.items():
        assert predict.main([*given, "--set", override]) == 2
        assert f"--set {key}: no effect in predict.py" in capsys.readouterr().err
    read = settings_read(lambda: predict.main([*given, "--set", "training.mixed_precision=false"]), monkeypatch)
    assert read >= {*PREDICT.keys, "MODEL.task"} - {*OF_STUDIES}  # these: tests/test_predict_studies.py


def test_a_setting_for_one_of_two_models(phantom, checkpoint, tmp_path, capsys):
    """Classes named for a file that does not name them, beside one that does."""
    held = load_checkpoint(checkpoint)
    names = held.pop("class_names")
    held["config"]["DATA"]["class_names"] = None
    save_checkpoint(held, tmp_path / "nameless.pth")
    image = sorted((phantom / "images").iterdir())[0]
    both = ["--checkpoint", checkpoint, tmp_path / "nameless.pth"]
    (row,) = run(tmp_path / "out", image, *both, "--set", f"data.class_names={json.dumps(names)}")
    assert {f"probability {name}" for name in names} <= row.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "there is no file or folder 'none.png'"),
        (["{data}", "--threshold", "2"], "from 0 to 1, not 2"),
        (["{data}", "--batch-size", "0"], "must be at least 1"),
        (["{data}", "--heatmaps", "grad_cma"], "unknown method 'grad_cma'"),
        (["{data}", "--device", "cuda:77"], "cuda:77"),
        (["{data}", "--output", "{data}/labels.csv/x"], "cannot make the folder"),
    ],
)
def test_errors_are_one_line(phantom, checkpoint, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [text.format(data=phantom) for text in arguments]
    assert predict.main([*given, "--checkpoint", str(checkpoint)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_files_that_are_no_models(phantom, tmp_path, capsys):
    (tmp_path / "x.pth").write_bytes(b"no model")
    for name in ("x.pth", "none.pth", "."):
        assert predict.main([str(phantom), "--checkpoint", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_help_does_not_need_torch():
    code = "import sys, predict\ntry: predict.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    root = Path(predict.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--tta" in done.stdout
