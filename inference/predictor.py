"""Logits of one or several models over batches: the one way in which evaluation and prediction ask a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import PredictionError
from inference.tta import TestTimeTransform, show, transforms_for
from utils.batch import Batch, Inputs, Logits, call_model
from utils.out_of_memory import catch_oom, free_memory, largest_part
from utils.progress import Progress
from utils.transfers import AsyncHostCopy, pipelined, prefetch_to_device

logger = logging.getLogger(__name__)


class Autocast(Protocol):
    """What is needed of training's Precision: its name, and the context of a forward pass."""

    @property
    def name(self) -> str: ...

    def autocast(self) -> AbstractContextManager: ...


class Loader(Protocol):
    """Batches of one split; training/loader.py's loaders are such, and data's ImageLoader."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, /) -> Iterator[tuple[int, Batch | None]]: ...


class Predictor:
    """Runs members, models of the same classes, over the same batches.

    members: give logits [B, K] or (coarse, fine) logits, of which the fine ones are taken, see `call_model`; all on
    one device; they are put into eval mode. tta: the mean of the logits over the transforms of inference/tta.py.
    Batches that do not fit into memory are cut into smaller ones from then on, which changes logits by rounding.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        precision: Autocast,
        memory_format: torch.memory_format = torch.contiguous_format,
        tta: bool = False,
    ) -> None:
        if not members:
            raise ValueError("a Predictor needs at least one model")
        self.members = [member.eval() for member in members]
        self.precision, self.memory_format, self.tta = precision, memory_format, tta
        self.device = next(members[0].parameters()).device
        self.splits = 1

    def logits(self, inputs: Inputs) -> list[Tensor]:
        """B studies, on any device → float64 [B, K] on the CPU, one per member.

        Raises PredictionError where one image does not fit into memory.
        """
        return self.begin(inputs)()

    @torch.inference_mode()
    def begin(self, inputs: Inputs) -> Callable[[], list[Tensor]]:
        """As `logits`, in two steps: what comes back gives them, and only that waits for the device."""
        while True:
            with catch_oom() as caught:
                parts = [self._begin(part) for part in inputs.split(self.splits)]
                return lambda: [torch.cat(column) for column in zip(*map(self._mean, parts))]
            free_memory(self.device)
            self._halve(inputs.studies, caught.failure)

    def over(self, loader: Loader, title: str, progress: str = "auto") -> tuple[np.ndarray, np.ndarray]:
        """(logits float64 [M, N, K], rows of the dataset index int64 [N]) of a loader's epoch 0.

        Images that the loader cannot read are left out. progress: see Progress.
        Raises PredictionError where no image could be read or a model gives NaN.
        """
        logits, index = [], []
        bar = Progress(len(loader), title, progress, max(len(loader), 1))
        try:
            for pending in pipelined(self._pending_batches(loader)):
                if pending is not None:
                    rows, result = pending
                    logits.append(torch.stack(result()).numpy())
                    index.append(rows.numpy())
                bar.advance(1)
        finally:
            bar.close()
        if not logits:
            raise PredictionError(f"{title}: not one image could be read")
        together = np.concatenate(logits, axis=1)
        broken = ~np.isfinite(together).all(axis=(0, 2))
        if broken.any():
            raise PredictionError(f"{title}: a model gives NaN or infinity for {int(broken.sum())} images")
        return together, np.concatenate(index)

    def _pending_batches(self, loader: Loader) -> Iterator[tuple[Tensor, Callable[[], list[Tensor]]] | None]:
        """Rows of each batch and what gives its logits; None for a batch without images."""
        batches = (batch for _, batch in loader.epoch(0))
        pairs = (None if batch is None else (batch.index, batch.inputs) for batch in batches)
        for _, sent in prefetch_to_device(pairs, lambda pair: (pair[0], self._send(pair[1])), self.device):
            yield None if sent is None else (sent[0], self.begin(sent[1]))

    def _send(self, inputs: Inputs) -> Inputs:
        return inputs.to(self.device)

    def _begin(self, inputs: Inputs) -> AsyncHostCopy:
        """The logits of each transform and member, in this order."""
        inputs = self._send(inputs)
        transforms = (show(inputs.image, transform) for transform in self._transforms(inputs.image))
        transformed = (
            inputs._replace(image=image.contiguous(memory_format=self.memory_format)) for image in transforms
        )
        return AsyncHostCopy([self._forward(member, one) for one in transformed for member in self.members])

    def _transforms(self, image: Tensor) -> tuple[TestTimeTransform, ...]:
        return transforms_for(image) if self.tta else (TestTimeTransform(),)

    def _mean(self, host_copy: AsyncHostCopy) -> list[Tensor]:
        """One per member: the mean over the transforms, in float64."""
        found, members = [logits.to(torch.float64) for logits in host_copy.get()], len(self.members)
        return [sum(found[m::members][1:], found[m]) / (len(found) // members) for m in range(members)]

    def _forward(self, member: nn.Module, inputs: Inputs) -> Tensor:
        with self.precision.autocast():
            return Logits.of(call_model(member, inputs)).fine

    def _halve(self, size: int, failure: str) -> None:
        before = largest_part(size, self.splits)
        if before == 1:
            raise PredictionError(
                f"out of memory with one image ({failure}): use another --device, or a model of a smaller image size"
            )
        self.splits *= 2
        logger.warning(
            "out of memory (%s): batches of %d images -> %d", failure, before, largest_part(size, self.splits)
        )
