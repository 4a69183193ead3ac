#!/usr/bin/env python3
"""Train a medical-image classifier from one configuration.

python train.py --config configs/quickstart.yaml
python train.py --config configs/nih_chestxray14.yaml --set DATA.data_dir=/data/nih TRAIN.batch_size=16
python train.py --resume                     # go on with the newest run
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from configs.default_config import Config
from configs.errors import HybridMedNetError
from utils.interrupt import Interrupted, StopRequest
from utils.log import log_to_file, setup_logging
from utils.runs.folder import RunFolder, find_run, folder_of

logger = logging.getLogger("train")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every setting, its default and meaning: docs/configuration.md. Presets: configs/*.yaml.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; without it configs/default_config.py's defaults")
    parser.add_argument(
        "--set", metavar="SECTION.key=value", nargs="+", action="extend", default=[], help="override settings"
    )
    parser.add_argument(
        "--resume",
        metavar="PATH",
        nargs="?",
        const="",
        help="go on with a run's folder or checkpoint; alone: the newest",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit code: 0, 2 for the user's errors, 130 or 143 after SIGINT or SIGTERM."""
    options = parse_arguments(arguments)
    setup_logging()
    stop = StopRequest().install()
    try:
        train(options, stop)
    except HybridMedNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interrupted:
        logger.warning("%s%s", interrupted, ": go on by --resume" if stop.save_before_leaving else "")
        return interrupted.exit_code
    return 0


def train(options: argparse.Namespace, stop: StopRequest) -> None:
    """The recipe: config → data → model → trainer → fit → test."""
    resumed = find_resumed(options)
    config = load_settings(options, resumed)
    setup_logging(config.LOGGING.format)

    from data.builder import build_loaders, open_data, split_data
    from models import check_backbone, create_model, load_teacher
    from training.builder import build_distillation, build_learner, build_loss, build_trainer, resolve_precision
    from training.precision import choose_device
    from training.resume import resume
    from utils.checkpoint import load_resumable
    from utils.process import prepare_process
    from utils.runs.recorder import Recorder

    check_backbone(config.MODEL.backbone, config.image_shape())
    device = choose_device(config.TRAIN.device)
    prepare_process(device, config.TRAIN.seed)
    checkpoint = load_resumable(resumed) if resumed else None
    dataset_index = open_data(config)
    config = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    assignment = split_data(config, dataset_index, folder_of(resumed) / "split.csv" if resumed and checkpoint else None)

    model = create_model(config, checkpoint).to(device)
    backbone = model.backbone
    loaders = build_loaders(config, dataset_index, assignment, backbone.mean, backbone.std, device.type)
    config = resolve_precision(config, model, backbone.prefers_channels_last, checkpoint)
    labels = build_loss(config, loaders.train_labels(), loaders.coarse_groups, device)
    learner = build_learner(config, model, len(loaders.train))
    loss = build_distillation(config, labels, load_teacher(config), loaders.preprocess.as_dict(), learner)
    if checkpoint is not None:
        resume(learner, checkpoint, config)

    run = open_run(config, model.attention_mode, resumed, learner.state.epoch)
    description = describe_run(run, config, dataset_index, assignment, loaders, learner)
    recorder = Recorder(run, config, description, checkpoint)
    trainer = build_trainer(config, learner, loss, [recorder], stop)

    stop.save_before_leaving = True
    trainer.fit(loaders.train, loaders.val)
    stop.save_before_leaving = False
    split, loader = ("test", loaders.test) if loaders.test else ("val", loaders.val)
    best = recorder.best(learner.state.epoch)
    recorder.report(split, best.epoch, trainer.evaluate(loader, split, best.weights))


def find_resumed(options: argparse.Namespace) -> Path | None:
    """The run's folder or the checkpoint to go on from, None for a new run."""
    if options.resume is None:
        return None
    return find_run(options.resume, load_settings(options, None).CHECKPOINT.save_dir)


def load_settings(options: argparse.Namespace, resumed: Path | None) -> Config:
    """From --config, or the resumed run's own file, or the defaults; then the overrides."""
    path = options.config or (folder_of(resumed) / "config.yaml" if resumed else None)
    return Config.from_yaml(path, options.set) if path else Config.from_overrides(options.set)


def open_run(config: Config, attention: str, resumed: Path | None, last_epoch: int) -> RunFolder:
    """The resumed run's folder, or a new one named after the model and the time."""
    if resumed is not None:
        return RunFolder.open(folder_of(resumed), last_epoch)
    name = f"{config.MODEL.name}-{config.MODEL.backbone}-{attention}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunFolder.create(config.CHECKPOINT.save_dir, config.LOGGING.run_name or name.replace("/", "_"))


def describe_run(run: RunFolder, config: Config, dataset_index, assignment, loaders, learner) -> dict:
    """Write config, split and environment into the run's folder; what checkpoints carry of them."""
    from data.splits.assignment import write_split
    from utils.environment import describe_environment

    log_to_file(run.path / "train.log")
    run.write_text(run.config.name, config.to_yaml())
    split_hash = write_split(run.split, dataset_index, assignment)
    run.write_json("environment.json", describe_environment(str(learner.device), learner.precision.name))
    logger.info("run %s: %s on %s, %s", run.path, learner.precision.name, learner.device, learner.model.summary())
    return {
        "config": config.model_dump(mode="json"),
        "class_names": list(dataset_index.class_names),
        **loaders.describe(),
        "split_sha256": split_hash,
        "removed_channels": learner.model.removed_channels,
    }


if __name__ == "__main__":
    sys.exit(main())
