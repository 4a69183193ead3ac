#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Say before a training what would stop it or spoil its result: settings, data, weights, memory, disk, device.

python doctor.py --config configs/nih_chestxray14.yaml --set DATA.data_dir=/data/nih
python doctor.py checkpoints/RUN             # a run's folder: are its checkpoints whole, its data still there?

Nothing is trained or written. The exit code is 2 where a run would fail, else 0."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import CheckpointError
from utils.arguments import Parser
from utils.command_line import run_script, show
from utils.examination.checks import Check, run_checks
from utils.examination.findings import Report, counted
from utils.runs.files import CONFIG, LABELS, SPLIT
from utils.training_arguments import add_training_settings, given_overrides

if TYPE_CHECKING:  # --help does without torch
    import numpy as np
    import torch

    from configs.default_config import Config
    from data.builder import Loaders
    from data.study import DatasetIndex
    from models import HybridMedNet
    from utils.listener import FileContent

logger = logging.getLogger("doctor")

SAMPLE = 2000  # images that are decoded, where nothing else is asked for: minutes


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What is looked at, and what to do about what is found: docs/doctor.md.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", nargs="?", help="a run's folder or checkpoint, as train.py --resume takes it")
    add_training_settings(parser)
    add(
        "--sample",
        metavar="N",
        type=_sample,
        default=SAMPLE,
        help=f"how many images to decode, always the same ones, or 'all' ({SAMPLE:,}); of all others the first bytes",
    )
    add("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args(arguments)


def _sample(text: str) -> int | None:
    """A number of images; None for all of them."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor 'all'")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Examine; the exit code: 2 where a run would fail, or after wrong use, 0 otherwise, 130 after Ctrl-C."""
    return run_script(lambda: run(parse_arguments(arguments)), arguments)


def run(options: argparse.Namespace) -> int:
    """All checks, and what they found."""
    overrides = list(given_overrides(options))
    report = examine(Case(Path(options.run) if options.run else None, options.config, overrides, options.sample))
    show(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if options.json else report.as_text())
    return report.exit_code


@dataclass
class Case:
    """What is examined; and what the checks have found of it, None where one could not."""

    path: Path | None = None
    config_file: str | None = None
    overrides: list[str] = field(default_factory=list)
    sample: int | None = SAMPLE
    config: Config | None = None
    device: torch.device | None = None
    checkpoint: FileContent | None = None
    data: DatasetIndex | None = None
    assignment: np.ndarray | None = None
    model: HybridMedNet | None = None
    loaders: Loaders | None = None

    @property
    def folder(self) -> Path | None:
        """The run's."""
        return self.path if self.path is None or self.path.is_dir() else self.path.parent

    def has(self, key: str) -> bool:
        """Whether the run's checkpoint says so."""
        return self.checkpoint is not None and bool(self.checkpoint.get(key))


def examine(case: Case) -> Report:
    """All checks."""
    from data.examination.advice import ADVICE, TOLD

    return run_checks(case, CHECKS, ADVICE, TOLD)


def check_config(case: Case, report: Report) -> None:
    """The settings, all problems at once."""
    path = case.config_file
    if case.folder is not None:
        from utils.examination.run_folder import is_run

        if not is_run(case.folder):
            raise CheckpointError(f"there is no run '{case.path}': name its folder, or a checkpoint in one")
        path = path or str(case.folder / CONFIG)
    from configs.default_config import Config
    from utils.runs.trackers import check_trackers

    case.config = Config.from_yaml(path, case.overrides) if path else Config.from_overrides(case.overrides)
    config = case.config
    check_trackers(config)
    size = " x ".join(map(str, reversed(config.image_shape())))
    report.fact(
        "config", f"{path or 'the defaults'}: {config.MODEL.backbone}, input {size}, {config.TRAIN.epochs} epochs"
    )


def check_versions(case: Case, report: Report) -> None:
    """Installed packages."""
    from utils.examination.versions import displayed_versions, version_findings

    report.fact("versions", displayed_versions())
    report.extend(version_findings())


def check_device(case: Case, report: Report) -> None:
    """The device, its precision, cores and shared memory."""
    from training.precision import choose_device, choose_precision
    from utils.examination.machine import describe_device, device_findings, worker_findings

    assert case.config is not None
    train, shape = case.config.TRAIN, case.config.image_shape()
    case.device = choose_device(train.device)
    choose_precision(train.mixed_precision, case.device)
    report.fact("device", describe_device(case.device))
    report.extend(device_findings(case.device) if train.device == "auto" else ())
    batch_bytes = 4 * train.batch_size * case.config.MODEL.in_channels * math.prod(shape)
    report.extend(worker_findings(case.config.DATA.num_workers, batch_bytes))


def check_run(case: Case, report: Report) -> None:
    """A run's folder."""
    from utils.examination.run_folder import examine_run

    if case.path is not None:
        case.checkpoint = examine_run(case.path, report)


def check_backbone_name(case: Case, report: Report) -> None:
    """Its name and the size of its input, before anything is read."""
    from models import check_backbone

    assert case.config is not None
    if not case.has("own_model"):
        check_backbone(case.config.MODEL.backbone, case.config.image_shape())


def check_data(case: Case, report: Report) -> None:
    """Open the data, and who is trained on; how these differ from a run's."""
    from data.builder import resolve_studies, undrawn_sample
    from data.examination.opening import open_leniently
    from data.splits.resumed_data import check_source_split, tell_label_changes

    assert case.config is not None
    if case.has("own_loader"):
        report.skipped["data"] = "the run was given loaders of its user's own"
        return
    if (sample := undrawn_sample(case.config)) is not None:
        report.add(
            "note",
            "data",
            f"the sample data '{sample}' are drawn when a training begins: there is nothing yet to look at",
        )
        return
    saved = case.folder / SPLIT if case.folder is not None and case.checkpoint is not None else None
    config, data, assignment = open_leniently(case.config, saved, report)
    if saved is not None and case.folder is not None and case.checkpoint is not None:
        if config.DATA.split_file is None:
            check_source_split(data, assignment, saved)
        tell_label_changes(case.folder / LABELS, case.checkpoint.get("labels_sha256"), data, assignment)
    case.config, case.data, case.assignment = resolve_studies(config, data, assignment), data, assignment
    patients = len({study.group for study in data.studies})
    studies = counted(len(data.studies), *(("image",) if data.images is None else ("study", "studies")))
    report.fact("data", f"{config.DATA.data_dir}: {studies} of {counted(patients, 'patient')}, {config.MODEL.task}")


def check_labels(case: Case, report: Report) -> None:
    """Classes, patients."""
    from data.examination.headers import header_findings
    from data.examination.labels import class_counts, label_findings, patient_findings
    from evaluation.class_intervals import FEWEST_PATIENTS

    assert case.data is not None and case.assignment is not None
    report.fact("classes", *class_counts(case.data, case.assignment))
    labels = label_findings(case.data, case.assignment, FEWEST_PATIENTS)
    patients = patient_findings(case.data.image_index.studies)
    report.extend([*labels, *patients, *header_findings(case.data, case.assignment, case.sample)])


def check_table(case: Case, report: Report) -> None:
    """Clinical columns."""
    from data.examination.table import describe_table, table_findings

    assert case.data is not None
    if case.data.table is not None:
        report.fact("table", *describe_table(case.data.table))
        report.extend(table_findings(case.data.table))


def check_images(case: Case, report: Report) -> None:
    """Files: heads of all, a sample decoded; and whether those of a run are as they were."""
    from data.builder import saved_preprocess
    from data.examination.files import changed_files, empty_files
    from data.examination.images import describe_scan, sample_rows, scan_findings, scan_images
    from utils.examination.machine import cores
    from utils.examination.run_folder import read_record

    assert case.config is not None and case.data is not None
    images, settings, volumes = case.data.image_index, case.config.DATA, case.config.has_volumes()
    count, style = len(images.studies), case.config.LOGGING.progress
    rows = sample_rows(count, case.sample)
    empty = empty_files(images, style)
    channels = [0.5] * case.config.MODEL.in_channels  # what is subtracted and divided by changes nothing here
    preprocess = saved_preprocess(None, case.config, channels, channels)
    workers = min(settings.num_workers, int(cores()))
    scan = scan_images(images, rows, preprocess, workers, settings.worker_timeout, style)
    scan.unreadable = {**empty, **scan.unreadable}
    report.scans.append(f"the first bytes of {counted(count, 'image')}")
    which = f"{len(rows):,} of them, drawn with seed 0 (--sample all: all)" if len(rows) < count else "all of them"
    report.scans.append(f"decoded: {which}")
    report.fact("images", *describe_scan(scan, volumes))
    report.extend(scan_findings(scan, volumes, settings.max_bad_images, case.config.image_shape()))
    scan.remarks.tell()
    if case.folder is not None:
        report.extend(changed_files(images, read_record(case.folder).get("files")))


def check_network(case: Case, report: Report) -> None:
    """Weights, and the network that is built with them."""
    from models import create_model
    from models.backbones.published import locate_published, weights_findings

    assert case.config is not None and case.device is not None
    settings, config = case.config.MODEL, case.config
    if case.has("own_model"):
        report.skipped["network"] = "the run trains a network of its user's own"
        return
    if case.data is None and (settings.views.aggregator or settings.table.fusion):
        report.skipped["network"] = "there is no data to examine"
        return
    if case.checkpoint is None and settings.pretrained is True and settings.init_from is None:
        found = locate_published(settings.backbone)
        report.extend(weights_findings(found, settings.backbone))
        if found.where in ("hub", "unreachable"):
            config = config.without_pretrained()
        else:
            report.fact("weights", f"{found.source} ({found.where})")
    model = create_model(config.complete() if case.data is None else config, case.checkpoint)
    case.model = model.to(case.device)
    report.fact("network", model.summary())


def check_memory(case: Case, report: Report) -> None:
    """A training step, by the tracer."""
    from training.precision import choose_precision
    from utils.examination.machine import memory_of
    from utils.examination.memory import memory_findings, step_memory
    from utils.gradient_checkpointing.activation_memory import trace_blocks
    from utils.gradient_checkpointing.plan import choose_plan

    assert case.config is not None and case.device is not None and case.model is not None
    config, model, train = case.config, case.model, case.config.TRAIN
    each = len(case.data.image_index.studies) / len(case.data.studies) if case.data is not None else 1.0
    autocast = choose_precision(train.mixed_precision, case.device).dtype
    shape = (max(math.ceil(train.batch_size * each), 2), model.in_channels, *model.image_size)
    trace = trace_blocks(model, model.blocks, shape, autocast)
    plan, recomputes = choose_plan(trace), config.MODEL.gradient_checkpointing.enabled
    step = step_memory(model, train.batch_size, plan, recomputes, train.optimizer, bool(train.ema_decay))
    report.fact("memory", str(step))
    if (memory := memory_of(case.device)) is None:
        report.add("note", "memory", f"how much memory a {case.device.type} has cannot be told: compare it yourself")
        return
    adapts = train.on_oom == "adapt" and case.device.type != "cpu"  # a CPU's process is killed instead
    report.extend(memory_findings(step, memory, adapts, train.gradient_accumulation_steps))


def check_training(case: Case, report: Report) -> None:
    """All that is built before the first step, and the first batch of each split."""
    from train import build_parts
    from training.builder import build_loop

    assert case.config and case.device and case.model and case.data and case.assignment is not None
    config = _settled(case.config, case.device)
    parts = build_parts(config, case.data, case.assignment, case.model, case.checkpoint)
    build_loop(parts.config, parts.learner, parts.loss)
    loaders = parts.loaders
    for loader in (loaders.train, loaders.val, loaders.test):
        if loader is not None and not report.has_error("images"):  # which would be told again
            next(iter(loader.epoch(0)))


def _settled(config: Config, device: torch.device) -> Config:
    """Without what a training times, compiles or writes first."""
    from training.precision import choose_precision

    config = config.model_copy(deep=True)
    if config.TRAIN.mixed_precision == "auto":
        config.TRAIN.mixed_precision = choose_precision("auto", device).setting
    if config.TRAIN.channels_last == "auto":
        config.TRAIN.channels_last = False
    config.TRAIN.compile, config.DATA.cache = False, "none"
    return config


def check_disk(case: Case, report: Report) -> None:
    """Folders that a run writes into."""
    from data.cache.reader import cache_folder
    from utils.examination.disk import Wanted, checkpoint_folder, disk_findings
    from utils.runs.folder import check_name_is_free

    assert case.config is not None
    config, kept = case.config, case.config.CHECKPOINT
    if case.folder is None and config.LOGGING.run_name:
        check_name_is_free(kept.save_dir, config.LOGGING.run_name)
    averaged, epochs = bool(config.TRAIN.ema_decay), config.TRAIN.epochs
    extra = epochs // kept.save_freq if kept.save_freq else 0
    goes_on = kept.on_save_error == "continue"
    folder = Path(kept.save_dir) if case.folder is None else case.folder
    wanted = [checkpoint_folder(folder, case.model, config.TRAIN.optimizer, averaged, extra, goes_on)]
    if config.LOGGING.tensorboard:
        wanted.append(Wanted("LOGGING.log_dir", Path(config.LOGGING.log_dir), optional=goes_on))
    if config.DATA.cache == "disk":
        data = config.complete().DATA
        pixels = config.MODEL.in_channels * math.prod(config.image_shape()) * (4 if config.has_volumes() else 1)
        count = 0 if case.data is None else len(case.data.image_index.studies)
        cache = cache_folder(data.cache_dir, Path(str(data.data_dir)))
        wanted.append(Wanted("DATA.cache_dir", cache, count * pixels, count * pixels))
    for one in wanted:
        report.extend(disk_findings(one))
    report.fact("disk", f"{folder}: {wanted[0].describe()}")


CHECKS: tuple[Check[Case], ...] = (
    Check("config", check_config),
    Check("versions", check_versions),
    Check("run", check_run, ("config",)),
    Check("backbone", check_backbone_name, ("config",)),
    Check("device", check_device, ("config",)),
    Check("data", check_data, ("config",)),
    Check("labels", check_labels, ("data",)),
    Check("table", check_table, ("data",)),
    Check("images", check_images, ("data",)),
    Check("network", check_network, ("config", "device")),
    Check("memory", check_memory, ("model",)),
    Check("training", check_training, ("model", "data")),
    Check("disk", check_disk, ("config",)),
)


if __name__ == "__main__":
    sys.exit(main())
