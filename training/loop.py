"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from configs.errors import TrainingError
from training.accumulation_window import AccumulationWindow
from training.ema import weights_applied
from training.evaluation import Evaluator, Predictions
from training.loader import Loader, WindowBatches, windows
from training.out_of_memory import memory_needed
from training.pending import Outcome, PendingStep, read_outcomes
from training.state import EpochSums
from utils.batch import Batch
from utils.best_metric import score_of, title_of, usable
from utils.listener import CheckpointContent, EpochEnd, EpochRecord, Listener, StateDict, TrainingPhase
from utils.out_of_memory import peak_memory_mib
from utils.progress import Progress
from utils.runs.control import Interrupted, Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopOptions:
    """Numbers that the loop needs; see TRAIN, LOGGING and CHECKPOINT in configs/default_config.py for their meaning.

    best_by: see utils/best_metric.py; None: mean AUROC, or the loss where the first epoch has none.
    read_every: steps between two reads of their outcomes, each of which synchronises with the device. It changes when
    the host knows of a skipped step, and nothing else.
    """

    epochs: int
    accumulation_steps: int = 1
    early_stopping_patience: int = 0
    max_nonfinite_steps: int = 10
    progress: str = "plain"
    print_freq: int = 10
    save_every_steps: int = 0
    read_every: int = 1
    best_by: str | None = None


class TrainingLoop:
    """Trains a network on batches, epoch by epoch; knows nothing of files, configs or architectures.

    window: makes the optimizer steps. evaluator: scores the same network. listeners: record what happens; they are
    asked to save before the loop leaves on a request, and every options.save_every_steps steps. should_stop() gives the
    request, or None.
    """

    def __init__(
        self,
        window: AccumulationWindow,
        evaluator: Evaluator,
        options: LoopOptions,
        listeners: Sequence[Listener] = (),
        should_stop: Callable[[], Request | None] = lambda: None,
    ) -> None:
        self.window, self.evaluator, self.options = window, evaluator, options
        self.learner, self.parallel = window.learner, window.parallel
        self.listeners = tuple(listeners) if self.parallel.rank == 0 else ()
        self.should_stop = should_stop
        # Of the learner, which keeps these objects when it resumes from a checkpoint.
        self.model, self.state, self.schedule = self.learner.model, self.learner.state, self.learner.schedule
        self.best_by = options.best_by
        self.pending: list[PendingStep] = []  # attempted, oldest first
        self._names: Callable[[Tensor], list[str]] = lambda index: []  # of the loader that is trained from

    # ------------------------------------------------------------------ the loop

    def fit(self, train_loader: Loader, val_loader: Loader) -> None:
        """Train until the last epoch or until the score stops rising. Raises TrainingError and Interrupted."""
        while self.state.epoch < self.options.epochs and not self._out_of_patience():
            started = time.perf_counter()
            self._begin("training")
            self.train_epoch(train_loader)
            self._begin("validating")
            validation = self._score(val_loader, "validation", None)
            if validation is None:
                self._leave_if_asked()
            assert validation is not None, "only a request to leave ends an evaluation early"
            self._finish_epoch(self._epoch_record(validation, started), validation)
            self._leave_if_asked()  # after the last epoch too: the report is not for one who asked to stop
        if self._out_of_patience():
            logger.info("no better score in %d epochs: stopped early", self.options.early_stopping_patience)

    def train_epoch(self, loader: Loader) -> None:
        """One pass over the training split, or the rest of an interrupted one."""
        self.learner.train_mode()
        self._names = loader.names
        title = f"epoch {self.state.epoch + 1}/{self.options.epochs}"
        sums = self.state.sums
        bar = Progress(len(loader), title, self.options.progress, self.options.print_freq, sums.batches)
        started = time.perf_counter()
        try:
            for window in self._windows(loader):
                received = time.perf_counter()
                stepped = self.train_step(window.batches, window.sent)
                sums.batches = window.numbers[-1] + 1
                sums.data_wait_seconds += received - started
                now = time.perf_counter()
                sums.seconds, started = sums.seconds + now - started, now
                bar.advance(len(window.numbers), loss=f"{sums.mean_loss:.4f}", skipped=sums.skipped)
                self._leave_if_asked()
                if stepped and self._save_is_due():
                    self.flush_outcomes()
                    self._save()
            self.flush_outcomes()
        finally:
            bar.close()

    def _save_is_due(self) -> bool:
        every = self.options.save_every_steps
        return every > 0 and self.state.global_step % every == 0

    def _windows(self, loader: Loader) -> Iterator[WindowBatches]:
        """What is left of the epoch, by optimizer step."""
        batches = loader.epoch(self.state.epoch, self.state.sums.batches)
        return windows(batches, self.options.accumulation_steps, self.window.send, self.learner.device)

    def train_step(self, window: Sequence[Batch], moved: Sequence[Batch] | None = None) -> bool:
        """Attempt one optimizer step over the window's micro-batches; False where no label in it is valid.

        moved: the window on the device, where it is there already. Nothing here waits for the device but
        `flush_outcomes`, every options.read_every steps. So a step counts when it is attempted: were a skipped one not
        counted, schedule and moving average would depend on when the host learns of it.
        """
        result = self.window.step(window, moved or window)
        if result is None:
            return False
        self.state.global_step += 1
        step, rows = self.state.global_step, [batch.index for batch in window]
        self.pending.append(PendingStep(step, result, self.schedule.learning_rate, rows))
        self.schedule.step()
        if len(self.pending) >= self.options.read_every or step % self.options.print_freq == 0:
            self.flush_outcomes()
        return True

    def flush_outcomes(self) -> None:
        """Read the outcomes of the steps so far and count them; the device is waited for.

        Raises TrainingError where too many in a row were skipped.
        """
        outcomes, self.pending, state = read_outcomes(self.pending), [], self.state
        for outcome in outcomes:
            if not outcome.step_applied:
                self._count_skip(outcome)
                continue
            state.nonfinite_in_a_row = 0
            state.sums.loss += outcome.loss
            state.sums.steps += 1
            state.sums.images += outcome.images
            if outcome.step % self.options.print_freq == 0:
                self._report_step(outcome)

    def _report_step(self, outcome: Outcome) -> None:
        figures = {"loss": outcome.loss, "gradient_norm": outcome.norm, "learning_rate": outcome.rate}
        figures = {f"train/{name}": value for name, value in figures.items()}
        figures |= {f"system/{name}": value for name, value in self._throughput().items()}
        for listener in self.listeners:
            listener.on_step(outcome.step, figures)

    def _count_skip(self, outcome: Outcome) -> None:
        """A step with NaN or Inf, which has changed no weight."""
        state, scaler = self.state, self.learner.scaler
        # Whether it was fp16's scale, which has been halved since.
        calibrating = scaler.is_enabled() and math.isfinite(outcome.loss) and scaler.get_scale() >= 1
        state.sums.skipped += 1
        state.nonfinite_in_a_row += not calibrating
        found = f"loss {outcome.loss:g}, gradient norm {outcome.norm:g}"
        where = f"epoch {state.epoch + 1}, step {outcome.step}: {found}"
        logger.warning("skipped a step that is not finite (%s)", where)
        if state.nonfinite_in_a_row >= self.options.max_nonfinite_steps:
            images = [name for rows in outcome.rows for name in self._names(rows)]
            raise TrainingError(
                f"{state.nonfinite_in_a_row} steps in a row were not finite ({where}); the last one had the images "
                f"{', '.join(images) or 'unknown'}. Lower TRAIN.learning_rate, set TRAIN.mixed_precision=false, "
                "or look at these images"
            )

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, loader: Loader, title: str, weights: StateDict | None = None) -> Predictions:
        """Score a split with the given weights, else with the moving average's where there is one.

        The trainer is as before afterwards. Raises TrainingError; Interrupted on a request, and saves nothing.
        """
        predictions = self._score(loader, title, weights)
        if predictions is None:
            raise Interrupted(self.should_stop() or "stop", saved=False)
        return predictions

    def _score(self, loader: Loader, title: str, weights: StateDict | None) -> Predictions | None:
        """None where a request to leave came."""
        if weights is None and self.learner.ema is not None:
            weights = self.learner.ema.shadow
        with memory_needed(title):
            if weights is None:
                return self.evaluator(loader, title, self.should_stop)
            with weights_applied(self.model, weights):
                return self.evaluator(loader, title, self.should_stop)

    # ------------------------------------------------------------------ epochs and stops

    def _epoch_record(self, validation: Predictions, started: float) -> EpochRecord:
        sums, throughput = self.state.sums, self._throughput()
        record: EpochRecord = {
            "epoch": self.state.epoch + 1,
            "step": self.state.global_step,
            "train_loss": sums.mean_loss,
            "val_loss": validation.loss,
            "learning_rate": self.schedule.learning_rate,
            "skipped_steps": sums.skipped,
            "seconds": round(time.perf_counter() - started, 3),
            "images_per_second": throughput["images_per_second"],
            "data_wait_fraction": throughput["data_wait_fraction"],
            "memory_mib": throughput["memory_mib"],
            **validation.metrics.as_dict(),  # type: ignore[typeddict-item]  # they have no key that is not theirs
        }
        if validation.regions is not None:
            record["attention"] = validation.regions.as_dict()
        return record

    def _throughput(self) -> dict[str, float]:
        sums = self.state.sums
        seconds = sums.seconds or math.nan
        return {
            "images_per_second": sums.images / seconds,
            "data_wait_fraction": sums.data_wait_seconds / seconds,
            "memory_mib": peak_memory_mib(self.learner.device),
        }

    def _finish_epoch(self, record: EpochRecord, validation: Predictions) -> None:
        """Score, best, schedule, then the next epoch; what is saved in on_epoch begins there."""
        state, score = self.state, self._score_of(record)
        is_best = score > state.best_score
        if is_best:
            state.best_score, state.best_epoch = score, state.epoch
        self.schedule.epoch_end(score)
        self.next_epoch()
        end = EpochEnd(record, is_best, self.learner.scored_weights, self._content(), validation, self.best_by)
        for listener in self.listeners:
            listener.on_epoch(end)

    def _score_of(self, record: EpochRecord) -> float:
        if self.best_by is None:
            self.best_by = usable(record)
        score = score_of(record, self.best_by)
        if score == -math.inf:
            text = "epoch %d cannot be the best one: its %s is undefined"
            logger.warning(text, record["epoch"], title_of(self.best_by))
        return score

    def next_epoch(self) -> None:
        """Count the epoch; what was added up in it is forgotten."""
        self.state.epoch += 1
        self.state.sums = EpochSums()

    def _out_of_patience(self) -> bool:
        patience = self.options.early_stopping_patience
        return patience > 0 and self.state.epoch - 1 - self.state.best_epoch >= patience

    def _begin(self, phase: TrainingPhase) -> None:
        for listener in self.listeners:
            listener.on_phase(phase)

    def _leave_if_asked(self) -> None:
        request = self.parallel.any(self.should_stop())
        if request is not None:
            self.flush_outcomes()
            self._save()
            raise Interrupted(request)

    def _content(self) -> CheckpointContent:
        return self.parallel.full_state(self.learner.state_dict())

    def _save(self) -> None:
        content = self._content()
        for listener in self.listeners:
            listener.save(content)
