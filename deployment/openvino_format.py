"""OpenVINO's intermediate representation: two files, <name>.xml and <name>.bin, made from an ONNX file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from configs.errors import ExportError
from deployment.verification import Run

# Metadata stand under this name in the model's rt_info.
SECTION = "hybridmednet"


def convert_onnx(onnx: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Write `path` (.xml) and the .bin beside it. Raises ExportError where OpenVINO is not installed."""
    openvino = load_openvino()
    # Not openvino.convert_model, which reads ONNX in the same way but reports its use over the network.
    model = openvino.Core().read_model(str(onnx))
    for name, text in metadata.items():
        model.set_rt_info(text, [SECTION, name])
    openvino.save_model(model, str(path), compress_to_fp16=False)


def open_openvino(path: Path) -> Run:
    """Run the two files on the CPU: their inputs in their order → their outputs.

    In float32: left to itself, OpenVINO computes in bf16 where the processor has it, and is off by 1e-2.
    """
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = load_openvino().Core().compile_model(str(path), "CPU", settings)

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        results = compiled(arrays[0] if len(arrays) == 1 else list(arrays))
        return [results[output].copy() for output in compiled.outputs]

    return run


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata that `convert_onnx` wrote, from the .xml file."""
    model = load_openvino().Core().read_model(str(path))
    return {name: str(value.value) for name, value in model.get_rt_info()[SECTION].items()}


def load_openvino() -> ModuleType:
    """The module. Raises ExportError where it is not there."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ExportError(
            f"OpenVINO is not installed here ({error}): run `pip install openvino`, or export --format onnx, which "
            "OpenVINO reads too"
        ) from None
