"""Out of memory: noticed, and answered by smaller micro-batches and recomputation, of which the result is the same.

A window that did not fit is undone and done again. First its micro-batches are halved, then gradient checkpointing is
switched on, then they are halved down to single images. The loss is divided by the window's number of valid labels,
so the optimizer step does not depend on the cut; batch normalisation does: its statistics are those of the smaller
micro-batches, as if TRAIN.batch_size had been lowered (MODEL.norm=group does not depend on it).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from configs.errors import CheckpointError, ModelError, TrainingError
from training.state import TrainerState
from utils.gradient_checkpointing import Checkpointable
from utils.out_of_memory import catch_oom, largest_part

logger = logging.getLogger(__name__)

_SMALLER = "a smaller DATA.image_size or a smaller MODEL.backbone takes less; see also what else uses this device"
_FEWER = (
    "set TRAIN.on_oom=adapt or MODEL.gradient_checkpointing.enabled=true, or lower TRAIN.batch_size and raise "
    "TRAIN.gradient_accumulation_steps by the same factor"
)


@contextmanager
def memory_needed(what: str) -> Iterator[None]:
    """Running out of memory inside is a TrainingError that names `what`: for work that no smaller batch makes fit."""
    with catch_oom() as caught:
        yield
    if caught.failure:
        raise memory_error(what, caught.failure) from None


def memory_error(what: str, failure: str) -> TrainingError:
    """For work that no smaller batch makes fit. failure: what the allocator said."""
    less = "TRAIN.optimizer=sgd and TRAIN.ema_decay=0 keep fewer numbers for each weight"
    return TrainingError(f"out of memory in {what} ({failure}): {less}; {_SMALLER}")


class Adaptation:
    """The way down to a step that takes less memory; how far it was gone is written into a TrainerState.

    autocast: of forward passes, for which checkpointing is planned. allowed: False for TRAIN.on_oom=stop.
    images_per_study: on average; batches are counted in studies.
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: torch.dtype | None,
        accumulation_steps: int,
        allowed: bool,
        images_per_study: float = 1.0,
    ) -> None:
        self.model, self.autocast, self.allowed = model, autocast, allowed
        self.images_per_study = images_per_study
        self.accumulation_steps, self.batch_size = accumulation_steps, 0  # the largest batch that was too much
        self.checkpointing = ""  # the outcome of switching it on, once tried

    def adapt(self, state: TrainerState, size: int, failure: str) -> None:
        """Go one step down from what failed on batches of `size` images, and log it.

        Raises TrainingError where that is not allowed, or where there is no further step.
        """
        part = largest_part(size, state.micro_batch_splits)
        self.batch_size = max(size, self.batch_size)
        if not self.allowed:
            raise TrainingError(f"out of memory with a micro-batch of {part} ({failure}): {_FEWER}; {_SMALLER}")
        note = ""
        if not self.checkpointing and (state.micro_batch_splits > 1 or part == 1):
            images = math.ceil(max(part, 2) * self.images_per_study)  # two, as batch normalisation needs them
            if self._recompute(state, images):
                logger.warning("out of memory with a micro-batch of %d (%s): %s", part, failure, self.checkpointing)
                return
            note = f"; {self.checkpointing}"
        if part == 1:
            raise TrainingError(self._exhausted(size, failure))
        self._halve(state, failure, note)

    def _halve(self, state: TrainerState, failure: str, note: str) -> None:
        size, before = self.batch_size, state.micro_batch_splits
        state.micro_batch_splits *= 2
        sizes = [largest_part(size, splits) for splits in (before, state.micro_batch_splits)]
        steps = [self.accumulation_steps * min(splits, size) for splits in (before, state.micro_batch_splits)]
        logger.warning(
            "out of memory (%s): micro-batch %d -> %d, accumulation %d -> %d, effective batch still %d%s",
            *(failure, *sizes, *steps, size * self.accumulation_steps, note),
        )

    def _recompute(self, state: TrainerState, images: int) -> bool:
        """Switch checkpointing on, planned for so many images; False where it is on or cannot be."""
        model, name = self.model, "gradient checkpointing"
        if not isinstance(model, Checkpointable):
            self.checkpointing = f"{name} is not possible: {type(model).__name__} has no list of blocks"
        elif model.is_gradient_checkpointing_enabled():
            self.checkpointing = f"{name} is on already"
        else:
            try:
                plan = model.enable_gradient_checkpointing(batch_size=images, autocast=self.autocast)
            except ModelError as error:
                self.checkpointing = f"{name} is not possible: {error}"
                return False
            if plan.runs:
                self.checkpointing = f"{name} switched on: {plan}"
                state.recomputation = images
                return True
            self.checkpointing = f"{name} would save nothing"
        return False

    def _exhausted(self, size: int, failure: str) -> str:
        tried = f"a batch of {size} was cut into single images" if size > 1 else "the batch is a single image"
        return f"out of memory ({failure}), though {tried}, and {self.checkpointing}: {_SMALLER}"

    def resume(self, state: TrainerState) -> None:
        """Continue as a saved run did: switch checkpointing on where memory had run out, and log what is active.

        Raises CheckpointError for a model that cannot recompute.
        """
        if state.micro_batch_splits > 1:
            logger.info("each batch is cut into %d micro-batches, as memory had run out", state.micro_batch_splits)
        if not state.recomputation:
            return
        if not isinstance(self.model, Checkpointable):
            raise CheckpointError("the run to resume recomputes activations, and this model cannot")
        if not self.model.is_gradient_checkpointing_enabled():
            plan = self.model.enable_gradient_checkpointing(batch_size=state.recomputation, autocast=self.autocast)
            logger.info("gradient checkpointing, as memory had run out: %s", plan)
