"""Checkpoints: the only torch.save and torch.load of the project.

A checkpoint holds tensors and plain Python values, so `weights_only=True` reads it and nothing in it can run.
"""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import CheckpointError

FORMAT_VERSION = 1
_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write atomically: a temporary file in the same folder, flushed to disk, then renamed.

    content: tensors and plain values only; anything else is a CheckpointError before the old file is touched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        _safe_load(temporary, "cpu", mmap=True)  # what cannot be read again must not replace what can
        temporary.replace(path)
        _sync_folder(path.parent)
    except CheckpointError as error:
        raise CheckpointError(f"cannot write checkpoint '{path}': {error}") from None
    except (OSError, RuntimeError, TypeError, AttributeError, pickle.PicklingError) as error:
        raise CheckpointError(f"cannot write checkpoint '{path}': {_first_line(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote. Raises CheckpointError for anything else, and where a CRC does not fit."""
    content = _safe_load(path, map_location)
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"'{path}' is not a checkpoint of this program")
    version = content["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(f"'{path}' has format {version!r}, this program reads up to {FORMAT_VERSION}: update it")
    return content


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name → tensor of a .safetensors file or of a torch file, whatever entry they stand under.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`) are taken off. Raises CheckpointError.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content: Any = _load_safetensors(path)
    else:
        # Published files carry their command line as a Namespace, which holds values and does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = _safe_load(path, "cpu")
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        raise CheckpointError(f"'{path}' holds no model weights (names with tensors)")
    return {_strip_prefixes(str(name)): tensor for name, tensor in content.items()}


def _strip_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _safe_load(path: Path, map_location: str | torch.device, mmap: bool = False) -> Any:
    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist")
    try:
        _check_readable(path)
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' holds more than tensors and plain values, and is not opened for safety: {_first_line(error)}"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"'{path}' is damaged or not a torch file: {_first_line(error)}") from None


def _check_readable(path: Path) -> None:
    """torch.load does not look at the CRC32s of its own zip format; a flipped bit would pass unnoticed."""
    if not zipfile.is_zipfile(path):
        return  # the older format without a zip around it; torch.load judges it
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"entry {damaged} fails its checksum")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {_first_line(error)}") from None


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
