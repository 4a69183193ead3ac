#!/usr/bin/env python3
"""Ask one or several trained models about images.

python predict.py image.png --checkpoint checkpoints/<run>
python predict.py images/ list.csv --checkpoint checkpoints/<run> --tta --heatmaps --output results
python predict.py images/ --checkpoint checkpoints/<run> checkpoints/<other run>     # an ensemble
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from configs.followed import PREDICT
from configs.section import settled
from utils.command_line import add_overrides, run_script
from utils.runs.folder import model_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from data.cache.reader import AnyPreprocess
    from data.joint_inputs import JointPreprocess, UnreadableInputs
    from data.profile import TrainingData, Traits
    from data.sources.unlabelled import Item
    from data.study import DatasetIndex
    from inference.ensemble import Ensemble
    from inference.prediction import Draw
    from inference.results import Row
    from utils.batch import Inputs

logger = logging.getLogger("predict")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What the columns mean, and the warnings: docs/prediction.md.",
    )
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        nargs="+",
        help="images (PNG, JPEG, WebP, TIFF, DICOM; volumes), folders, CSVs with `image`",
    )
    add(
        "--checkpoint", metavar="FILE", nargs="+", required=True, help="a run's folder or a model's file; several: mean"
    )
    add("--output", metavar="DIR", default="predictions", help="where results are written (predictions)")
    add("--format", choices=("csv", "json"), nargs="+", default=["csv", "json"], help="of results (both)")
    add("--threshold", metavar="X", type=float, help="for all classes; without it the checkpoint's, or else 0.5")
    add("--tta", action="store_true", help="test-time augmentation: average over five fixed transforms of each image")
    add("--heatmaps", metavar="METHOD", nargs="?", const="grad_cam", help="also draw where findings are (grad_cam)")
    add("--batch-size", metavar="N", type=int, default=16, help="images at a time (16)")
    add("--num-workers", metavar="N", type=int, help="processes that read; without it one for 32 images, at most 4")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_overrides(parser, PREDICT)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Predict; returns the exit code: 0 if any image was predicted, 2 if none or for the user's errors, 130."""
    options = parse_arguments(arguments)
    return run_script(lambda: predict(options))


def predict(options: argparse.Namespace) -> int:
    """The recipe: models → images → probabilities → findings, warnings, heatmaps → files."""
    from data.builder import asked_tables
    from data.joint_inputs import JointPreprocess, UnreadableInputs, unlabelled_loader
    from data.sources.unlabelled import open_unlabelled
    from inference.members import about_prediction
    from inference.prediction import predict_rows
    from inference.results import Row, make_folder, report, write_results
    from training.precision import choose_device
    from utils.process import prepare_process

    device = choose_device(options.device)
    prepare_process(device)
    ensemble, preprocesses, profiles = open_models(options, device)
    dataset_index, items = open_unlabelled(options.input, len(preprocesses[0].size) == 3, asked_tables(options.set))
    for note in dataset_index.notes:
        logger.warning("%s", note)
    folder = make_folder(options.output)
    joint, unread = JointPreprocess(preprocesses), UnreadableInputs()
    workers = min(4, len(items) // 32) if options.num_workers is None else options.num_workers
    loader = unlabelled_loader(dataset_index, joint, unread, options.batch_size, workers, device.type == "cuda")
    draw = drawer(options.heatmaps, folder, ensemble, joint, dataset_index) if options.heatmaps else None
    rows = [Row(item.name, item.columns) for item in items]

    predict_rows(loader, ensemble, rows, unlike(profiles, items, unread), draw)
    for number, reason in unread.reasons.items():
        rows[number].error = reason
    about = about_prediction(options.input, device, ensemble)
    return report(rows, ensemble, write_results(folder, options.format, rows, ensemble, about))


def open_models(
    options: argparse.Namespace, device: torch.device
) -> tuple[Ensemble, list[AnyPreprocess], list[TrainingData]]:
    """(the Ensemble, the different preprocessings of its members, what their training data looked like)."""
    from data.builder import saved_preprocess
    from data.profile import TrainingData
    from evaluation.fitting import stored_point
    from inference.ensemble import Ensemble
    from inference.members import make_member
    from models.saved_model import load_models
    from training.precision import choose_available_precision, choose_memory_format

    members, profiles = [], []
    preprocesses: dict[str, AnyPreprocess] = {}
    files = [model_file(Path(name)) for name in options.checkpoint]
    for file, saved in zip(files, load_models(files, options.set, PREDICT)):
        metadata, settings, backbone = saved.description, saved.config, saved.model.backbone
        preprocess = saved_preprocess(saved.preprocessing, settings, backbone.mean, backbone.std)
        preprocesses.setdefault(str(preprocess.as_dict()), preprocess)
        precision = choose_available_precision(settings.TRAIN.mixed_precision, device)
        point = stored_point(metadata.get("operating_point"), settled(settings.MODEL.num_classes, "MODEL.num_classes"))
        preprocess_index = list(preprocesses).index(str(preprocess.as_dict()))
        layout = choose_memory_format(settings.TRAIN.channels_last, backbone.prefers_channels_last)
        members.append(make_member(file, saved, point, preprocess_index, device, precision, layout, options.tta))
        if metadata.get("training_data"):
            profiles.append(TrainingData.from_dict(metadata["training_data"], settings.has_volumes()))
        else:
            logger.warning("'%s' does not describe its training images: it cannot warn about unlike ones", file)
    return Ensemble(members, options.threshold), list(preprocesses.values()), profiles


def unlike(
    profiles: Sequence[TrainingData], items: Sequence[Item], unread: UnreadableInputs
) -> Callable[[int, Traits], list[str]]:
    """(row's number, traits) → warnings, each once, of all models' training data, and what its reader remarked."""
    from data.sources.unlabelled import dicom_view

    knows_views = any(profile.views for profile in profiles)

    def warnings(number: int, traits: Traits) -> list[str]:
        item = items[number]
        view = (item.view or dicom_view(item.path)) if knows_views else ""
        remarks = [f"{remark.kind}: {remark.detail}" for remark in unread.remarks.of(number)]
        return list(dict.fromkeys([*remarks, *(text for one in profiles for text in one.differences(traits, view))]))

    return warnings


def drawer(method: str, folder: Path, ensemble: Ensemble, joint: JointPreprocess, dataset_index: DatasetIndex) -> Draw:
    """(row's number, row, inputs) → overlays of its findings, or of the likeliest class where there is none."""
    from explain.prediction_heatmaps import PredictionHeatmaps

    heatmaps = PredictionHeatmaps(folder, method, ensemble.members, ensemble.orders, joint.modes)

    def draw(number: int, row: Row, inputs: Sequence[Inputs]) -> None:
        assert row.probabilities is not None, "a predicted row"
        classes = row.findings or (int(row.probabilities.argmax()),)
        labels = [(ensemble.class_names[k], float(row.probabilities[k])) for k in classes]
        title = row.image if row.findings else f"{row.image}: no finding, this is the likeliest class"
        displayed, more = joint.display_image(dataset_index.read(number))
        images = [one.single_images() for one in inputs]
        maps = heatmaps.of_volume(images, classes) if more else heatmaps.of_image(displayed, images, classes)
        row.heatmaps = heatmaps.draw(number, title, displayed, maps, labels, **more)

    return draw


if __name__ == "__main__":
    sys.exit(main())
