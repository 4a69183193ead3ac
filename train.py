#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Train a medical-image classifier from one configuration.

python train.py --config configs/quickstart.yaml
python train.py --config configs/nih_chestxray14.yaml --set DATA.data_dir=/data/nih TRAIN.batch_size=16
python train.py --resume                     # resume the newest run
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.arguments import EXIT_CODES, Parser
from utils.command_line import run_script, show, use_log_format
from utils.runs.control import Control, Interrupted
from utils.runs.files import DOCTOR, LABELS
from utils.runs.folder import RunFolder, check_name_is_free, find_run, folder_of
from utils.runs.result import RunResult
from utils.training_arguments import add_training_settings, given_overrides

if TYPE_CHECKING:  # --help does without torch
    import numpy as np

    from configs.default_config import Config
    from data.builder import Loaders
    from data.study import DatasetIndex
    from evaluation.records import OperatingPointRecord
    from models import HybridMedNet
    from training.distillation import DistillationLoss
    from training.learner import Learner
    from training.losses import TrainingLoss
    from utils.decision import Task
    from utils.listener import CheckpointContent, FileContent, Scores

logger = logging.getLogger("train")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every setting, its default and meaning: docs/configuration.md. Presets: configs/*.yaml.",
        exit_codes=f"{EXIT_CODES}, 143 after SIGTERM or a pause; what was trained is saved then",
    )
    add_training_settings(parser)
    parser.add_argument(
        "--resume",
        metavar="PATH",
        nargs="?",
        const="",
        help="resume a run's folder or checkpoint; alone: the newest",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every setting and where it is from, as YAML for --config"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="go up to the first optimizer step, say what was found; write no run"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train; the exit code: 0, 2 for users' errors, 143 after SIGTERM or a pause, 130 after SIGINT or a stop."""
    return run_script(lambda: run(parse_arguments(arguments)), arguments)


def run(options: argparse.Namespace) -> int:
    """Signals, settings → `train` → the exit code."""
    control = Control().install()
    try:
        resumed = find_resumed(options)
        config = load_settings(options, resumed)
        use_log_format(config.LOGGING.format)
        check_installed(config)
        if options.print_config or options.dry_run:
            return look(config, options, resumed)
        result = train(config, resumed, control)
    except Interrupted as interrupted:
        logger.warning("%s", interrupted)
        return interrupted.exit_code
    if result.interrupted is not None:
        logger.warning("%s: continue by --resume", control.reason)
        return result.interrupted.exit_code
    return 0


def train(config: Config, resumed: Path | None = None, control: Control | None = None) -> RunResult:
    """The recipe: config → data → model → learner (see `prepare`), then `run_training`: folder → loop → report.

    resumed: a run's folder or one of its checkpoints to resume from (see `find_run`). control: asked between steps
    whether to save and leave; without one, the file 'control' in the run's folder is looked at. Signals are not taken
    over here. May be called several times in a process, and outside its main thread.
    Raises HybridMedNetError; the run's status.json says then that it failed, and why.
    """
    from training.run import run_training

    return run_training(lambda resumed: prepare(config, resumed), resumed, control)


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
        from utils.decision import Task

        exclusive = self.config.MODEL.task == "multi_class"
        return Task(self.dataset_index.class_names, exclusive, self.config.DATA.positive_class)

    @property
    def architecture(self) -> str:
        """For the name of the run's folder."""
        return f"{self.config.MODEL.backbone}-{self.model.attention_mode}"

    @property
    def not_learnt(self) -> list[str]:
        """The classes that none is positive for."""
        return [name for name, count in zip(self.dataset_index.class_names, self.positives) if not count]

    def describe(self, run: RunFolder) -> CheckpointContent:
        """See `describe_run`."""
        return describe_run(run, self)

    def describe_sampling(self) -> list[str]:
        """A line where studies are drawn more or less often than once."""
        from training.builder import describe_sampling

        drawn = self.loaders.train.batches.weights
        return [] if drawn is None else [describe_sampling(self.config, self.loaders.train_labels(), drawn)]

    def operating_point(self, validation: Scores) -> OperatingPointRecord:
        """What an epoch's weights call present, fitted on the validation split."""
        from evaluation.fitting import point_of_training

        return point_of_training(validation, self.task).as_dict()

    def report_operating_point(self, stored: FileContent | None) -> None:
        """Say what leaves the training with its best weights."""
        from evaluation.fitting import training_text

        if (text := training_text(stored, self.task)) is not None:
            logger.info("with the best weights are saved: %s", text)


def prepare(config: Config, resumed: Path | None) -> Parts:
    """The first half of the recipe: data → model → learner, as the checkpoint left it. No run's folder is written."""
    from data.builder import open_data, resolve, resolve_studies, split_data
    from data.splits.resumed_data import check_source_split
    from models import check_backbone, create_model
    from training.precision import choose_device
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
    if saved_split is not None and config.DATA.split_file is None:
        check_source_split(dataset_index, assignment, saved_split)
    config = resolve_studies(config, dataset_index, assignment)

    model = create_model(config, checkpoint).to(device)
    return build_parts(config, dataset_index, assignment, model, checkpoint)


def build_parts(
    config: Config,
    dataset_index: DatasetIndex,
    assignment: np.ndarray,
    model: HybridMedNet,
    checkpoint: CheckpointContent | None,
) -> Parts:
    """The end of `prepare`, and of doctor.py: loaders, loss, learner, for data and a model that are there."""
    from configs.plausibility import step_notes
    from data.builder import build_loaders, study_dropout
    from data.table_encoding import check_same_table
    from models import load_teacher
    from training.builder import build_distillation, build_learner, build_loss, resolve_best_by, resolve_precision
    from training.classes import positives_of
    from training.resume import resume

    backbone, device = model.backbone, next(model.parameters()).device
    dropout = study_dropout(config)
    loaders = build_loaders(config, dataset_index, assignment, backbone.mean, backbone.std, device.type, dropout)
    if checkpoint is not None:
        check_same_table(checkpoint.get("table"), loaders.encoding)
    config = resolve_best_by(config, loaders.train_labels(), loaders.val_labels())
    images = len(loaders.train.indices)
    for note in step_notes(images, config.TRAIN.batch_size, config.TRAIN.gradient_accumulation_steps):
        logger.warning("%s", note)
    config = resolve_precision(config, model, backbone.prefers_channels_last, checkpoint)
    drawn = loaders.train.batches.weights
    labels = build_loss(config, loaders.train_labels(), loaders.coarse_groups, device, drawn)
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
    from configs.default_config import Config

    path, overrides = config_file(options, resumed), given_overrides(options)
    return Config.from_yaml(path, overrides) if path else Config.from_overrides(overrides)


def check_installed(config: Config) -> None:
    """Raises ConfigError where LOGGING.trackers needs a package that is missing: before the data are opened."""
    from utils.runs.trackers import check_trackers

    check_trackers(config)


def config_file(options: argparse.Namespace, resumed: Path | None) -> str | Path | None:
    """What the settings are read from before the overrides, None where these are over the defaults."""
    return options.config or (folder_of(resumed) / "config.yaml" if resumed else None)


def look(config: Config, options: argparse.Namespace, resumed: Path | None) -> int:
    """--print-config, --dry-run: what would be trained, and no run's folder; the exit code."""
    from configs.origins import annotated_yaml, origins, resolved

    prepared = None
    if options.dry_run:
        from data.study import SPLITS
        from training.builder import build_loop
        from training.dry_run import describe_data, dry_run

        if resumed is None and config.LOGGING.run_name:
            check_name_is_free(config.CHECKPOINT.save_dir, config.LOGGING.run_name)
        parts = prepare(config, resumed)
        prepared = parts.config
        splits = {split: int((parts.assignment == split).sum()) for split in SPLITS}
        description = describe_data(splits, parts.task.class_names, parts.positives, parts.model.summary())
        found = dry_run(build_loop(prepared, parts.learner, parts.loss), parts.loaders.train)
        recipe = [*parts.learner.describe_rates(), *parts.describe_sampling()]
        show("\n".join([*description, *recipe, *found.lines(), "no run's folder was written"]))
    if options.print_config:
        of = origins(config_file(options, resumed), given_overrides(options))
        show(annotated_yaml(*resolved(config, of, prepared)))
    return 0


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
    if not (run.path / DOCTOR).is_file():
        run.write_json(DOCTOR, first_look(parts))
    for line in parts.describe_sampling():
        logger.info("%s", line)
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


def first_look(parts: Parts) -> dict[str, object]:
    """What doctor.py would say as far as it is known when training begins: no image is decoded for it."""
    from data.examination.advice import ADVICE, TOLD
    from data.examination.files import record_files
    from data.examination.labels import class_counts, label_findings, patient_findings
    from data.examination.table import table_findings
    from evaluation.class_intervals import FEWEST_PATIENTS
    from utils.examination.findings import Report, advised

    report, data = Report(), parts.dataset_index
    for note in data.notes:
        report.add("note" if any(part in note for part in TOLD) else "warning", "data", note, advised(note, ADVICE))
    report.fact("classes", *class_counts(data, parts.assignment))
    report.extend(label_findings(data, parts.assignment, FEWEST_PATIENTS))
    report.extend(patient_findings(data.image_index.studies))
    report.extend([] if data.table is None else table_findings(data.table))
    files = record_files(data.image_index)
    report.scans.append(f"the ends of {len(files['sample']):,} of {files['images']:,} files; none was decoded")
    report.scans.append("labels, patients and table of all studies")
    return {"written_by": "train.py", **report.as_dict(), "files": files}


if __name__ == "__main__":
    sys.exit(main())
