"""A whole training, from what was prepared to the report: train.py's and `hybridmednet.Trainer`'s one path.

`run_training` is read from top to bottom. What it needs of data comes by `Prepared`, so that nothing here opens any.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from configs.default_config import Config
from training.builder import build_loop
from training.learner import Learner
from training.loader import Loader
from training.loop import TrainingLoop
from training.losses import Loss
from training.resume import judge_again
from utils.best_metric import BestSoFar, setting_of
from utils.checkpoint import set_aside
from utils.listener import CheckpointContent, FileContent, Scores
from utils.log import log_to_file
from utils.runs.control import Control, Interrupted, discard_request
from utils.runs.files import BEST, LOG
from utils.runs.folder import RunFolder, folder_of
from utils.runs.lock import FolderLock
from utils.runs.recorder import Recorder
from utils.runs.result import RunResult, result_of
from utils.runs.save_errors import on_save_error
from utils.runs.status import Standing, StatusWriter
from utils.runs.trackers import watching_trackers
from utils.runs.trajectory import Trajectory

logger = logging.getLogger("train")


class Splits(Protocol):
    """The loaders of a run; test: None where there is no such split."""

    @property
    def train(self) -> Loader: ...
    @property
    def val(self) -> Loader: ...
    @property
    def test(self) -> Loader | None: ...


class Prepared(Protocol):
    """What a training is made of, with the learner as the checkpoint that it is resumed from left it.

    config: resolved. checkpoint: that one, None for a new run. architecture: in the name of a new run's folder.
    not_learnt: classes that no image of the training split is positive for. operating_point: what an epoch's weights
    call present, from its scores on the validation split; None where there are no classes to be called.
    """

    @property
    def config(self) -> Config: ...
    @property
    def checkpoint(self) -> FileContent | None: ...
    @property
    def loaders(self) -> Splits: ...
    @property
    def learner(self) -> Learner: ...
    @property
    def loss(self) -> Loss: ...
    @property
    def architecture(self) -> str: ...
    @property
    def not_learnt(self) -> Sequence[str]: ...
    @property
    def operating_point(self) -> Callable[[Scores], CheckpointContent] | None: ...

    def describe(self, run: RunFolder) -> CheckpointContent:
        """Write what a reader of the run's folder needs; what every checkpoint carries beside weights."""

    def report_operating_point(self, stored: FileContent | None) -> None:
        """Say what leaves the training with its best weights."""


# What a run is resumed from, or None → what it is made of. Called when that one's folder is locked.
Preparation = Callable[[Path | None], Prepared]


def run_training(prepare: Preparation, resumed: Path | None = None, control: Control | None = None) -> RunResult:
    """Prepare → the run's folder → loop → fit → test.

    resumed: a run's folder or one of its checkpoints to resume from (see `find_run`). control: asked between steps
    whether to save and leave; without one, the file 'control' in the run's folder is looked at. Signals are not taken
    over here. May be called several times in a process, and outside its main thread.
    Raises HybridMedNetError; the run's status.json says then that it failed, and why.
    """
    control = control or Control()
    with ExitStack() as until_the_end:
        lock = until_the_end.enter_context(claim(folder_of(resumed))) if resumed else None
        parts = prepare(resumed)
        config, loaders, learner = parts.config, parts.loaders, parts.learner

        run = until_the_end.enter_context(open_run(parts, resumed, lock))
        other_best = resumed is not None and judge_again(learner, run.history, settings_of(parts), config)
        status = until_the_end.enter_context(watch_status(run, config, learner))
        until_the_end.enter_context(control.watching(run.path))
        until_the_end.enter_context(log_to_file(run.path / LOG, config.LOGGING.format))
        description = parts.describe(run)
        for line in learner.describe_rates():
            logger.info("%s", line)
        if resumed is not None:
            keep_best(run, config, description, learner.state, other_best)
        recorder = Recorder(run, config, description, parts.checkpoint, parts.operating_point)
        trackers = until_the_end.enter_context(watching_trackers(config, run, resumed is not None))
        # The status comes last, so that it says nothing that is not on the disk.
        listeners = [recorder, *trackers, status]
        loop = build_loop(config, learner, parts.loss, listeners, control.request, parts.not_learnt)

        interrupted = fit(loop, loaders, control)
        if interrupted is None:
            status.on_phase("reporting")
            split, loader = ("test", loaders.test) if loaders.test else ("val", loaders.val)
            best = recorder.best(learner.state.epoch)
            recorder.report(split, best.epoch, loop.evaluate(loader, split, best.weights))
            parts.report_operating_point(best.operating_point)
            for tracker in trackers:
                tracker.on_report(run.results[-1])
        status.on_phase(interrupted.left_as if interrupted else "finished")
        return result_of(run, learner.state.best_epoch + 1, interrupted)


def claim(folder: Path) -> FolderLock:
    """A run's folder for this training alone; what an earlier one was asked for by file is no longer asked for."""
    lock = FolderLock(folder)
    discard_request(folder)
    return lock


def settings_of(parts: Prepared) -> object:
    """The settings in the checkpoint that a run is resumed from, of any type."""
    return None if parts.checkpoint is None else parts.checkpoint.get("config")


def open_run(parts: Prepared, resumed: Path | None, lock: FolderLock | None) -> RunFolder:
    """The resumed run's folder, or a new one named after the model and the time."""
    config, state = parts.config, parts.learner.state
    if resumed is not None:
        best_by = setting_of(settings_of(parts))
        Trajectory(folder_of(resumed), state, resumed.is_dir(), best_by).set_aside_others()
        return RunFolder.open(folder_of(resumed), state.epoch, lock)
    if config.LOGGING.run_name:
        return RunFolder.create(config.CHECKPOINT.save_dir, config.LOGGING.run_name)
    name = f"{config.MODEL.name}-{parts.architecture}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder.create_numbered(config.CHECKPOINT.save_dir, name.replace("/", "_"))


def watch_status(run: RunFolder, config: Config, learner: Learner) -> StatusWriter:
    """Of a run that begins where its learner is; its steps may have been of another size before."""
    state, schedule = learner.state, learner.schedule
    total = state.global_step + max(schedule.total_steps - schedule.step_number, 0)
    continues = config.CHECKPOINT.on_save_error == "continue"
    by = config.CHECKPOINT.best_by
    best = None if by is None else BestSoFar.of(by, state.best_epoch, state.best_score)
    return StatusWriter(run.path, total, config.TRAIN.epochs, state.global_step, state.epoch, continues, best=best)


def keep_best(
    run: RunFolder, config: Config, description: Mapping[str, object], state: Standing, other_best: bool = False
) -> None:
    """A resumed run's best_model.pth: as it is, or written again, or looked for anew from the next epoch on.

    other_best: another epoch is the best than the file's.
    """
    if other_best and (run.path / BEST).is_file():
        logger.warning("'%s' is of another epoch: kept as '%s'", BEST, set_aside(run.path / BEST, "abandoned").name)
    if not config.CHECKPOINT.save_best or state.best_epoch < 0 or (run.path / BEST).is_file():
        return
    with on_save_error(config.CHECKPOINT.on_save_error == "continue", BEST):
        if Trajectory(run.path, state, is_newest=True).restore_best(description, run.history):
            return
    logger.warning(
        "the weights of epoch %d, the best so far, are gone: the best is looked for anew", state.best_epoch + 1
    )
    state.best_score, state.best_epoch = -math.inf, state.epoch - 1


def fit(loop: TrainingLoop, loaders: Splits, control: Control) -> Interrupted | None:
    """Train to the last epoch, or until a request was obeyed by saving; that request."""
    try:
        with control.saving_first():
            loop.fit(loaders.train, loaders.val)
    except Interrupted as interrupted:
        if not interrupted.saved:
            raise
        return interrupted
    return None
