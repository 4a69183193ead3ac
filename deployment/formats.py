"""The formats by name, and the one way in which a file of any of them is made: written, run, compared, renamed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import ExportError
from deployment import onnx_format, openvino_format, tensorrt_format, torch_formats
from deployment.exported_network import Exportable
from deployment.exported_studies import ExportedStudyNetwork
from deployment.verification import BATCH_SIZES, Arrays, Run, check
from utils.atomic_file import replacing


@dataclass(frozen=True)
class Request:
    """What a file is to be. image_shape: (C, *spatial). batch: images at a time, None for any number.

    metadata: texts by name. opset: of ONNX and of what is made from it. precision: fp32, fp16 or bf16.
    """

    image_shape: tuple[int, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    batch: int | None = None
    opset: int = onnx_format.OPSET
    precision: str = "fp32"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """With how many images at a time the file is tried."""
        return BATCH_SIZES if self.batch is None else (self.batch,)


@dataclass(frozen=True)
class Format:
    """How a kind of file is written and run. precisions: those that can be run here, so that they can be compared."""

    write: Callable[[Exportable, Path, Request], None]
    open: Callable[[Path], Run]
    precisions: tuple[str, ...]


def export_file(network: Exportable, kind: str, path: Path, request: Request, images: Arrays) -> float:
    """Make a file of format `kind` and prove it: the largest |Δ| to the float32 network over `images`.

    images: float32 [N, C, *spatial], normalised, or all inputs of a network of studies. The file is written in a
    folder of its own beside `path`, run and compared, and only then takes its name; a second file that a format has
    goes with it.
    Raises ExportError, what was at `path` untouched, where any of this fails.
    """
    file_format = FORMATS[kind]
    if request.precision not in file_format.precisions:
        raise ExportError(
            f"{kind} in {request.precision} cannot be run here, so it cannot be verified: use "
            f"--precision {' or '.join(file_format.precisions)}"
        )
    with _complete(path) as temporary:
        file_format.write(network.in_precision(request.precision), temporary, request)
        return check(network, file_format.open(temporary), images, request.precision, request.batch_sizes)


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A file's name in a new folder beside `path`; at the end all files of that folder move beside `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", suffix=".tmp", dir=path.parent) as folder:
            yield Path(folder) / path.name
            # The file that is asked for comes last: where it is, all are.
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                with replacing(path.with_name(file.name)) as temporary:
                    shutil.move(file, temporary)
    except OSError as error:
        raise ExportError(f"cannot write '{path}': {error.strerror or error}") from None


def _write_onnx(network: Exportable, path: Path, request: Request) -> None:
    dynamic, batch = request.batch is None, request.batch or 1
    names, metadata = network.output_names(), request.metadata
    onnx_format.export_onnx(network, request.image_shape, path, metadata, request.opset, dynamic, batch, names)


def _write_program(network: Exportable, path: Path, request: Request) -> None:
    torch_formats.export_program(network, request.image_shape, path, request.metadata, request.batch)


def _write_script(network: Exportable, path: Path, request: Request) -> None:
    torch_formats.export_script(network, request.image_shape, path, request.metadata, request.batch)


def _write_openvino(network: Exportable, path: Path, request: Request) -> None:
    openvino_format.load_openvino()  # before the minute that the ONNX file takes
    with _onnx_file(network, request) as onnx:
        openvino_format.convert_onnx(onnx, path, request.metadata)


def _write_tensorrt(network: Exportable, path: Path, request: Request) -> None:
    if isinstance(network, ExportedStudyNetwork):
        raise ExportError("--format tensorrt is for single images: --images-only, or --format onnx for studies")
    tensorrt_format.load_tensorrt()
    with _onnx_file(network, request) as onnx:
        tensorrt_format.build_engine(onnx, path, request.image_shape, request.batch)
    # An engine has no place for texts.
    described = json.dumps(dict(request.metadata), ensure_ascii=False, indent=1) + "\n"
    path.with_name(f"{path.name}.json").write_text(described, encoding="utf-8")


@contextmanager
def _onnx_file(network: Exportable, request: Request) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _write_onnx(network, path, request)
        yield path


# onnxruntime and OpenVINO have no bf16 convolutions on every CPU; TorchScript's are torch's own.
FORMATS: dict[str, Format] = {
    "onnx": Format(_write_onnx, onnx_format.open_onnx, ("fp32", "fp16")),
    "torch_export": Format(_write_program, torch_formats.open_program, ("fp32", "fp16", "bf16")),
    "torchscript": Format(_write_script, torch_formats.open_script, ("fp32", "fp16", "bf16")),
    "openvino": Format(_write_openvino, openvino_format.open_openvino, ("fp32", "fp16")),
    "tensorrt": Format(_write_tensorrt, tensorrt_format.open_engine, ("fp32", "fp16", "bf16")),
}
