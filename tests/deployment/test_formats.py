"""Every format on a tiny network: its numbers, its metadata, its batches; and what is left where it goes wrong."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import ExportError
from deployment import formats, onnx_format, openvino_format, torch_formats
from deployment.exported_network import ExportedNetwork
from deployment.formats import FORMATS, Request, export_file
from deployment.onnx_format import export_onnx, open_onnx
from deployment.verification import BOUNDS, random_images
from models.heads import MultiLabelHead
from tests.deployment.toys import IMAGE_SHAPE, DependsOnValues, Toy, WithoutCounterpart

METADATA = {"classes": json.dumps(["肺", "heart"], ensure_ascii=False), "output": "probabilities", "empty": ""}
# torch's own, of TorchScript and of the exporter's insides.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
REQUEST = Request(IMAGE_SHAPE, METADATA)
IMAGES = random_images(IMAGE_SHAPE, 4)
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".torchscript", "openvino": ".xml"}


def network(**options) -> ExportedNetwork:
    return ExportedNetwork(Toy(**options), slopes=[1, 2, 3, 4], intercepts=[0.1, 0.2, 0.3, 0.4])


def needs_package(kind: str) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here")


def metadata_of(kind: str, path: Path) -> dict[str, str]:
    if kind == "onnx":
        return onnx_format.read_metadata(path)
    if kind == "openvino":
        return openvino_format.read_metadata(path)
    found = dict.fromkeys(METADATA, "")
    if kind == "torch_export":
        torch.export.load(path, extra_files=found)
    else:
        torch.jit.load(path, _extra_files=found)
    return {name: text.decode() if isinstance(text, bytes) else text for name, text in found.items()}


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_file_computes_what_the_network_does(kind, tmp_path):
    needs_package(kind)
    path, model = tmp_path / f"model{SUFFIXES[kind]}", network(hierarchical=True)
    difference = export_file(model, kind, path, REQUEST, IMAGES)
    assert difference < 1e-6
    # Independent of compare: five at a time, which nobody has tried.
    images = random_images(IMAGE_SHAPE, 5, seed=9)
    with torch.no_grad():
        expected = model(torch.from_numpy(images))
    for found, wanted in zip(FORMATS[kind].open(path)(images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert metadata_of(kind, path).items() >= METADATA.items()
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *(["model.bin"] if kind == "openvino" else [])}
    print(f"{kind}: largest |Δ| {difference:.1e}")


def test_the_head_in_openvino(tmp_path):
    """Which folds a bias or a calibration behind a sum into it, wrongly for more than one image."""
    needs_package("openvino")
    torch.manual_seed(0)
    line = {"slopes": [1, 2, 3, 4, 5], "intercepts": [0.1, 0.2, 0.3, 0.4, 0.5]}
    head, shape = ExportedNetwork(MultiLabelHead(8, 5), **line), (8, 4, 4)
    assert export_file(head, "openvino", tmp_path / "x.xml", Request(shape), random_images(shape)) < 1e-5


def test_a_fixed_batch_takes_no_other(tmp_path):
    export_file(network(), "torch_export", tmp_path / "x.pt2", replace(REQUEST, batch=2), IMAGES)
    run = torch_formats.open_program(tmp_path / "x.pt2")
    run(IMAGES[:2])
    with pytest.raises(Exception, match="Guard failed"):
        run(IMAGES[:3])


@pytest.mark.parametrize("kind, precision", [("onnx", "fp16"), ("torch_export", "fp16"), ("torch_export", "bf16")])
def test_half_types(kind, precision, tmp_path):
    path, whole = tmp_path / f"half{SUFFIXES[kind]}", network()
    difference = export_file(whole, kind, path, replace(REQUEST, precision=precision), IMAGES)
    assert 1e-6 < difference < BOUNDS[precision]
    assert FORMATS[kind].open(path)(IMAGES)[0].dtype == np.float32
    assert whole.network.fine.weight.dtype == torch.float32
    print(f"{kind} in {precision}: largest |Δ| {difference:.1e}")


def test_a_precision_that_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"onnx in bf16 cannot be run here.*fp32 or fp16"):
        export_file(network(), "onnx", tmp_path / "x.onnx", replace(REQUEST, precision="bf16"), IMAGES)


def test_opset_names_and_batch_are_those_asked_for(tmp_path):
    import onnx

    path = tmp_path / "x.onnx"
    export_onnx(network(), IMAGE_SHAPE, path, {}, opset=20, dynamic_batch=False, batch=2, output_names=["p", "q"])
    model = onnx.load(path)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20
    assert axes_of(model.graph.input) == {"image": [2, *IMAGE_SHAPE]} and axes_of(model.graph.output) == {"p": [2, 4]}
    open_onnx(path)(IMAGES[:2])
    with pytest.raises(Exception, match="invalid dimensions"):
        open_onnx(path)(IMAGES[:3])
    with pytest.raises(ExportError, match="opset 17: torch writes opset 18 or newer"):
        export_onnx(network(), IMAGE_SHAPE, path, {}, 17)


def axes_of(values) -> dict[str, list]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def test_weights_beyond_a_protobuf_message_are_in_a_second_file(tmp_path, monkeypatch):
    import onnx

    monkeypatch.setattr(onnx_format, "LARGEST_FILE_BYTES", 100)
    path = tmp_path / "large.onnx"
    assert export_file(network(), "onnx", path, REQUEST, IMAGES) < 1e-6
    assert {file.name for file in tmp_path.iterdir()} == {"large.onnx", "large.onnx.data"}
    graph = onnx.load(path, load_external_data=False).graph
    assert axes_of(graph.input) == {"image": ["batch", *IMAGE_SHAPE]}
    assert open_onnx(path)(IMAGES).shape == (4, 4) and onnx_format.read_metadata(path).items() >= METADATA.items()


@pytest.mark.parametrize("before", [None, b"the file of yesterday"])
def test_a_wrong_file_is_removed(before, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    if before:
        path.write_bytes(before)

    def open_wrongly(file: Path):
        run = torch_formats.open_program(file)
        return lambda image: [y + 2e-4 for y in run(image)]

    monkeypatch.setitem(FORMATS, "torch_export", replace(FORMATS["torch_export"], open=open_wrongly))
    with pytest.raises(ExportError, match=r"largest \|Δ\| 2\.0e-04.*removed"):
        export_file(network(), "torch_export", path, REQUEST, IMAGES)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_the_name_appears_last_and_whole(tmp_path, monkeypatch):
    """While a file is written, run and compared there is none of its name."""
    path, seen = tmp_path / "model.pt2", []

    def open_and_look(file: Path):
        seen.append((file.exists(), path.exists()))
        return torch_formats.open_program(file)

    monkeypatch.setitem(FORMATS, "torch_export", replace(FORMATS["torch_export"], open=open_and_look))
    export_file(network(), "torch_export", path, REQUEST, IMAGES)
    assert seen == [(True, False)] and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        export_file(network(), "torch_export", tmp_path / "file" / "x.pt2", REQUEST, IMAGES)


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_what_is_no_graph_says_why(kind, tmp_path):
    with pytest.raises(ExportError, match=r"torch.export cannot trace this model \(GuardOnDataDependent"):
        export_file(ExportedNetwork(DependsOnValues()), kind, tmp_path / "x", REQUEST, IMAGES)
    assert not list(tmp_path.iterdir())


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"ONNX has no counterpart of this model: .*eigvalsh|_linalg_eigh"):
        export_file(ExportedNetwork(WithoutCounterpart()), "onnx", tmp_path / "x", REQUEST, IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["openvino", "tensorrt"])
def test_a_missing_package_is_named_with_the_way_to_it(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setattr(formats, "_write_onnx", None)  # asked before any work
    with pytest.raises(ExportError, match=rf"not installed here.*pip install {kind}.*--format onnx"):
        export_file(network(), kind, tmp_path / "x", REQUEST, IMAGES)


def test_what_an_engine_cannot_say_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.tensorrt_format, "load_tensorrt", lambda: None)
    monkeypatch.setattr(formats.tensorrt_format, "build_engine", lambda onnx, path, *_: path.write_bytes(b"engine"))
    model = network()
    opened = torch_formats.run_module(model)
    monkeypatch.setitem(FORMATS, "tensorrt", replace(FORMATS["tensorrt"], open=lambda path: opened))
    monkeypatch.setattr(formats, "_write_onnx", lambda *_: None)
    export_file(model, "tensorrt", tmp_path / "x.engine", REQUEST, IMAGES)
    assert {file.name for file in tmp_path.iterdir()} == {"x.engine", "x.engine.json"}
    assert json.loads((tmp_path / "x.engine.json").read_text(encoding="utf-8")) == METADATA


def test_tensorrt(tmp_path):
    pytest.importorskip("tensorrt", reason="TensorRT is not installed here")
    if not torch.cuda.is_available():
        pytest.skip("TensorRT builds for a GPU, and there is none here")
    assert export_file(network(), "tensorrt", tmp_path / "x.engine", REQUEST, IMAGES) < BOUNDS["fp32"]
