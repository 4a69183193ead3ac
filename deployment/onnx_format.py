"""ONNX files by torch's exporter, and onnxruntime to run them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from configs.errors import ExportError
from deployment.torch_formats import inputs_of, traced_program
from deployment.verification import Run, first_line

OPSET = 18
# torch's exporter writes opset 18; newer ones are converted from it. Older ones it cannot do for every operation.
OLDEST_OPSET = 18
# Weights beyond this are in a second file, <name>.data: a protobuf message ends at 2 GiB.
LARGEST_FILE_BYTES = 2**31 - 2**27


def export_onnx(
    model: nn.Module,
    image_shape: Sequence[int],
    path: str | Path,
    metadata: Mapping[str, str],
    opset: int = OPSET,
    dynamic_batch: bool = True,
    batch: int = 1,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write an ONNX file whose input is float32 'image' [B, C, *spatial], or inputs as `Exportable.inputs` says.
    image_shape: (C, *spatial).

    dynamic_batch: any number of images at a time, the axis is called 'batch'; False: `batch` of them.
    metadata: the file's metadata_props. output_names: of the model's outputs in turn, those that it has not are left
    out; None: 'output', 'output_1', …
    Raises ExportError where an operation has no counterpart in ONNX, or the opset is one that cannot be written.
    """
    if opset < OLDEST_OPSET:
        raise ExportError(f"opset {opset}: torch writes opset {OLDEST_OPSET} or newer, set --opset to one of them")
    program = traced_program(model, image_shape, None if dynamic_batch else batch)
    count = len(program.graph_signature.user_outputs)
    names = list(output_names or ["output", *(f"output_{i}" for i in range(1, count))])[:count]
    inputs = [one.name for one in inputs_of(model, image_shape)]
    converted = _converted(program, opset, inputs, names, dynamic_batch)
    found = converted.model.opset_imports.get("")
    if found != opset:
        raise ExportError(
            f"opset {opset} cannot be written for this model: it stayed opset {found}, use --opset {found}"
        )
    converted.model.metadata_props.update(metadata)
    converted.save(path, external_data=_weight_bytes(model) > LARGEST_FILE_BYTES)


def open_onnx(path: str | Path, threads: int | None = None) -> Run:
    """Run an ONNX file by onnxruntime on the CPU: its inputs in its order → its outputs, one or a list."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors; its warnings are about optimisations
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*arrays: np.ndarray) -> np.ndarray | list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, dict(zip(names, arrays, strict=True)))
        return outputs if len(outputs) > 1 else outputs[0]

    return run


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata_props of an ONNX file, without reading its weights from a second file."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(str(path), load_external_data=False).metadata_props}


def _converted(
    program: torch.export.ExportedProgram, opset: int, inputs: list[str], names: list[str], dynamic_batch: bool
) -> torch.onnx.ONNXProgram:
    """torch's ONNXProgram; its progress messages, which it prints, are left out."""
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=names,
                dynamic_shapes=tuple({0: "batch"} for _ in inputs) if dynamic_batch else None,
                verbose=False,
            )
    except Exception as error:  # of torch's private module; any operation may have its own
        raise ExportError(f"ONNX has no counterpart of this model: {_reason(error)}") from error
    assert converted is not None, "without a file name, torch gives the program"
    return converted


def _reason(error: BaseException) -> str:
    """The innermost cause, which names the operation; the outer messages are about reporting it to torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _weight_bytes(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
