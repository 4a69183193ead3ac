#!/usr/bin/env python3
"""Ask one or several trained models about images.

python predict.py image.png --checkpoint checkpoints/<run>
python predict.py images/ list.csv --checkpoint checkpoints/<run> --tta --heatmaps --output results
python predict.py images/ --checkpoint checkpoints/<run> checkpoints/<other run>     # an ensemble
python predict.py list.csv --table clinical.csv --checkpoint checkpoints/<run of studies>
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import PredictionError
from configs.followed import OF_STUDIES, PREDICT
from configs.section import settled
from utils.arguments import Parser, Values, checkpoint, one_of
from utils.claim import claimed_alone
from utils.command_line import add_overrides, run_script
from utils.map_methods import HEATMAPS
from utils.runs.folder import model_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from data.asked import AskedModel
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
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What the columns mean, and the warnings: docs/prediction.md.",
    )
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        nargs="+",
        help="images (PNG, JPEG, WebP, TIFF, DICOM; volumes), folders, tables with `image`",
    )
    add(
        "--checkpoint",
        metavar="FILE",
        action=Values,
        takes=checkpoint,
        required=True,
        help="a run's folder or a model's file; several: mean",
    )
    add("--output", metavar="DIR", default="predictions", help="where results are written (predictions)")
    add("--format", metavar="{csv,json}", action=Values, names=("csv", "json"), default=["csv", "json"], help="(both)")
    add("--table", metavar="FILE", help="clinical table of studies; without it columns of the tables that name images")
    add("--missing-columns", action="store_true", help="of studies: what a table lacks is unknown, not an error")
    add("--threshold", metavar="X", type=float, help="for all classes; without it the checkpoint's, or else 0.5")
    add("--tta", action="store_true", help="test-time augmentation: average over five fixed transforms of each image")
    add(
        "--heatmaps",
        metavar="METHOD",
        action=Values,
        nargs="?",
        const="grad_cam",
        takes=one_of(HEATMAPS),
        help="also draw where findings are (grad_cam)",
    )
    add("--batch-size", metavar="N", type=int, default=16, help="images at a time (16)")
    add(
        "--num-workers", metavar="N", type=int, help="processes that read (one for 32 images, at most 4 and one a core)"
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_overrides(parser, PREDICT)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Predict; returns the exit code: 0 if any image was predicted, 2 if none or for the user's errors, 130."""
    return run_script(lambda: predict(parse_arguments(arguments)))


def predict(options: argparse.Namespace) -> int:
    """The recipe: models → images or studies → probabilities → findings, warnings, heatmaps → files."""
    from inference.members import about_prediction
    from inference.results import make_folder, report, write_results
    from training.precision import choose_device
    from utils.process import prepare_process

    device = choose_device(options.device)
    prepare_process(device)
    ensemble, models = open_models(options, device)
    folder = Path(options.output)
    asked = ask_studies if models[0].of_studies else ask_images
    rows, fill = asked(options, ensemble, models, folder)
    make_folder(options.output)
    taken = PredictionError(f"another process is writing into '{folder}': wait for it, or name another by --output")
    with claimed_alone(folder, taken):
        fill()
        about = about_prediction(options.input, device, ensemble)
        return report(rows, ensemble, write_results(folder, options.format, rows, ensemble, about))


def ask_images(
    options: argparse.Namespace, ensemble: Ensemble, models: Sequence[AskedModel], folder: Path
) -> tuple[list[Row], Callable[[], None]]:
    """(a row an image of the inputs, what fills the rows)."""
    from data.builder import asked_tables
    from data.joint_inputs import JointPreprocess, UnreadableInputs, unlabelled_loader
    from data.sources.unlabelled import open_unlabelled
    from inference.prediction import predict_rows
    from inference.results import Row

    preprocesses = different([model.preprocess for model in models])
    dataset_index, items = open_unlabelled(options.input, len(preprocesses[0].size) == 3, asked_tables(options.set))
    for note in dataset_index.notes:
        logger.warning("%s", note)
    joint, unread = JointPreprocess(preprocesses), UnreadableInputs()
    size, workers, pinned = loading(options, len(items), ensemble)
    loader = unlabelled_loader(dataset_index, joint, unread, size, workers, pinned)
    draw = drawer(options.heatmaps, folder, ensemble, joint, dataset_index) if options.heatmaps else None
    rows = [Row(item.name, item.columns) for item in items]
    profiles = [model.profile for model in models if model.profile is not None]

    def fill() -> None:
        predict_rows(loader, ensemble, rows, unlike(profiles, items, unread), draw)
        for number, reason in unread.reasons.items():
            rows[number].error = reason

    return rows, fill


def ask_studies(
    options: argparse.Namespace, ensemble: Ensemble, models: Sequence[AskedModel], folder: Path
) -> tuple[list[Row], Callable[[], None]]:
    """(a row a study of the inputs, what fills the rows)."""
    from data.asked import Asked
    from inference.prediction import predict_rows
    from inference.results import Row

    asked = Asked(models, options.input, options.table, options.missing_columns, options.set)
    for note in asked.notes:
        logger.warning("%s", note)
    studies = asked.dataset_index.studies
    loader = asked.loader(*loading(options, len(asked.images.index.studies), ensemble))
    rows = [Row(one.name, asked.columns[n], images=asked.names(n)) for n, one in enumerate(studies)]

    def fill() -> None:
        predict_rows(loader, ensemble, rows, asked.warnings)
        for number, row in enumerate(rows):
            row.missing = asked.missing(number)
            if row.probabilities is None and not row.error:
                row.error = asked.failure(number)

    return rows, fill


def loading(options: argparse.Namespace, images: int, ensemble: Ensemble) -> tuple[int, int, bool]:
    """(batch size, workers, whether memory is pinned)."""
    workers = min(4, os.cpu_count() or 1, images // 32) if options.num_workers is None else options.num_workers
    return options.batch_size, workers, ensemble.members[0].predictor.device.type == "cuda"


def different(preprocesses: Sequence[AnyPreprocess]) -> list[AnyPreprocess]:
    """Each once, in their order: a file is read once for all models, and made an input of once for those alike."""
    found: dict[str, AnyPreprocess] = {}
    for one in preprocesses:
        found.setdefault(str(one.as_dict()), one)
    return list(found.values())


def open_models(options: argparse.Namespace, device: torch.device) -> tuple[Ensemble, list[AskedModel]]:
    """(the Ensemble, what each member's file says of its data)."""
    from data.asked import AskedModel
    from data.builder import saved_preprocess, saved_table
    from data.profile import TrainingData
    from evaluation.fitting import stored_point
    from inference.ensemble import Ensemble
    from inference.members import make_member
    from models.saved_model import load_models
    from training.precision import choose_available_precision, choose_memory_format

    files = [model_file(Path(name)) for name in options.checkpoint]
    opened = list(zip(files, load_models(files, options.set, PREDICT)))
    models = []
    for file, saved in opened:
        settings, backbone, description = saved.config, saved.model.backbone, saved.description
        preprocess = saved_preprocess(saved.preprocessing, settings, backbone.mean, backbone.std)
        profile = None
        if description.get("training_data"):
            profile = TrainingData.from_dict(description["training_data"], settings.has_volumes())
        else:
            logger.warning("'%s' does not describe its training images: it cannot warn about unlike ones", file)
        encoding, kinds = saved_table(description.get("table")), description.get("view_kinds")
        models.append(AskedModel(str(file), settings, preprocess, encoding, kinds, profile))
    check_options(options, models)
    inputs = input_numbers(models)
    members = []
    for (file, saved), number in zip(opened, inputs):
        training = saved.config.TRAIN
        precision = choose_available_precision(training.mixed_precision, device)
        count = settled(saved.config.MODEL.num_classes, "MODEL.num_classes")
        point = stored_point(saved.description.get("operating_point"), count)
        layout = choose_memory_format(training.channels_last, saved.model.backbone.prefers_channels_last)
        members.append(make_member(file, saved, point, number, device, precision, layout, options.tta))
    return Ensemble(members, options.threshold), models


def input_numbers(models: Sequence[AskedModel]) -> list[int]:
    """Which of the inputs is each model's own: of studies, where tables differ, each has one of its own."""
    if models[0].of_studies:
        return list(range(len(models)))
    known = [str(one.as_dict()) for one in different([model.preprocess for model in models])]
    return [known.index(str(model.preprocess.as_dict())) for model in models]


def check_options(options: argparse.Namespace, models: Sequence[AskedModel]) -> None:
    """Raises PredictionError where models or options do not go together."""
    from configs.default_config import Config

    first = models[0]
    for model in models[1:]:
        if model.of_studies != first.of_studies:
            one, other = (model.file, first.file) if model.of_studies else (first.file, model.file)
            raise PredictionError(f"'{one}' takes studies, '{other}' single images: ask them one by one")
    for model in models:
        if model.config.MODEL.table.fusion is not None and model.encoding is None:
            raise PredictionError(f"'{model.file}' does not say how its table is encoded, so it cannot be asked")
    if first.of_studies:
        if options.heatmaps:
            raise PredictionError("--heatmaps is for models of single images: `python -m explain` looks into studies")
        return
    named = {key for keys in Config.override_keys(options.set).values() for key in keys}
    asked = {"--table": options.table is not None, "--missing-columns": options.missing_columns}
    given = [name for name, there in asked.items() if there] + [f"--set {k}" for k in OF_STUDIES if k in named]
    if given:
        raise PredictionError(f"{', '.join(given)}: '{first.file}' takes single images, this is for models of studies")


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
