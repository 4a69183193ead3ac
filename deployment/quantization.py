"""int8 ONNX files out of float32 ones, by onnxruntime: weights alone fixed beforehand, or activations too.

Weights are symmetric int8 of each output channel. Only products with weights are quantised (Conv, MatMul, Gemm): what
lies between them, LayerNorm, softmax and GELU above all, stays float32 in any case.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import ExportError
from utils.atomic_file import replacing

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

# How ranges of activations follow from the images that are shown.
METHODS = ("minmax", "percentile", "entropy")
# Convolutions of whole numbers are slow in onnxruntime without ranges that are known before.
_DYNAMIC_TYPES = ("MatMul", "Gemm")
_STATIC_TYPES = ("Conv", "MatMul", "Gemm")
_QUANTIZED = "quantized.onnx"


def quantize_dynamic(source: str | Path, target: str | Path, seven_bits: bool = True) -> int:
    """Write `target`: matrix products with int8 weights, activations quantised by the range they have at that moment.

    Needs no images. Convolutions stay float32, so that networks of them gain next to nothing.
    seven_bits: weights in −64…64. Processors without VNNI add two products of 8 bits in 16, which overflows otherwise.
    Returns how many products were quantised. Raises ExportError where there is none, or onnxruntime fails.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _prepared(source) as prepared, _quiet():
        quantize_dynamic(
            prepared,
            prepared.with_name(_QUANTIZED),
            op_types_to_quantize=list(_DYNAMIC_TYPES),
            per_channel=True,
            reduce_range=seven_bits,
            weight_type=QuantType.QInt8,
        )
        return _finish(
            prepared.with_name(_QUANTIZED), target, ("MatMulInteger", "DynamicQuantizeMatMul"), "matrix products"
        )


def quantize_static(
    source: str | Path,
    target: str | Path,
    images: Iterable[np.ndarray],
    method: str = "minmax",
    seven_bits: bool = True,
    excluded: Sequence[str] = (),
) -> int:
    """Write `target` with QuantizeLinear and DequantizeLinear about convolutions and matrix products.

    Activations are uint8 with ranges that are fixed from the images. images: batches float32 [B, C, *spatial] as
    the network is given them, of the training split. method: minmax, the whole range seen; percentile, 99.999 % of it;
    entropy, the range of least Kullback-Leibler divergence (Migacz 2017). seven_bits: see `quantize_dynamic`.
    excluded: names of nodes that stay float32.
    Returns how many tensors are quantised. Raises ExportError without images, for an unknown method, and where
    onnxruntime fails.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if method not in METHODS:
        raise ExportError(f"calibration method '{method}' is unknown: one of {', '.join(METHODS)}")
    kinds = (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy)
    with _prepared(source) as prepared, _quiet():
        reader = _reader(prepared, images)
        quantize_static(
            prepared,
            prepared.with_name(_QUANTIZED),
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_STATIC_TYPES),
            nodes_to_exclude=list(excluded),
            per_channel=True,
            reduce_range=seven_bits,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=dict(zip(METHODS, kinds, strict=True))[method],
        )
        return _finish(prepared.with_name(_QUANTIZED), target, ("QuantizeLinear",), "convolutions or matrix products")


def to_half(source: str | Path, target: str | Path) -> None:
    """Write `target` with float16 weights and arithmetic; input and outputs stay float32.

    Half the size; on a CPU, which has no float16 arithmetic in onnxruntime, no faster. Raises ExportError.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _naming_failures("fp16", source):
        onnx.save(convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(target))


def _reader(model: Path, images: Iterable[np.ndarray]) -> CalibrationDataReader:
    """onnxruntime's CalibrationDataReader over these images. Raises ExportError where there are none."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    name = onnx.load(str(model), load_external_data=False).graph.input[0].name
    batches = iter(images)
    first = next(batches, None)
    if first is None:
        raise ExportError("there are no images to calibrate int8 with: raise --calibration-count")

    everything = itertools.chain([first], batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(everything, None)
            return None if batch is None else {name: np.ascontiguousarray(batch, np.float32)}

    return Reader()


@contextmanager
def _prepared(source: str | Path) -> Iterator[Path]:
    """The file with shapes inferred and what can be folded folded, in a folder that is gone afterwards."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = Path(tempfile.mkdtemp(prefix="quantization-"))
    try:
        with _naming_failures("int8", source):
            # Symbolic shapes fail on what torch's exporter writes; those of onnx suffice.
            quant_pre_process(str(source), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
            yield folder / "prepared.onnx"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _naming_failures(kind: str, source: str | Path) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # onnxruntime's tools raise any type
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"'{source}' cannot be made {kind}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that onnxruntime's tools log on the root logger, and what they print."""
    root = logging.getLogger()
    before, root.disabled = root.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.disabled = before


def _finish(created: Path, target: str | Path, kinds: Sequence[str], what: str) -> int:
    """Count nodes of these kinds, and give the file its name; ExportError where there are none."""
    import onnx

    count = sum(node.op_type in kinds for node in onnx.load(str(created)).graph.node)
    if not count:
        raise ExportError(f"int8 would change nothing: this network has no {what} with weights; no file was written")
    with replacing(Path(target)) as temporary:
        shutil.move(created, temporary)
    return count
