"""Where training stands: plain numbers that checkpoints carry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class EpochSums:
    """What an epoch has added up so far; plain numbers, so that an interrupted epoch can be continued.

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

    global_step: optimizer steps so far, those among them that were skipped as loss or gradients were not finite.
    nonfinite_in_a_row: of the last ones, how many were skipped, those left out in which fp16 found its loss scale.
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
