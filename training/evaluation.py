"""Scores, loss and metrics of a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from configs.errors import TrainingError
from training.losses import TrainingLoss
from training.precision import Precision
from training.progress import Progress
from utils.metrics import Metrics, classification_metrics


@dataclass
class Predictions:
    """Scores of one split: probabilities, targets and masks [N, K], rows of the catalogue [N], the mean loss."""

    scores: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    loss: float
    metrics: Metrics


@dataclass
class _Sums:
    """What the batches of a split have given so far."""

    rows: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, tensors: tuple[torch.Tensor, ...], losses: Mapping, counts: Mapping[str, int]) -> None:
        self.rows.append(tuple(tensor.cpu().numpy() for tensor in tensors))
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + float(value)
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count


class Evaluator:
    """Runs a model over a split; needs no Trainer.

    model: pictures → logits, or (coarse, fine) logits; on its device. progress: see Progress.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: TrainingLoss,
        precision: Precision,
        class_names: tuple[str, ...],
        memory_format: torch.memory_format = torch.contiguous_format,
        progress: str = "auto",
    ) -> None:
        self.model, self.loss, self.precision, self.class_names = model, loss, precision, class_names
        self.memory_format, self.progress = memory_format, progress
        self.device = next(model.parameters()).device
        self.forward: Callable = model

    @torch.inference_mode()
    def __call__(self, loader, title: str, should_stop: Callable[[], int] = lambda: 0) -> Predictions | None:
        """None where should_stop() gave a signal's number. Raises TrainingError where there is nothing to score."""
        self.model.eval()
        sums = _Sums()
        bar = Progress(len(loader), title, self.progress, max(len(loader), 1))
        try:
            for _, batch in loader.epoch(0):
                if batch is not None:
                    self._add(sums, batch)
                bar.advance(1)
                if should_stop():
                    return None
        finally:
            bar.close()
        return self._predictions(sums, title)

    def _add(self, sums: _Sums, batch) -> None:
        batch = batch.to(self.device, self.memory_format)
        with self.precision.autocast():
            outputs = self.forward(batch.image)
        logits = outputs[1] if isinstance(outputs, tuple) else outputs
        tensors = (self.probabilities(logits), batch.target, batch.mask, batch.index)
        sums.add(tensors, self.loss.sums(outputs, batch), self.loss.counts(batch))

    def _predictions(self, sums: _Sums, title: str) -> Predictions:
        if not sums.rows:
            raise TrainingError(f"{title}: not one picture of this split could be read")
        scores, targets, mask, index = (np.concatenate(column) for column in zip(*sums.rows))
        loss = float(self.loss.total({n: torch.tensor(v) for n, v in sums.losses.items()}, sums.counts))
        if not np.isfinite(scores).all():
            raise TrainingError(f"{title}: the model gives NaN for {int((~np.isfinite(scores)).any(1).sum())} pictures")
        metrics = classification_metrics(scores, (targets > 0.5).astype(np.float64), mask, self.class_names)
        return Predictions(scores, targets, mask, index, loss, metrics)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """In float64: float32's sigmoid makes ties of confident scores. [B, K] → [B, K]."""
        logits = logits.to("cpu", torch.float64)
        return logits.softmax(dim=1) if self.loss.exclusive else logits.sigmoid()
