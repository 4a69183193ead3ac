"""Weights as .safetensors, with what a checkpoint says about them in the file's metadata, and a digest of its own.

The format (https://github.com/huggingface/safetensors) has no checksum; other programs read these files all the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import CheckpointError, DamagedCheckpointError
from utils.atomic_file import replacing
from utils.listener import CheckpointContent, FileContent
from utils.renamed_keys import todays_content

_DIGEST = "sha256"
_NOT_JSON = ("format", _DIGEST)


def write_safetensors(path: Path, weights: Mapping[str, Tensor], description: CheckpointContent) -> None:
    """Write tensors and, as JSON strings in the metadata, plain values. Raises CheckpointError."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in description.items()}
    metadata |= {"format": "pt", _DIGEST: _digest(tensors, metadata)}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"cannot write '{path}': {' '.join(str(error).split())}") from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], FileContent]:
    """(name → tensor, what the metadata say) of any file; entries that are not JSON stay text.

    Raises CheckpointError where there is none; DamagedCheckpointError where it cannot be read, or where it has a
    digest of ours and it does not fit.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from None
    digest = metadata.pop(_DIGEST, None)
    if digest is not None and digest != _digest(tensors, metadata):
        raise DamagedCheckpointError(f"'{path}' is damaged: its content does not fit its digest")
    return tensors, todays_content({name: _plain(text) for name, text in metadata.items() if name not in _NOT_JSON})


def has_digest(path: Path) -> bool:
    """Whether a readable file has a digest of ours, which `read_safetensors` checks."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return _DIGEST in (file.metadata() or {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for name in sorted(set(metadata) - set(_NOT_JSON)):
        sha256.update(f"{name} {metadata[name]}\n".encode())
    return sha256.hexdigest()


def _plain(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
