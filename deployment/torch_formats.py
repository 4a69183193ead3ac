"""PyTorch's own formats: torch.export's programs (.pt2), and TorchScript, which torch has deprecated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from configs.errors import ExportError
from deployment.exported_network import ready_for_export
from deployment.verification import Run, first_line

INPUT = "image"
EXAMPLE_BATCH = 2  # torch.export takes 0 and 1 for constants


def traced_program(model: nn.Module, image_shape: Sequence[int], batch: int | None = None) -> ExportedProgram:
    """The model as a graph of tensor operations by torch.export. image_shape: (C, *spatial).

    batch: images at a time that the graph is for; None: any number from one on.
    Raises ExportError with torch's reason where the model cannot be one graph.
    """
    example = torch.zeros(batch or EXAMPLE_BATCH, *image_shape)
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    try:
        with ready_for_export(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example,), dynamic_shapes=shapes)
    except Exception as error:  # the tracer, the compiler and the model raise any type
        raise ExportError(
            f"torch.export cannot trace this model ({type(error).__name__}: {first_line(error)})"
        ) from error


def export_program(
    model: nn.Module, image_shape: Sequence[int], path: Path, metadata: Mapping[str, str], batch: int | None = None
) -> None:
    """Write a .pt2 file; the metadata are its extra files: `torch.export.load(path, extra_files={name: ""})`."""
    program = traced_program(model, image_shape, batch)
    try:
        torch.export.save(program, path, extra_files=dict(metadata))
    except RuntimeError as error:  # torch's writer hides the OSError of a full disk in one
        raise ExportError(f"cannot write '{path}': {first_line(error)}") from error


def open_program(path: Path) -> Run:
    """Run a .pt2 file: float32 [B, C, *spatial] → its outputs."""
    return run_module(torch.export.load(path).module())


def export_script(
    model: nn.Module, image_shape: Sequence[int], path: Path, metadata: Mapping[str, str], batch: int | None = None
) -> None:
    """Write a TorchScript file by tracing. Raises ExportError with torch's reason."""
    example = torch.zeros(batch or EXAMPLE_BATCH, *image_shape)
    try:
        with ready_for_export(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(model, example, check_trace=False), path, _extra_files=dict(metadata))
    except Exception as error:
        raise ExportError(
            f"TorchScript cannot trace or write this model ({type(error).__name__}: {first_line(error)})"
        ) from error


def open_script(path: Path) -> Run:
    """Run a TorchScript file: float32 [B, C, *spatial] → its outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_module(torch.jit.load(path))


def run_module(module: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> Run:
    """A module, a program's `module()` or a script as arrays in, arrays out."""

    @torch.inference_mode()
    def run(image: np.ndarray) -> list[np.ndarray]:
        outputs = module(torch.from_numpy(image))
        return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run
