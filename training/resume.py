"""Going on with an interrupted run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from configs.default_config import Config
from configs.differences import differences
from configs.errors import CheckpointError
from training.trainer import Trainer

logger = logging.getLogger("train")


def resume(trainer: Trainer, checkpoint: Mapping[str, Any], config: Config) -> None:
    """Put a trainer where the checkpoint was taken, and say which settings differ from those it was taken with.

    Raises CheckpointError, the trainer unchanged, where the checkpoint is of other classes, model or optimizer.
    """
    before = checkpoint.get("config", {})
    classes = checkpoint.get("class_names")
    if classes != config.DATA.class_names:
        raise CheckpointError(
            f"the run to resume has the classes {', '.join(classes or ['?'])}, the data now have "
            f"{', '.join(config.DATA.class_names or ['?'])}: begin a new run, from its weights by MODEL.init_from"
        )
    trainer.load_state_dict(dict(checkpoint))
    _say_differences(before, config)
    _move_batches(trainer, before, config.TRAIN.batch_size)


def _say_differences(before: Mapping[str, Any], config: Config) -> None:
    found = differences(before, config.model_dump(mode="json"))
    mattering = [str(difference) for difference in found if difference.matters]
    others = [str(difference) for difference in found if not difference.matters]
    if mattering:
        logger.warning("not as the run was begun, the weights will differ: %s", "; ".join(mattering))
    if others:
        logger.info("not as the run was begun, without effect on the weights: %s", "; ".join(others))


def _move_batches(trainer: Trainer, before: Mapping[str, Any], batch_size: int) -> None:
    """Where the batch size has changed, the epoch goes on at the same picture, or a few before it."""
    old = before.get("TRAIN", {}).get("batch_size", batch_size)
    sums = trainer.state.sums
    if old == batch_size or not sums.batches:
        return
    pictures = sums.batches * old
    sums.batches = pictures // batch_size
    again = pictures - sums.batches * batch_size
    logger.warning("the epoch goes on at picture %d; %d pictures are seen twice in it", pictures - again, again)
