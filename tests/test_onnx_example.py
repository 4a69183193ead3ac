"""docs/examples/onnx_predict.py, which knows neither torch nor OpenCV nor this project, against predict.py."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image

import export
import predict
from data.transforms.images import Preprocess
from deployment.preparation import describe_input
from tests.small_models import NAMES, POINT, save_model

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "onnx_predict.py"
# What cannot be imported there, whatever the interpreter finds on its path.
WITHOUT = "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'cv2', 'scipy', 'pydicom', 'timm']))"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.usefixtures("logging_as_it_was"),  # main() takes over logging
]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Files of all the kinds that the example reads, smaller and larger than a model's input, and halves to round."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)

    def smooth(height, width, channels=1):
        coarse = rng.random((5, 6, channels)).astype(np.float32)
        return np.clip(cv2.resize(coarse, (width, height)) * 1.2 - 0.1, 0, 1).reshape(height, width, channels)

    def eight(*shape):
        return np.squeeze((smooth(*shape) * 255).astype(np.uint8))

    Image.fromarray(eight(150, 110)).save(folder / "grey.png")
    Image.fromarray(eight(96, 128) // 64 * 64).save(folder / "halves.png")  # twice the size, and as much
    Image.fromarray(eight(320, 192)).save(folder / "whole_steps.png")
    Image.fromarray(eight(20, 31)).save(folder / "small.png")
    Image.fromarray(eight(30, 200, 3)).save(folder / "wide_colour.png")
    Image.fromarray((smooth(140, 99)[..., 0] * 3000 + 200).astype(np.uint16)).save(folder / "sixteen.png")
    Image.fromarray((smooth(30, 50)[..., 0] * 4095).astype(np.uint16)).save(folder / "sixteen_small.png")
    Image.fromarray(eight(700, 500, 3)).save(folder / "large.jpg", quality=85)
    Image.fromarray(eight(301, 297)).save(folder / "grey.jpg", quality=85)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(eight(300, 700, 3)).save(folder / "turned.jpg", quality=90, exif=turned)
    Image.fromarray(eight(100, 80, 3)).save(folder / "colour.webp", lossless=True)
    Image.fromarray(eight(90, 70, 3)).quantize(16).save(folder / "palette.png")
    clear = np.dstack([eight(64, 90, 3), eight(64, 90)])
    Image.fromarray(clear).save(folder / "transparent.png")
    Image.fromarray(eight(80, 80) > 127).save(folder / "one_bit.png")
    return folder


def run_example(model: Path, files: list[Path], folder: Path) -> subprocess.CompletedProcess:
    """In an interpreter that finds no file of this repository."""
    code = f"{WITHOUT}; sys.argv[0] = 'onnx_predict.py'; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    command = [sys.executable, "-I", "-c", code, str(model), *map(str, files)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_interpreter_of_these_tests_cannot_import_the_project(tmp_path):
    code = f"{WITHOUT}; import data.readers"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ModuleNotFoundError: No module named 'data'" in done.stderr


@pytest.mark.parametrize(
    "preprocess, point, overrides",
    [
        (Preprocess((48, 64), 3, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), POINT, ()),
        pytest.param(
            Preprocess((64, 64), 1, [0.5], [0.25], "letterbox"),
            None,
            ("DATA.resize=letterbox", "MODEL.task=multi_class"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["stretch", "letterbox"],
)
def test_the_example_says_what_predict_says(preprocess, point, overrides, images, tmp_path, capsys):
    model = save_model(tmp_path / "model.pth", preprocess, point, *overrides)
    assert export.main([str(model)]) == 0
    files = sorted(images.iterdir())
    assert predict.main([*map(str, files), "--checkpoint", str(model), "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    said = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))["images"]
    done = run_example(tmp_path / "model.onnx", files, tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    key = "calibrated probabilities" if point else "probabilities"
    assert [row["image"] for row in found] == list(map(str, files)) and [*found[0][key]] == NAMES
    expected = np.array([[row["probabilities"][name] for name in NAMES] for row in said])
    values = np.array([list(row[key].values()) for row in found])
    assert np.ptp(expected, axis=0).max() > 0.05, "all images look alike to it"
    apart = np.abs(values - expected).max(axis=1)
    print({path.name: f"{worst:.0e}" for path, worst in zip(files, apart)})
    assert (apart < 1e-5).all()


def test_a_file_that_says_too_little_and_an_image_that_pillow_halves_are_refused(images, tmp_path):
    onnx_model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["image"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(onnx_model, tmp_path / "old.onnx")
    done = run_example(tmp_path / "old.onnx", [images / "grey.png"], tmp_path)
    assert done.returncode == 1 and done.stderr.strip().endswith("this is for single images")
    described = describe_input(Preprocess((8, 8), 3, [0.5], [0.5]).as_dict()).model_dump_json()
    onnx.helper.set_model_props(onnx_model, {"input": described, "classes": "[]", "output": "probabilities"})
    onnx.save(onnx_model, tmp_path / "new.onnx")
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 8, 3), np.uint16))
    done = run_example(tmp_path / "new.onnx", [tmp_path / "deep.png"], tmp_path)
    assert done.returncode == 1 and "a colour PNG of 16 bits, of which Pillow keeps 8" in done.stderr
