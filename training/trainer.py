"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.errors import TrainingError
from training.distillation import DistillationLoss
from training.ema import ExponentialMovingAverage
from training.evaluation import Evaluator, Predictions
from training.losses import TrainingLoss
from training.optim import LearningRateSchedule
from training.out_of_memory import Adaptation, memory_needed
from training.pending import Outcome, PendingSteps, conditional_step
from training.precision import Precision
from training.sparsity import SparseWeights
from training.state import EpochSums, StepSnapshot, TrainerState
from training.state_check import check_resumable
from utils.batch import Batch, Logits, call_model
from utils.interrupt import Interrupted
from utils.out_of_memory import catch_oom, free_memory
from utils.progress import Progress, peak_memory_mib
from utils.seed import random_state, set_random_state
from utils.transfers import prefetch_to_device

logger = logging.getLogger(__name__)


@dataclass
class TrainerOptions:
    """Numbers that the loop needs; see TRAIN, LOGGING and CHECKPOINT in configs/default_config.py for their meaning.

    read_every: steps between two looks at what came of them, for which the device must be waited for.
    """

    epochs: int
    accumulation_steps: int = 1
    clip_norm: float | None = 1.0
    early_stopping_patience: int = 0
    max_nonfinite_steps: int = 10
    memory_format: torch.memory_format = torch.contiguous_format
    progress: str = "plain"
    print_freq: int = 10
    on_oom: str = "adapt"
    save_every_steps: int = 0
    read_every: int = 1


class Trainer:
    """Trains a model on batches; knows nothing of files, configs or architectures.

    model: gives logits, or (coarse, fine) logits, see `call_model`. should_stop() gives the number of a signal, or 0.
    on_step(global_step, figures) and on_epoch(trainer, record, is_best) are called with what happened; save(trainer) is
    asked to write a checkpoint before the loop leaves on a signal, and every options.save_every_steps steps.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: TrainingLoss,
        optimizer: Optimizer,
        schedule: LearningRateSchedule,
        precision: Precision,
        options: TrainerOptions,
        class_names: tuple[str, ...],
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loss: TrainingLoss | DistillationLoss = loss  # of training; the evaluator has its own
        self.precision, self.options, self.class_names, self.ema = precision, options, class_names, ema
        self.scaler = precision.scaler()
        self.sparsity: SparseWeights | None = None
        self.device = next(model.parameters()).device
        self.state = TrainerState()
        self.pending = PendingSteps()
        self.image_names: Callable | None = None  # what a batch's images are called, from its index
        self.forward: Callable = model
        adapt = options.on_oom == "adapt"
        self.evaluator = Evaluator(model, loss, precision, class_names, options.memory_format, options.progress, adapt)
        self.adaptation = Adaptation(model, precision.dtype, options.accumulation_steps, adapt)
        self.should_stop: Callable[[], int] = lambda: 0
        self.on_step: Callable[[int, dict[str, float]], None] = lambda step, figures: None
        self.on_epoch: Callable[[Trainer, dict[str, Any], bool], None] = lambda trainer, record, is_best: None
        self.save: Callable[[Trainer], None] = lambda trainer: None

    # ------------------------------------------------------------------ the loop

    def fit(self, train_loader, val_loader) -> None:
        """Train until the last epoch or until the score stops rising. Raises TrainingError and Interrupted."""
        while self.state.epoch < self.options.epochs and not self._out_of_patience():
            started = time.perf_counter()
            self.train_epoch(train_loader)
            record = self._epoch_record(self.evaluate(val_loader, "validation"), started)
            self._finish_epoch(record)
            self._leave_if_asked()  # after the last epoch too: the report is not for one who asked to stop
        if self._out_of_patience():
            logger.info("no better score in %d epochs: stopped early", self.options.early_stopping_patience)

    def train_epoch(self, loader) -> None:
        """One pass over the training split, or the rest of an interrupted one."""
        self.model.train()
        self.image_names = loader.names
        title = f"epoch {self.state.epoch + 1}/{self.options.epochs}"
        sums = self.state.sums
        bar = Progress(len(loader), title, self.options.progress, self.options.print_freq, sums.batches)
        started = time.perf_counter()
        try:
            for numbers, window, moved in self._windows(loader):
                arrived = time.perf_counter()
                stepped = self.train_step(window, moved)
                sums.batches = numbers[-1] + 1
                sums.data_wait_seconds += arrived - started
                now = time.perf_counter()
                sums.seconds, started = sums.seconds + now - started, now
                bar.advance(len(numbers), loss=f"{sums.mean_loss:.4f}", skipped=sums.skipped)
                self._leave_if_asked()
                if stepped and self._save_is_due():
                    self.flush_outcomes()
                    self.save(self)
            self.flush_outcomes()
        finally:
            bar.close()

    def _save_is_due(self) -> bool:
        every = self.options.save_every_steps
        return every > 0 and self.state.global_step % every == 0

    def _windows(self, loader) -> Iterator[tuple[list[int], list, list]]:
        """Groups of micro-batches for one optimizer step each, and the same on the device; an epoch's last may be
        shorter."""
        numbers, window, moved = [], [], []
        batches = loader.epoch(self.state.epoch, self.state.sums.batches)
        for item, sent in prefetch_to_device(batches, self._send, self.device):
            assert item is not None and sent is not None
            (number, batch), (_, copy) = item, sent
            numbers.append(number)
            if batch is not None:
                window.append(batch)
                moved.append(copy)
            if len(numbers) == self.options.accumulation_steps:
                yield numbers, window, moved
                numbers, window, moved = [], [], []
        if numbers:
            yield numbers, window, moved

    def _send(self, numbered: tuple[int, Any]) -> tuple[int, Any]:
        number, batch = numbered
        return number, None if batch is None else batch.to(self.device, self.options.memory_format)

    def train_step(self, window: list, moved: list | None = None) -> bool:
        """One optimizer step over the window's micro-batches; False where it is known that it was skipped.

        Each term of the loss is divided by the window's number of valid labels, so that the step is the same
        however the images are cut into micro-batches. moved: the window on the device, where it is there already.
        Nothing here waits for the device but `flush_outcomes`, every options.read_every steps.
        """
        counts = self._window_counts(window)
        if not any(counts.values()):
            return False
        start = StepSnapshot(self.model)
        losses = self._gradients(moved or window, counts, start)
        where = f"optimizer step {self.state.global_step + 1}, which may be half made: go on from the last checkpoint"
        with memory_needed(where):
            norm, step_applied = self._optimizer_step(losses, start)
        self.optimizer.zero_grad(set_to_none=True)
        rows = [batch.index for batch in window]
        self.pending.add(losses, norm, step_applied, self.schedule.learning_rate, rows)
        self.state.global_step += 1
        self.schedule.step()
        due = len(self.pending) >= self.options.read_every or self.state.global_step % self.options.print_freq == 0
        return self.flush_outcomes() if due else True

    def _optimizer_step(self, losses: list[Tensor], start: StepSnapshot) -> tuple[Tensor, Tensor]:
        """Clip and step where loss and gradients are finite: → their norm, and whether the step was made.

        Where they are not, weights, running statistics and moving average are as before.
        """
        self.scaler.unscale_(self.optimizer)
        limit = math.inf if self.options.clip_norm is None else self.options.clip_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        step_applied = torch.stack(losses).isfinite().all() & norm.isfinite()
        conditional_step(self.optimizer, step_applied)
        self.scaler.update()  # unscale_ has seen any infinities: the scale shrinks
        if self.sparsity is not None:
            self.sparsity.apply()
        start.restore_buffers_unless(step_applied)
        if self.ema is not None:
            self.ema.update(self.model, step_applied)
        return norm, step_applied

    def _gradients(self, window: list, counts: dict[str, int], start: StepSnapshot) -> list[Tensor]:
        """Leave the window's gradients in the model; returns the losses of its micro-batches, of which its own is the
        sum. What does not fit into memory is undone."""
        while True:
            with catch_oom() as caught:
                micro_batches = (part for batch in window for part in batch.split(self.state.micro_batch_splits))
                return [self._backward(part, counts) for part in micro_batches]
            self.optimizer.zero_grad(set_to_none=True)
            start.restore()
            free_memory(self.device)
            self.adaptation.adapt(self.state, max(map(len, window)), caught.failure)

    def _window_counts(self, window: list) -> dict[str, int]:
        totals: dict[str, int] = {}
        for batch in window:
            for name, count in self.loss.counts(batch.targets).items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def _backward(self, batch: Batch, counts: dict[str, int]) -> Tensor:
        batch = batch.to(self.device, self.options.memory_format)
        with self.precision.autocast():
            logits = Logits.of(call_model(self.forward, batch.inputs))
        loss = self.loss.total(self.loss.sums(logits, batch.targets, batch.inputs), counts)
        self.scaler.scale(loss).backward()
        return loss.detach()

    def flush_outcomes(self) -> bool:
        """Read what came of the steps so far, and count it; False where the last was skipped.

        A skipped step has been counted by schedule and moving average, which forget it now.
        Raises TrainingError where too many in a row were skipped.
        """
        outcomes, last = self.pending.read(), self.state.global_step
        self.state.global_step -= len(outcomes)
        for outcome in outcomes:
            if outcome.step_applied:
                self._count_step(outcome)
            else:
                self._count_skip(outcome)
        step_applied, every = [outcome for outcome in outcomes if outcome.step_applied], self.options.print_freq
        if step_applied and last // every > (last - len(outcomes)) // every:
            newest = step_applied[-1]
            figures = {"loss": newest.loss, "gradient_norm": newest.norm, "learning_rate": newest.rate}
            self.on_step(self.state.global_step, {f"train/{k}": v for k, v in figures.items()} | self._throughput())
        return not outcomes or outcomes[-1].step_applied

    def _count_step(self, outcome: Outcome) -> None:
        sums = self.state.sums
        self.state.global_step += 1
        self.state.nonfinite_in_a_row = 0
        sums.loss += outcome.loss
        sums.steps += 1
        sums.images += outcome.images

    def _count_skip(self, outcome: Outcome) -> None:
        """A window with NaN or Inf, which has changed nothing."""
        # Whether it was fp16's scale, which has been halved since.
        calibrating = self.scaler.is_enabled() and math.isfinite(outcome.loss) and self.scaler.get_scale() >= 1
        self.schedule.step_back()
        if self.ema is not None:
            self.ema.step_back()
        state = self.state
        state.sums.skipped += 1
        state.nonfinite_in_a_row += not calibrating
        names = self.image_names or (lambda index: [])
        images = [name for rows in outcome.rows for name in names(rows)]
        found = f"loss {outcome.loss:g}, gradient norm {outcome.norm:g}"
        where = f"epoch {state.epoch + 1}, step {state.global_step}: {found}"
        logger.warning("skipped a step that is not finite (%s)", where)
        if state.nonfinite_in_a_row >= self.options.max_nonfinite_steps:
            raise TrainingError(
                f"{state.nonfinite_in_a_row} steps in a row were not finite ({where}); the last one had the images "
                f"{', '.join(images) or 'unknown'}. Lower TRAIN.learning_rate, set TRAIN.mixed_precision=false, "
                "or look at these images"
            )

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, loader, title: str) -> Predictions:
        """With the averaged weights where there are some; a signal saves the model's own, and raises Interrupted."""
        averaged = self.ema.applied_to(self.model) if self.ema is not None else nullcontext()
        with memory_needed(title), averaged:
            predictions = self.evaluator(loader, title, self.should_stop)
        if predictions is None:
            self._leave_if_asked()
        assert predictions is not None
        return predictions

    # ------------------------------------------------------------------ epochs, stops, state

    def _epoch_record(self, validation: Predictions, started: float) -> dict[str, Any]:
        sums, metrics = self.state.sums, validation.metrics
        return {
            "epoch": self.state.epoch + 1,
            "step": self.state.global_step,
            "train_loss": sums.mean_loss,
            "val_loss": validation.loss,
            "learning_rate": self.schedule.learning_rate,
            "skipped_steps": sums.skipped,
            "seconds": round(time.perf_counter() - started, 3),
            **self._throughput(""),
            **metrics.as_dict(),
        }

    def _throughput(self, prefix: str = "system/") -> dict[str, float]:
        sums = self.state.sums
        seconds = sums.seconds or math.nan
        return {
            f"{prefix}images_per_second": sums.images / seconds,
            f"{prefix}data_wait_fraction": sums.data_wait_seconds / seconds,
            f"{prefix}memory_mib": peak_memory_mib(self.device),
        }

    def _finish_epoch(self, record: dict[str, Any]) -> None:
        """Score, best, schedule, then the next epoch; what is saved in on_epoch begins there."""
        state = self.state
        mean = record["mean_auroc"]
        score = -record["val_loss"] if mean is None else mean
        is_best = score > state.best_score
        if is_best:
            state.best_score, state.best_epoch = score, state.epoch
        self.schedule.epoch_end(score)
        state.epoch += 1
        state.sums = EpochSums()
        self.on_epoch(self, record, is_best)

    def _out_of_patience(self) -> bool:
        patience = self.options.early_stopping_patience
        return patience > 0 and self.state.epoch - 1 - self.state.best_epoch >= patience

    def _leave_if_asked(self) -> None:
        number = self.should_stop()
        if number:
            self.flush_outcomes()
            self.save(self)
            raise Interrupted(number)

    def state_dict(self) -> dict[str, Any]:
        """Everything that makes the rest of the run the same as if it had not been interrupted."""
        state = self.state
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_kind": type(self.optimizer).__name__,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(),
            "progress": {**vars(state), "sums": vars(state.sums).copy()},
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with this run's hyperparameters.

        Raises CheckpointError, before anything is changed, where that was another model, optimizer or version.
        """
        own = self.state_dict()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        check_resumable(content, own, parameters)
        progress = content["progress"]
        state = TrainerState(**{**progress, "sums": EpochSums(**progress["sums"])})
        self.adaptation.resume(state)
        self.state = state
        self.model.load_state_dict(content["model"])
        if self.sparsity is not None:
            self.sparsity = self.sparsity.taken_from(self.model)
        if self.ema is not None:
            self.ema = ExponentialMovingAverage(self.model, self.ema.decay)
            if content["ema"] is not None:
                self.ema.load_state_dict(content["ema"])
        groups = own["optimizer"]["param_groups"]  # weight decay and the like are what this run's config says
        self.optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": groups})
        self.schedule.load_state_dict(content["schedule"])
        if content["scaler"]:  # else the saved run had no fp16, and this one finds its scale itself
            self.scaler.load_state_dict(content["scaler"])
        set_random_state(content["random"])
