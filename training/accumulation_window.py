"""One optimizer step over a window of micro-batches: read `AccumulationWindow.step` from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.attention_supervision import TERM, AttentionSupervision
from training.learner import Learner
from training.losses import Loss
from training.out_of_memory import memory_error
from training.parallel import Parallel, SingleProcess
from utils.batch import Batch, Logits, call_model
from utils.out_of_memory import catch_oom, free_memory
from utils.seed import random_state, set_random_state
from utils.torch_private import conditional_step


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step, still on the device.

    losses: their sum is the window's, over all processes. norm: of the gradients before clipping. applied: bool, False
    where the step was skipped. None has axes.
    """

    losses: list[Tensor]
    norm: Tensor
    applied: Tensor


class StepSnapshot:
    """A model's buffers (running statistics) and the random state, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self.random = random_state()

    @torch.no_grad()
    def restore_buffers_unless(self, applied: Tensor) -> None:
        """Restore the running statistics if the step was skipped, without a host–device synchronisation."""
        for buffer, before in self.buffers:
            torch.where(applied, buffer, before, out=buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore running statistics and random state."""
        for buffer, before in self.buffers:
            buffer.copy_(before)
        set_random_state(self.random)


class AccumulationWindow:
    """Makes a learner's optimizer steps; a step depends on the window's images, not on how it is cut or shared.

    loss: as sums and counts, divided by the valid labels of the whole window. forward: how training calls the network,
    which may be compiled or rounded as int8 (see `call_model`); the model itself where None. clip_norm: largest 2-norm
    of the gradients, None for no limit. memory_format: of the images that the network gets. supervision: a term that
    teaches attention; then it calls the network, not `forward`.
    """

    def __init__(
        self,
        learner: Learner,
        loss: Loss,
        forward: Callable[..., object] | None = None,
        clip_norm: float | None = 1.0,
        memory_format: torch.memory_format = torch.contiguous_format,
        parallel: Parallel | None = None,
        supervision: AttentionSupervision | None = None,
    ) -> None:
        self.learner, self.loss, self.supervision = learner, loss, supervision
        self.terms = loss.terms if supervision is None else (*loss.terms, TERM)
        self.forward: Callable[..., object] = learner.model if forward is None else forward
        self.clip_norm, self.memory_format = clip_norm, memory_format
        self.parallel: Parallel = SingleProcess() if parallel is None else parallel

    def step(self, window: Sequence[Batch], sent: Sequence[Batch]) -> StepResult | None:
        """One optimizer step; None, and nothing has changed, where no label of the window is valid.

        window: micro-batches on the CPU. sent: the same on the device, or the same objects.
        A step whose loss or gradients are not finite is skipped on the device: weights, running statistics, pruned
        weights and moving average stay. Nothing here waits for the device.
        Raises TrainingError where the smallest micro-batch does not fit into memory.
        """
        window, sent = self.parallel.share(window), self.parallel.share(sent)
        counts = self._global_counts(window)
        if not any(counts.values()):
            return None
        snapshot = StepSnapshot(self.learner.model)
        losses = self._accumulate(sent, counts, snapshot)
        number = self.learner.state.global_step + 1
        with catch_oom() as caught:
            return self._update(losses, snapshot)
        what = f"optimizer step {number}, which may be half applied: resume from the last checkpoint"
        raise memory_error(what, caught.failure) from None

    def send(self, batch: Batch) -> Batch:
        """A batch on the device, as the network wants it."""
        return batch.to(self.learner.device, self.memory_format)

    def _global_counts(self, window: Sequence[Batch]) -> dict[str, int]:
        """Valid labels of each term of the loss in the whole window, over all processes."""
        totals = dict.fromkeys(self.terms, 0)  # a process without a micro-batch adds zero
        for batch in window:
            taught = {} if self.supervision is None else self.supervision.counts(batch)
            for name, count in {**self.loss.counts(batch.targets), **taught}.items():
                totals[name] += count
        return self.parallel.sum(totals)

    def _accumulate(self, sent: Sequence[Batch], counts: dict[str, int], snapshot: StepSnapshot) -> list[Tensor]:
        """Accumulate gradients over the window and return the loss of each micro-batch.

        On out-of-memory the window is rolled back and retried with smaller micro-batches, or with recomputation.
        """
        learner = self.learner
        while True:
            with catch_oom() as caught:
                parts = (part for batch in sent for part in batch.split(learner.state.micro_batch_splits))
                return [self._backward(part, counts) for part in parts]
            learner.optimizer.zero_grad(set_to_none=True)
            snapshot.restore()
            free_memory(learner.device)
            learner.adaptation.adapt(learner.state, max(map(len, sent)), caught.failure)

    def _backward(self, batch: Batch, counts: dict[str, int]) -> Tensor:
        batch = batch.to(self.learner.device, self.memory_format)  # where it was not sent ahead
        if self.supervision is None:
            with self.learner.precision.autocast():
                logits = Logits.of(call_model(self.forward, batch.inputs))
            loss = self.loss.total(self.loss.sums(logits, batch.targets, batch.inputs), counts)
        else:
            logits, taught = self.supervision(batch, self.learner.precision)
            loss = self.loss.total(self.loss.sums(logits, batch.targets, batch.inputs), counts)
            loss = loss + self.supervision.total(taught, counts)
        self.learner.scaler.scale(loss).backward()
        return loss.detach()

    def _update(self, losses: list[Tensor], snapshot: StepSnapshot) -> StepResult:
        """From the window's gradients to weights, statistics and averages."""
        learner, parallel = self.learner, self.parallel
        losses = parallel.reduce_losses(losses)
        parallel.reduce_gradients(learner.model.parameters())
        learner.scaler.unscale_(learner.optimizer)
        norm = parallel.clip(learner.model.parameters(), self.clip_norm)
        # Losses and norm are those of all processes, so that each decides alike without asking the others.
        applied = torch.stack([*losses, norm]).isfinite().all()
        conditional_step(learner.optimizer, applied)
        learner.scaler.update()  # unscale_ has seen any infinities: the scale shrinks
        if learner.sparsity is not None:
            learner.sparsity.apply()
        snapshot.restore_buffers_unless(applied)
        if learner.ema is not None:
            learner.ema.update(learner.model, applied)
        learner.optimizer.zero_grad(set_to_none=True)
        return StepResult(losses, norm, applied)
