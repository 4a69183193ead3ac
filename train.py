#!/usr/bin/env python3
"""Train a medical-image classifier from one configuration.

python train.py --config configs/quickstart.yaml
python train.py --config configs/nih_chestxray14.yaml --set DATA.data_dir=/data/nih TRAIN.batch_size=16
python train.py --resume                     # resume the newest run
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.default_config import Config
from utils.arguments import Parser, Values, override
from utils.command_line import run_script
from utils.decision import Task
from utils.log import log_to_file, setup_logging
from utils.runs.control import Control, Interrupted, discard_request
from utils.runs.files import LABELS, LOG
from utils.runs.folder import RunFolder, find_run, folder_of
from utils.runs.lock import FolderLock
from utils.runs.result import RunResult, result_of
from utils.runs.status import Standing, StatusWriter

if TYPE_CHECKING:  # --help does without torch
    import numpy as np

    from data.builder import Loaders
    from data.study import DatasetIndex
    from evaluation.records import OperatingPointRecord
    from models import HybridMedNet
    from training.distillation import DistillationLoss
    from training.learner import Learner
    from training.loop import TrainingLoop
    from training.losses import TrainingLoss
    from utils.listener import CheckpointContent, FileContent, Scores

logger = logging.getLogger("train")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every setting, its default and meaning: docs/configuration.md. Presets: configs/*.yaml.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; without it configs/default_config.py's defaults")
    parser.add_argument(
        "--set", metavar="SECTION.key=value", action=Values, takes=override, default=[], help="override settings"
    )
    parser.add_argument(
        "--resume",
        metavar="PATH",
        nargs="?",
        const="",
        help="resume a run's folder or checkpoint; alone: the newest",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train; the exit code: 0, 2 for users' errors, 143 after SIGTERM or a pause, 130 after SIGINT or a stop."""
    return run_script(lambda: run(parse_arguments(arguments)))


def run(options: argparse.Namespace) -> int:
    """Signals, settings → `train` → the exit code."""
    control = Control().install()
    try:
        resumed = find_resumed(options)
        config = load_settings(options, resumed)
        setup_logging(config.LOGGING.format)
        result = train(config, resumed, control)
    except Interrupted as interrupted:
        logger.warning("%s", interrupted)
        return interrupted.exit_code
    if result.interrupted is not None:
        logger.warning("%s: continue by --resume", control.reason)
        return result.interrupted.exit_code
    return 0


def train(config: Config, resumed: Path | None = None, control: Control | None = None) -> RunResult:
    """The recipe: config → data → model → learner (see `prepare`) → the run's folder → trainer → fit → test.

    resumed: a run's folder or one of its checkpoints to resume from (see `find_run`). control: asked between steps
    whether to save and leave; without one, the file 'control' in the run's folder is looked at. Signals are not taken
    over here. May be called several times in a process, and outside its main thread.
    Raises HybridMedNetError; the run's status.json says then that it failed, and why.
    """
    from training.builder import build_loop
    from utils.runs.recorder import Recorder

    control = control or Control()
    with ExitStack() as until_the_end:
        lock = until_the_end.enter_context(claim(folder_of(resumed))) if resumed else None
        parts = prepare(config, resumed)
        config, loaders, learner = parts.config, parts.loaders, parts.learner

        run = until_the_end.enter_context(open_run(config, parts.model.attention_mode, resumed, lock, learner.state))
        status = until_the_end.enter_context(watch_status(run, config, learner))
        until_the_end.enter_context(control.watching(run.path))
        until_the_end.enter_context(log_to_file(run.path / LOG, config.LOGGING.format))
        description = describe_run(run, parts)
        if resumed is not None:
            keep_best(run, config, description, learner.state)
        recorder = Recorder(run, config, description, parts.checkpoint, parts.operating_point)
        # The status comes last, so that it says nothing that is not on the disk.
        trainer = build_loop(config, learner, parts.loss, [recorder, status], control.request, parts.not_learnt)

        interrupted = fit(trainer, loaders, control)
        if interrupted is None:
            status.on_phase("reporting")
            split, loader = ("test", loaders.test) if loaders.test else ("val", loaders.val)
            best = recorder.best(learner.state.epoch)
            recorder.report(split, best.epoch, trainer.evaluate(loader, split, best.weights))
            parts.report_operating_point(best.operating_point)
        status.on_phase(interrupted.left_as if interrupted else "finished")
        return result_of(run, learner.state.best_epoch + 1, interrupted)


@dataclass(frozen=True)
class Parts:
    """What a training is made of. config: resolved. checkpoint: what a resumed run goes on from, else None.

    positives: how many images of the training split are positive for each class.
    """

    config: Config
    checkpoint: CheckpointContent | None
    dataset_index: DatasetIndex
    assignment: np.ndarray
    loaders: Loaders
    model: HybridMedNet
    learner: Learner
    loss: TrainingLoss | DistillationLoss
    positives: list[int]

    @property
    def task(self) -> Task:
        """What the classes are to each other."""
        exclusive = self.config.MODEL.task == "multi_class"
        return Task(self.dataset_index.class_names, exclusive, self.config.DATA.positive_class)

    @property
    def not_learnt(self) -> list[str]:
        """The classes that none is positive for."""
        return [name for name, count in zip(self.dataset_index.class_names, self.positives) if not count]

    def operating_point(self, validation: Scores) -> OperatingPointRecord:
        """What an epoch's weights call present, fitted on the validation split."""
        from evaluation.fitting import point_of_training

        point = point_of_training(validation.scores, validation.targets > 0.5, validation.mask, self.task)
        return point.as_dict()

    def report_operating_point(self, stored: FileContent | None) -> None:
        """Say what leaves the training with its best weights."""
        from evaluation.fitting import fitted_text, stored_point

        if stored is not None:
            point = stored_point(stored, len(self.task.class_names))
            logger.info("with the best weights are saved: %s", fitted_text(point, self.task))


def prepare(config: Config, resumed: Path | None) -> Parts:
    """The first half of the recipe: data → model → learner, as the checkpoint left it. No run's folder is written."""
    from configs.plausibility import step_notes
    from data.builder import build_loaders, open_data, resolve, resolve_studies, split_data, study_dropout
    from data.splits.resumed_data import check_source_split
    from data.table_encoding import check_same_table
    from models import check_backbone, create_model, load_teacher
    from training.builder import build_distillation, build_learner, build_loss, resolve_precision
    from training.classes import positives_of
    from training.precision import choose_device
    from training.resume import resume
    from utils.checkpoint import load_resumable
    from utils.process import prepare_process

    check_backbone(config.MODEL.backbone, config.image_shape())
    device = choose_device(config.TRAIN.device)
    prepare_process(device, config.TRAIN.seed)
    checkpoint = load_resumable(resumed) if resumed else None
    dataset_index = open_data(config)
    config = resolve(config, dataset_index)
    saved_split = folder_of(resumed) / "split.csv" if resumed and checkpoint else None
    assignment = split_data(config, dataset_index, saved_split)
    if saved_split is not None:
        check_source_split(dataset_index, assignment, saved_split)
    config = resolve_studies(config, dataset_index, assignment)

    model = create_model(config, checkpoint).to(device)
    backbone = model.backbone
    dropout = study_dropout(config)
    loaders = build_loaders(config, dataset_index, assignment, backbone.mean, backbone.std, device.type, dropout)
    if checkpoint is not None:
        check_same_table(checkpoint.get("table"), loaders.encoding)
    images = len(loaders.train.indices)
    for note in step_notes(images, config.TRAIN.batch_size, config.TRAIN.gradient_accumulation_steps):
        logger.warning("%s", note)
    config = resolve_precision(config, model, backbone.prefers_channels_last, checkpoint)
    labels = build_loss(config, loaders.train_labels(), loaders.coarse_groups, device)
    mean_images = len(dataset_index.image_rows(loaders.train.indices)) / images
    learner = build_learner(config, model, len(loaders.train), mean_images)
    teacher = load_teacher(config)
    if teacher is not None:
        check_same_table(teacher.description.get("table"), loaders.encoding, of_teacher=True)
    loss = build_distillation(config, labels, teacher, loaders.preprocess.as_dict(), learner)
    if checkpoint is not None:
        resume(learner, checkpoint, config, images)
    positives = positives_of(loaders.train_labels())
    return Parts(config, checkpoint, dataset_index, assignment, loaders, model, learner, loss, positives)


def find_resumed(options: argparse.Namespace) -> Path | None:
    """The run's folder or the checkpoint to resume from, None for a new run."""
    if options.resume is None:
        return None
    return find_run(options.resume, load_settings(options, None).CHECKPOINT.save_dir)


def load_settings(options: argparse.Namespace, resumed: Path | None) -> Config:
    """From --config, or the resumed run's own file, or the defaults; then the overrides."""
    path = options.config or (folder_of(resumed) / "config.yaml" if resumed else None)
    return Config.from_yaml(path, options.set) if path else Config.from_overrides(options.set)


def claim(folder: Path) -> FolderLock:
    """A run's folder for this training alone; what an earlier one was asked for by file is no longer asked for."""
    lock = FolderLock(folder)
    discard_request(folder)
    return lock


def open_run(
    config: Config, attention: str, resumed: Path | None, lock: FolderLock | None, state: Standing
) -> RunFolder:
    """The resumed run's folder, or a new one named after the model and the time."""
    if resumed is not None:
        from utils.runs.trajectory import Trajectory

        Trajectory(folder_of(resumed), state, resumed.is_dir()).set_aside_others()
        return RunFolder.open(folder_of(resumed), state.epoch, lock)
    if config.LOGGING.run_name:
        return RunFolder.create(config.CHECKPOINT.save_dir, config.LOGGING.run_name)
    name = f"{config.MODEL.name}-{config.MODEL.backbone}-{attention}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder.create_numbered(config.CHECKPOINT.save_dir, name.replace("/", "_"))


def watch_status(run: RunFolder, config: Config, learner: Learner) -> StatusWriter:
    """Of a run that begins where its learner is; its steps may have been of another size before."""
    state, schedule = learner.state, learner.schedule
    total = state.global_step + max(schedule.total_steps - schedule.step_number, 0)
    continues = config.CHECKPOINT.on_save_error == "continue"
    return StatusWriter(run.path, total, config.TRAIN.epochs, state.global_step, state.epoch, continues)


def keep_best(run: RunFolder, config: Config, description: Mapping[str, object], state: Standing) -> None:
    """A resumed run's best_model.pth: as it is, or written again, or looked for anew from the next epoch on."""
    from utils.runs.files import BEST
    from utils.runs.save_errors import on_save_error
    from utils.runs.trajectory import Trajectory

    if not config.CHECKPOINT.save_best or state.best_epoch < 0 or (run.path / BEST).is_file():
        return
    with on_save_error(config.CHECKPOINT.on_save_error == "continue", BEST):
        if Trajectory(run.path, state, is_newest=True).restore_best(description, run.history):
            return
    logger.warning(
        "the weights of epoch %d, the best so far, are gone: the best is looked for anew", state.best_epoch + 1
    )
    state.best_score, state.best_epoch = -math.inf, state.epoch - 1


def fit(trainer: TrainingLoop, loaders: Loaders, control: Control) -> Interrupted | None:
    """Train to the last epoch, or until a request was obeyed by saving; that request."""
    try:
        with control.saving_first():
            trainer.fit(loaders.train, loaders.val)
    except Interrupted as interrupted:
        if not interrupted.saved:
            raise
        return interrupted
    return None


def describe_run(run: RunFolder, parts: Parts) -> dict[str, object]:
    """Write config, split, labels and environment into the run's folder; what checkpoints carry of them."""
    from data.splits.assignment import write_split
    from data.splits.resumed_data import LabelRecord, tell_label_changes
    from training.classes import warn_of_classes
    from utils.environment import describe_environment

    config, learner, model = parts.config, parts.learner, parts.model
    run.write_text(run.config.name, config.to_yaml())
    split_hash = write_split(run.split, parts.dataset_index, parts.assignment)
    if parts.checkpoint is not None:
        digest = parts.checkpoint.get("labels_sha256")
        tell_label_changes(run.path / LABELS, digest, parts.dataset_index, parts.assignment)
    labels = LabelRecord.of(parts.dataset_index)
    if not (run.path / LABELS).is_file():  # those of the run's beginning stay
        run.write_text(LABELS, labels.to_json())
    if parts.task.positive_class is not None:
        pair = parts.task.positive_class, parts.task.other_class
        logger.info("'%s' is the positive class, '%s' the negative one (DATA.positive_class)", *pair)
    warn_of_classes(parts.loaders.train_labels(), parts.dataset_index.class_names)
    run.write_json("environment.json", describe_environment(str(learner.device), learner.precision.name))
    logger.info("run %s: %s on %s, %s", run.path, learner.precision.name, learner.device, model.summary())
    return {
        "config": config.model_dump(mode="json"),
        "class_names": list(parts.dataset_index.class_names),
        **parts.loaders.describe(),
        "split_sha256": split_hash,
        "labels_sha256": labels.sha256,
        "removed_channels": model.removed_channels,
        "training_positives": parts.positives,
    }


if __name__ == "__main__":
    sys.exit(main())
