"""Adding to a checkpoint what was fitted after it was trained: calibration and thresholds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import CheckpointError
from utils.checkpoint.files import find_weights, load_checkpoint, save_checkpoint
from utils.checkpoint.safetensors_files import read_safetensors, write_safetensors
from utils.runs.lock import in_use

logger = logging.getLogger(__name__)

OPERATING_POINT = "operating_point"


def keep_operating_point(
    path: Path,
    point: Mapping[str, object],
    own_split: bool,
    weights: Mapping[str, Tensor] | None = None,
    claimed: bool = True,
) -> None:
    """`store_operating_point`, or a line that says why not; what is fitted is of use without it.

    own_split: it was fitted on the model's own validation split. What other images gave is not put into the file.
    claimed: whether this process alone evaluates the file; see `utils.claim`.
    """
    try:
        if not own_split:
            raise CheckpointError("it was fitted on other images than the model's own validation split")
        if not claimed:
            raise CheckpointError("another evaluation of this file was running when this one began")
        store_operating_point(path, point, weights)
        logger.info("calibration and thresholds (%s) are saved in %s", point["rule"], path)
    except CheckpointError as error:
        logger.warning("the operating point is used, but not saved in '%s': %s", path, error)


def store_operating_point(path: Path, point: Mapping[str, object], scored: Mapping[str, Tensor] | None = None) -> None:
    """Put plain values under 'operating_point' into a checkpoint or .safetensors file of ours, all else as it was.

    scored: the weights that it was fitted for, as the network has them; None: whatever the file holds.
    The file is replaced as a whole. Raises CheckpointError where it cannot be written, where it is not ours, where it
    has other weights by now, and where another process is training in its folder, whose newer file this would replace.
    """
    if in_use(path.parent):
        raise CheckpointError(f"another process is training in '{path.parent}'")
    if path.suffix != ".safetensors":
        content = load_checkpoint(path)
        average = content.get("ema")
        _check_same(find_weights(average["shadow"] if average else content.get("model")), scored)
        save_checkpoint({**content, OPERATING_POINT: dict(point)}, path)
        return
    weights, description = read_safetensors(path)
    if not isinstance(description.get("config"), dict):
        raise CheckpointError(f"'{path}' was not made by this program")
    _check_same(weights, scored)
    write_safetensors(path, weights, {**description, OPERATING_POINT: dict(point)})


def _check_same(weights: Mapping[str, Tensor] | None, scored: Mapping[str, Tensor] | None) -> None:
    if scored is not None and (weights is None or digest_of_weights(weights) != digest_of_weights(scored)):
        raise CheckpointError("its weights were changed while they were evaluated; evaluate it again")


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the numbers of all tensors, whatever they are called: an older file's names are not the network's.

    Floating-point numbers count as float32, which is what a network computes with.
    """
    tensors = (tensor.detach().cpu() for tensor in weights.values())
    numbers = (tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors)
    return hashlib.sha256("\n".join(sorted(map(_digest, numbers))).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    sha256 = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    sha256.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
