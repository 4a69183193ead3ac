"""Going on with an interrupted run."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from configs.default_config import Config
from configs.differences import differences
from configs.errors import CheckpointError
from training.learner import Learner
from training.state import TrainerState
from utils.listener import FileContent

logger = logging.getLogger("train")


def resume(learner: Learner, checkpoint: FileContent, config: Config) -> None:
    """Put a learner where the checkpoint was taken, and say which settings differ from those it was taken with.

    Raises CheckpointError, the learner unchanged, where the checkpoint is of other classes, model or optimizer.
    """
    before = checkpoint.get("config")
    classes = checkpoint.get("class_names")
    if not isinstance(classes, list) or list(map(repr, classes)) != list(map(repr, config.DATA.class_names or [])):
        names = ", ".join(map(str, classes)) if isinstance(classes, list) and classes else "?"
        raise CheckpointError(
            f"the run to resume has the classes {names}, the data now have "
            f"{', '.join(config.DATA.class_names or ['?'])}: start a new run, from its weights by MODEL.init_from"
        )
    if not isinstance(before, Mapping):
        raise CheckpointError("the settings in this checkpoint are damaged")
    messages, batch_size = _differences(before, config), _batch_size(before, config)
    learner.load_state_dict(checkpoint)
    for level, words in messages:
        logger.log(level, "different from the run's start: %s", words)
    _move_batches(learner.state, batch_size, config.TRAIN.batch_size)


def _differences(before: FileContent, config: Config) -> list[tuple[int, str]]:
    """Log lines about settings that differ. CheckpointError where those of the checkpoint are none."""
    try:
        found = differences(before, config.model_dump(mode="json"))
        mattering = "; ".join(str(difference) for difference in found if difference.matters)
        others = "; ".join(str(difference) for difference in found if not difference.matters)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # no mappings, or values that do not compare
        raise CheckpointError("the settings in this checkpoint are damaged") from None
    lines = [(logging.WARNING, f"the weights will differ: {mattering}")] if mattering else []
    return [*lines, (logging.INFO, f"without effect on the weights: {others}")] if others else lines


def _batch_size(before: FileContent, config: Config) -> int:
    section = before.get("TRAIN", {})
    size = section.get("batch_size", config.TRAIN.batch_size) if isinstance(section, Mapping) else None
    if type(size) is not int or not 0 < size < 1 << 31:
        raise CheckpointError("the settings in this checkpoint are damaged: TRAIN.batch_size")
    return size


def _move_batches(state: TrainerState, old: int, batch_size: int) -> None:
    """Where the batch size has changed, the epoch continues at the same image, or a few before it."""
    sums = state.sums
    if old == batch_size or not sums.batches:
        return
    images = sums.batches * old
    sums.batches = images // batch_size
    again = images - sums.batches * batch_size
    logger.warning("the epoch continues at image %d; %d images are seen twice in it", images - again, again)
