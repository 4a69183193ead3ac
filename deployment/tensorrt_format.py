"""TensorRT engines, built from an ONNX file: for one kind of GPU and one version of TensorRT."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from configs.errors import ExportError
from deployment.exported_network import INPUT
from deployment.verification import Run

# Batches that an engine with a dynamic batch is tuned for: least, usual, most.
BATCHES = (1, 8, 32)


def build_engine(onnx: Path, path: Path, image_shape: Sequence[int], batch: int | None) -> None:
    """Write an engine; types are those of the ONNX file. Raises ExportError where TensorRT or a GPU is not there."""
    trt = load_tensorrt()
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise ExportError(f"TensorRT does not take this model: {parser.get_error(0).desc()}")
    settings, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape(INPUT, *((size, *image_shape) for size in ((batch,) * 3 if batch else BATCHES)))
    settings.add_optimization_profile(profile)
    settings.clear_flag(trt.BuilderFlag.TF32)  # whose products keep 11 binary digits
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise ExportError("TensorRT could not build an engine of this model; its own messages are above")
    path.write_bytes(engine)


def open_engine(path: Path) -> Run:
    """Run an engine on the first GPU: float32 [B, C, *spatial] → its outputs."""
    trt = load_tensorrt()
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]

    def run(image: np.ndarray) -> list[np.ndarray]:
        tensors = {INPUT: torch.from_numpy(image).cuda()}
        context.set_input_shape(INPUT, image.shape)
        outputs = [name for name in names if name != INPUT]
        tensors |= {name: torch.empty(tuple(context.get_tensor_shape(name)), device="cuda") for name in outputs}
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream()
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return [tensors[name].cpu().numpy() for name in outputs]

    return run


def load_tensorrt() -> ModuleType:
    """The module. Raises ExportError where it, or a GPU that it could build for, is not there."""
    try:
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ExportError(
            f"TensorRT is not installed here ({error}): run `pip install tensorrt` on a machine with an NVIDIA GPU, or "
            "export --format onnx and build the engine there by `trtexec --onnx=…`"
        ) from None
    if not torch.cuda.is_available():
        raise ExportError("TensorRT builds engines for the GPU it runs on, and there is none here")
    return module
