"""What a training loop tells those who record it: content, never the loop itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypeAlias, TypedDict

from utils.metrics import MetricsRecord

if TYPE_CHECKING:  # readers of a run's status do without torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# Parameters and buffers by name, as nn.Module.state_dict() gives them.
StateDict: TypeAlias = "Mapping[str, Tensor]"
# What a checkpoint holds, part by part: tensors and plain values. The tensors are the live ones: whoever keeps content
# beyond the call copies or writes it, as the next step changes them.
CheckpointContent: TypeAlias = Mapping[str, object]
# What a file of such content, or a row of metrics.jsonl, says when it is read. Any: it may have been written by another
# version or by anyone, so its parts have no type before they are looked at, and whoever reads one must check it.
FileContent: TypeAlias = Mapping[str, Any]
# What the loop is at.
TrainingPhase: TypeAlias = Literal["training", "validating"]


class Scores(Protocol):
    """Of a split: probabilities, targets (0 to 1) and masks, [N, K]."""

    @property
    def scores(self) -> NDArray[np.float64]: ...
    @property
    def targets(self) -> NDArray[np.float32]: ...
    @property
    def mask(self) -> NDArray[np.bool_]: ...


class RegionRecord(TypedDict):
    """Of maps against annotated regions: how many these are, and means over them; area: their share of the image."""

    regions: int
    energy_inside: float
    pointing_game: float
    area: float


class EpochRecord(MetricsRecord):
    """The figures of one epoch; the fields of MetricsRecord are those of the validation split.

    epoch: counted from 1. step: optimizer steps since the run began, skipped ones among them. learning_rate: of the
    next step. seconds: of training and validation. data_wait_fraction: a share, 0 to 1. memory_mib: the most so far.
    attention: where regions are annotated.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    learning_rate: float
    skipped_steps: int
    seconds: float
    images_per_second: float
    data_wait_fraction: float
    memory_mib: float
    attention: NotRequired[RegionRecord]


@dataclass(frozen=True)
class EpochEnd:
    """What an epoch ended with.

    best_weights: the weights that the record's scores belong to: the moving average's where there is one.
    best_by: the figure that decides about the best, see utils/best_metric.py.
    content: what to resume from; the next epoch begins there. validation: the scores themselves, where they are known.
    """

    record: EpochRecord
    is_best: bool
    best_weights: StateDict
    content: CheckpointContent
    validation: Scores | None = None
    best_by: str | None = None


class Listener:
    """Records a training run; called by the loop between two optimizer steps. Override what is of interest."""

    def on_phase(self, phase: TrainingPhase) -> None:
        """The loop begins to train, or to validate."""

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by tag ('train/loss') of optimizer step `step`."""

    def on_epoch(self, end: EpochEnd) -> None:
        """An epoch is over; it is to be saved here, as `save` is not called for it."""

    def on_report(self, record: Mapping[str, object]) -> None:
        """The training is over: the report's row of metrics.jsonl, of a split and the best weights."""

    def save(self, content: CheckpointContent) -> None:
        """Write a checkpoint, within an epoch: it is due, or the loop is about to stop."""
