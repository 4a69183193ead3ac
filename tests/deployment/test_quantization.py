"""int8 and fp16 files: what is in them against a slow quantiser, what they compute, and what cannot be made."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from configs.errors import ExportError
from deployment.onnx_format import open_onnx, read_metadata
from deployment.quantization import METHODS, quantize_dynamic, quantize_static, to_half

SIDE, CHANNELS, HIDDEN, CLASSES = 8, 3, 64, 4


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.01, 1, 64, dtype=np.float32)  # channels of very different size
    return {
        "filters": rng.standard_normal((64, CHANNELS, 3, 3), dtype=np.float32) * spread[:, None, None, None],
        "first": rng.standard_normal((64, HIDDEN), dtype=np.float32) / 8,
        "last": rng.standard_normal((HIDDEN, CLASSES), dtype=np.float32) / 8,
    }


def write_network(path: Path, convolution: bool = True, products: bool = True) -> Path:
    """conv → ReLU → mean over the map → matrix product → ReLU → matrix product, any number of images."""
    nodes, name = [], "image"
    if convolution:
        nodes += [helper.make_node("Conv", [name, "filters"], ["map"], "conv", pads=[1, 1, 1, 1])]
        nodes += [
            helper.make_node("Relu", ["map"], ["positive"]),
            helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
        ]
        name = "means"
    nodes += [helper.make_node("Flatten", [name], ["vector"])]
    name = "vector"
    if products:
        nodes += [helper.make_node("MatMul", [name, "first"], ["hidden"], "first_product")]
        nodes += [helper.make_node("Relu", ["hidden"], ["hidden_positive"])]
        nodes += [helper.make_node("MatMul", ["hidden_positive", "last"], ["logits"], "last_product")]
        name = "logits"
    nodes += [helper.make_node("Sigmoid", [name], ["probabilities"])]
    size = [CHANNELS, SIDE, SIDE] if convolution else [64, 1, 1]
    used = {key: w for key, w in weights().items() if (convolution if key == "filters" else products)}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *size])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(w, key) for key, w in used.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"classes": '["a", "b"]'})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, SIDE, SIDE), dtype=np.float32)


def batches(count: int = 32) -> list[np.ndarray]:
    return np.array_split(images(count, 1), 4)


def integers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


def largest_difference(one: Path, other: Path, count: int = 5) -> float:
    x = images(count)
    return float(np.abs(open_onnx(one, 1)(x) - open_onnx(other, 1)(x)).max())


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("onnx") / "network.onnx")


def assert_slowly_rounded(stored: dict[str, np.ndarray], name: str, axis: int, most: int) -> None:
    """Whole numbers and steps of a weight as a loop in float64 has them: step = max |w| / most of each output."""
    weight = weights()[name].astype(np.float64)
    found = next(v for k, v in stored.items() if k.startswith(name) and k.endswith("_quantized"))
    steps = next(v for k, v in stored.items() if k.startswith(name) and k.endswith("_scale")).reshape(-1)
    assert found.dtype == np.int8 and np.abs(found.astype(int)).max() <= most
    for i in range(weight.shape[axis]):
        part, whole = np.take(weight, i, axis), np.take(found, i, axis).astype(np.float64)
        assert steps[i] == pytest.approx(np.abs(part).max() / most, rel=1e-5)
        assert np.abs(whole * steps[i] - part).max() <= 0.5001 * steps[i]


@pytest.mark.parametrize(("seven_bits", "most"), [(True, 64), (False, 127)])
def test_static_weights_are_rounded_a_channel(network, tmp_path, seven_bits, most):
    target = tmp_path / "static.onnx"
    assert quantize_static(network, target, batches(), seven_bits=seven_bits) > 0
    stored = integers(target)
    for name, axis in (("filters", 0), ("first", 1), ("last", 1)):
        assert_slowly_rounded(stored, name, axis, most)
    kinds = [node.op_type for node in onnx.load(str(target)).graph.node]
    assert kinds.count("Conv") == 1 and kinds.count("MatMul") == 2 and "DequantizeLinear" in kinds


@pytest.mark.parametrize("method", METHODS)
def test_static_files_compute_nearly_the_same(network, tmp_path, method):
    quantize_static(network, tmp_path / "static.onnx", batches(), method)
    difference = largest_difference(network, tmp_path / "static.onnx")
    print(f"{method}: largest difference of a probability {difference:.4f}")
    assert 0 < difference < 0.05


def test_dynamic_files_compute_nearly_the_same(network, tmp_path):
    assert quantize_dynamic(network, tmp_path / "dynamic.onnx") == 2
    difference = largest_difference(network, tmp_path / "dynamic.onnx")
    print(f"dynamic: largest difference of a probability {difference:.4f}")
    assert 0 < difference < 0.05
    stored = integers(tmp_path / "dynamic.onnx")
    assert_slowly_rounded(stored, "first", 1, 64)
    assert stored["filters"].dtype == np.float32  # convolutions stay


def test_files_keep_what_they_say_and_take_any_number_of_images(network, tmp_path):
    quantize_static(network, tmp_path / "static.onnx", batches())
    quantize_dynamic(network, tmp_path / "dynamic.onnx")
    to_half(network, tmp_path / "half.onnx")
    for kind in ("static", "dynamic", "half"):
        path = tmp_path / f"{kind}.onnx"
        assert read_metadata(path)["classes"] == '["a", "b"]'
        assert [open_onnx(path, 1)(images(count)).shape for count in (1, 7)] == [(1, CLASSES), (7, CLASSES)]
        together, single = open_onnx(path, 1)(images(3)), open_onnx(path, 1)(images(3)[:1])
        if kind != "dynamic":  # whose ranges are those of the batch
            np.testing.assert_allclose(together[:1], single, atol=1e-6)


def test_excluded_nodes_stay(network, tmp_path):
    quantize_static(network, tmp_path / "part.onnx", batches(), excluded=["last_product"])
    stored = integers(tmp_path / "part.onnx")
    assert stored["last"].dtype == np.float32 and "first" not in stored


def test_half_is_half_the_size_and_nearly_the_same(network, tmp_path):
    to_half(network, tmp_path / "half.onnx")
    model = onnx.load(str(tmp_path / "half.onnx"))
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.FLOAT16}
    kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert kinds == {TensorProto.FLOAT}
    difference = largest_difference(network, tmp_path / "half.onnx")
    print(f"fp16: largest difference of a probability {difference:.5f}")
    assert 0 < difference < 2e-3


# ---- what cannot be


def test_no_images(network, tmp_path):
    with pytest.raises(ExportError, match="no images to calibrate"):
        quantize_static(network, tmp_path / "static.onnx", [])
    assert not (tmp_path / "static.onnx").exists()


def test_unknown_method(network, tmp_path):
    with pytest.raises(ExportError, match="'best' is unknown: one of minmax, percentile, entropy"):
        quantize_static(network, tmp_path / "static.onnx", batches(), "best")


def test_nothing_to_quantise(tmp_path):
    only_convolutions = write_network(tmp_path / "conv.onnx", products=False)
    with pytest.raises(ExportError, match="no matrix products with weights"):
        quantize_dynamic(only_convolutions, tmp_path / "dynamic.onnx")
    assert not (tmp_path / "dynamic.onnx").exists()


@pytest.mark.parametrize("function", [quantize_dynamic, to_half, lambda s, t: quantize_static(s, t, batches())])
def test_a_file_that_is_no_network(tmp_path, function):
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ExportError, match=r"broken\.onnx' cannot be made (int8|fp16)"):
        function(tmp_path / "broken.onnx", tmp_path / "out.onnx")
