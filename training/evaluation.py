"""Scores, loss and metrics of a split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from configs.errors import TrainingError
from training.attention_supervision import ObservedModel
from training.loader import Loader
from training.losses import Loss
from training.precision import Precision
from training.region_figures import MeasuredRegions, RegionFigures, joined, measure_regions
from utils.batch import Batch, Logits, call_model
from utils.metrics import Metrics, classification_metrics
from utils.out_of_memory import catch_oom, free_memory, largest_part
from utils.progress import Progress
from utils.transfers import AsyncHostCopy, pipelined, prefetch_to_device

logger = logging.getLogger(__name__)


@dataclass
class Predictions:
    """Scores of one split: probabilities, targets and masks [N, K], rows of the dataset index [N], the mean loss.

    regions: of annotated ones, None where the batches have none.
    """

    scores: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    loss: float
    metrics: Metrics
    regions: RegionFigures | None = None


_Part = tuple[list[str], AsyncHostCopy, tuple[MeasuredRegions, torch.Tensor] | None]


@dataclass
class _PendingBatch:
    """A batch that the device is at: its labels, mask and rows, and the pending results of each of its parts.

    parts: names of the loss's terms; logits and the sums of these terms; what was measured of regions, with the rows.
    """

    labels: tuple[torch.Tensor, ...]
    counts: dict[str, int]
    parts: list[_Part]


@dataclass
class _Piece:
    """What a batch gives: rows of Predictions, sums of the loss's terms in each part, their counts."""

    rows: tuple[np.ndarray, ...]
    losses: list[dict[str, float]]
    counts: dict[str, int]
    regions: list[RegionFigures]


class Evaluator:
    """Runs a model over a split; needs no TrainingLoop.

    model: gives logits, or (coarse, fine) logits, see `call_model`; on its device. progress: see Progress.
    Batches that do not fit into memory are cut into smaller ones from then on, which changes scores by rounding at
    most; adapt: False to raise TrainingError instead. forward: how the model is called, itself where None.
    not_learnt: classes that means are not over.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        precision: Precision,
        class_names: tuple[str, ...],
        memory_format: torch.memory_format = torch.contiguous_format,
        progress: str = "auto",
        adapt: bool = True,
        forward: Callable[..., object] | None = None,
        not_learnt: Collection[str] = (),
    ) -> None:
        self.model, self.loss, self.precision, self.class_names = model, loss, precision, class_names
        self.memory_format, self.progress, self.adapt = memory_format, progress, adapt
        self.not_learnt = not_learnt
        self.splits = 1
        self.device = next(model.parameters()).device
        self.forward: Callable[..., object] = model if forward is None else forward

    @torch.inference_mode()
    def __call__(
        self, loader: Loader, title: str, should_stop: Callable[[], object] = lambda: None
    ) -> Predictions | None:
        """None where should_stop() asked to leave.

        Raises TrainingError where there is nothing to score, the model gives NaN, or one image does not fit.
        """
        self.model.eval()
        pieces: list[_Piece] = []
        bar = Progress(len(loader), title, self.progress, max(len(loader), 1))
        try:
            for pending in pipelined(self._pending(loader, title)):
                if pending is not None:
                    pieces.append(self._piece(pending))
                bar.advance(1)
                if should_stop():
                    return None
        finally:
            bar.close()
        return self._predictions(pieces, title)

    def _pending(self, loader: Loader, title: str) -> Iterator[_PendingBatch | None]:
        """Each batch as soon as its work is queued on the device; None for one without images."""
        batches = (batch for _, batch in loader.epoch(0))
        for batch, sent in prefetch_to_device(batches, self._send, self.device):
            if batch is None:
                yield None
            else:
                labels = (batch.targets.labels, batch.targets.mask, batch.index)
                assert sent is not None
                yield _PendingBatch(labels, self.loss.counts(batch.targets), self._begin(sent, title))

    def _send(self, batch: Batch) -> Batch:
        return batch.to(self.device, self.memory_format)

    def _begin(self, batch: Batch, title: str) -> list[_Part]:
        while True:
            with catch_oom() as caught:
                return [self._begin_part(part) for part in batch.split(self.splits)]
            free_memory(self.device)
            self._halve(len(batch), title, caught.failure)

    def _begin_part(self, batch: Batch) -> _Part:
        batch = self._send(batch)
        with self.precision.autocast():
            logits = Logits.of(call_model(self.forward, batch.inputs))
        sums = self.loss.sums(logits, batch.targets, batch.inputs)
        measured = None
        if batch.guidance is not None and isinstance(self.model, ObservedModel):
            measured = measure_regions(self.model, batch, self.precision)
        regions = None if measured is None else (measured, batch.index)
        return list(sums), AsyncHostCopy([logits.fine, *sums.values()]), regions

    def _piece(self, pending: _PendingBatch) -> _Piece:
        outputs = [(names, host_copy.get()) for names, host_copy, _ in pending.parts]
        measured = [part[2] for part in pending.parts if part[2] is not None]
        regions = [one.figures(index.cpu().numpy()) for one, index in measured]
        scores = np.concatenate([self.probabilities(logits).numpy() for _, (logits, *_) in outputs])
        losses = [dict(zip(names, map(float, sums))) for names, (_, *sums) in outputs]
        return _Piece((scores, *(tensor.numpy() for tensor in pending.labels)), losses, pending.counts, regions)

    def _halve(self, size: int, title: str, failure: str) -> None:
        before = largest_part(size, self.splits)
        if before == 1 or not self.adapt:
            advice = "set TRAIN.on_oom=adapt, lower TRAIN.batch_size, " if before > 1 else ""
            raise TrainingError(
                f"out of memory in {title} with {before} images at a time ({failure}): {advice}a smaller "
                "DATA.image_size or MODEL.backbone takes less"
            )
        self.splits *= 2
        after = largest_part(size, self.splits)
        logger.warning("out of memory in %s (%s): evaluation batch %d -> %d", title, failure, before, after)

    def _predictions(self, pieces: list[_Piece], title: str) -> Predictions:
        if not pieces:
            raise TrainingError(f"{title}: not one image of this split could be read")
        scores, targets, mask, index = (np.concatenate(column) for column in zip(*(piece.rows for piece in pieces)))
        if not np.isfinite(scores).all():
            raise TrainingError(f"{title}: the model gives NaN for {int((~np.isfinite(scores)).any(1).sum())} images")
        losses = [part for piece in pieces for part in piece.losses]
        sums = {name: torch.tensor(sum(part[name] for part in losses)) for name in losses[0]}
        counts = {name: sum(piece.counts[name] for piece in pieces) for name in pieces[0].counts}
        labels = (targets > 0.5).astype(np.float64)
        metrics = classification_metrics(scores, labels, mask, self.class_names, self.not_learnt)
        regions = joined(figures for piece in pieces for figures in piece.regions)
        return Predictions(scores, targets, mask, index, float(self.loss.total(sums, counts)), metrics, regions)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """In float64: float32's sigmoid makes ties of confident scores. [B, K] → [B, K]."""
        logits = logits.to("cpu", torch.float64)
        return logits.softmax(dim=1) if self.loss.exclusive else logits.sigmoid()
