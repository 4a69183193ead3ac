"""Adding to a checkpoint what was fitted after it was trained: calibration and thresholds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from configs.errors import CheckpointError
from utils.checkpoint.files import load_checkpoint, save_checkpoint
from utils.checkpoint.safetensors_files import read_safetensors, write_safetensors
from utils.runs.lock import in_use

logger = logging.getLogger(__name__)

OPERATING_POINT = "operating_point"


def keep_operating_point(path: Path, point: Mapping[str, object], own_split: bool) -> None:
    """`store_operating_point`, or a line that says why not; what is fitted is of use without it.

    own_split: it was fitted on the model's own validation split. What other images gave is not put into the file.
    """
    try:
        if not own_split:
            raise CheckpointError("it was fitted on other images than the model's own validation split")
        store_operating_point(path, point)
        logger.info("calibration and thresholds (%s) are saved in %s", point["rule"], path)
    except CheckpointError as error:
        logger.warning("the operating point is used, but not saved in '%s': %s", path, error)


def store_operating_point(path: Path, point: Mapping[str, object]) -> None:
    """Put plain values under 'operating_point' into a checkpoint or .safetensors file of ours, all else as it was.

    The file is replaced as a whole. Raises CheckpointError where it cannot be written, where it is not ours, and where
    another process is training in its folder, whose newer file this would replace.
    """
    if in_use(path.parent):
        raise CheckpointError(f"another process is training in '{path.parent}'")
    if path.suffix != ".safetensors":
        save_checkpoint({**load_checkpoint(path), OPERATING_POINT: dict(point)}, path)
        return
    weights, description = read_safetensors(path)
    if not isinstance(description.get("config"), dict):
        raise CheckpointError(f"'{path}' was not made by this program")
    write_safetensors(path, weights, {**description, OPERATING_POINT: dict(point)})
