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
from deployment.exported_network import INPUT, Exportable, NetworkInput, ready_for_export
from deployment.verification import Run, first_line

EXAMPLE_BATCH = 2  # torch.export takes 0 and 1 for constants


def traced_program(model: nn.Module, image_shape: Sequence[int], batch: int | None = None) -> ExportedProgram:
    """The model as a graph of tensor operations by torch.export. image_shape: (C, *spatial).

    batch: images at a time that the graph is for; None: any number from one on.
    Raises ExportError with torch's reason where the model cannot be one graph.
    """
    example = example_inputs(model, image_shape, batch)
    size = torch.export.Dim("batch", min=1)
    shapes = None if batch else {name: {0: size} for name in example}
    try:
        with ready_for_export(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(example) > 1:
                return torch.export.export(model, (), example, dynamic_shapes=shapes)
            by_place = None if shapes is None else tuple(shapes.values())
            return torch.export.export(model, tuple(example.values()), dynamic_shapes=by_place)
    except Exception as error:  # the tracer, the compiler and the model raise any type
        raise ExportError(
            f"torch.export cannot trace this model ({type(error).__name__}: {first_line(error)})"
        ) from error


def inputs_of(model: nn.Module, image_shape: Sequence[int]) -> tuple[NetworkInput, ...]:
    """What a model takes; one that does not say it, images."""
    return model.inputs(image_shape) if isinstance(model, Exportable) else (NetworkInput(INPUT, tuple(image_shape)),)


def example_inputs(model: nn.Module, image_shape: Sequence[int], batch: int | None) -> dict[str, Tensor]:
    """Zeros, by name."""
    size = batch or EXAMPLE_BATCH
    return {one.name: torch.zeros(size, *one.shape, dtype=one.dtype) for one in inputs_of(model, image_shape)}


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
    """Run a .pt2 file: its inputs in its order → its outputs."""
    program = torch.export.load(path)
    names = program.graph_signature.user_inputs
    return run_module(program.module(), [] if len(names) == 1 else [str(name) for name in names])


def export_script(
    model: nn.Module, image_shape: Sequence[int], path: Path, metadata: Mapping[str, str], batch: int | None = None
) -> None:
    """Write a TorchScript file by tracing. Raises ExportError with torch's reason."""
    example = example_inputs(model, image_shape, batch)
    try:
        with ready_for_export(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(example) > 1:
                traced = torch.jit.trace(model, example_kwarg_inputs=example, check_trace=False)
            else:
                traced = torch.jit.trace(model, tuple(example.values()), check_trace=False)
            torch.jit.save(traced, path, _extra_files=dict(metadata))
    except Exception as error:
        raise ExportError(
            f"TorchScript cannot trace or write this model ({type(error).__name__}: {first_line(error)})"
        ) from error


def open_script(path: Path) -> Run:
    """Run a TorchScript file: its inputs in its order → its outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_module(torch.jit.load(path))


def run_module(module: Callable[..., Tensor | tuple[Tensor, ...]], names: Sequence[str] = ()) -> Run:
    """A module, a program's `module()` or a script as arrays in, arrays out. names: of the arrays, where the module
    takes them by name.
    """

    @torch.inference_mode()
    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        tensors = [torch.from_numpy(array) for array in arrays]
        outputs = module(**dict(zip(names, tensors, strict=True))) if names else module(*tensors)
        return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run
