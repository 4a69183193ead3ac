"""Where training stands: plain numbers that checkpoints carry, and what a window may have to be undone to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utils.seed import random_state, set_random_state


@dataclass
class EpochSums:
    """What an epoch has added up so far; plain numbers, so that an interrupted epoch can go on.

    seconds: of the whole loop; data_wait_seconds: of these, waiting for data.
    """

    batches: int = 0
    loss: float = 0.0
    steps: int = 0
    skipped: int = 0
    images: int = 0
    seconds: float = 0.0
    data_wait_seconds: float = 0.0

    @property
    def mean_loss(self) -> float:
        return self.loss / self.steps if self.steps else math.nan


@dataclass
class TrainerState:
    """Where training stands between two optimizer steps.

    micro_batch_splits: into how many micro-batches each of the loader's batches is cut, to fit into memory.
    recomputation: the micro-batch that gradient checkpointing was planned for when memory ran out; 0: it was not.
    """

    epoch: int = 0
    global_step: int = 0
    nonfinite_in_a_row: int = 0
    best_score: float = -math.inf
    best_epoch: int = -1
    micro_batch_splits: int = 1
    recomputation: int = 0
    sums: EpochSums = field(default_factory=EpochSums)


class StepSnapshot:
    """A model's buffers (running statistics) and torch's random state, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self.random = random_state()

    @torch.no_grad()
    def restore_buffers_unless(self, step_applied: Tensor) -> None:
        """Make the running statistics what they were where `step_applied`, a bool on the device, is false; nobody
        waits.
        """
        for buffer, before in self.buffers:
            torch.where(step_applied, buffer, before, out=buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Make running statistics and random state what they were."""
        for buffer, before in self.buffers:
            buffer.copy_(before)
        set_random_state(self.random)
