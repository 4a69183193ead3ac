#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Ask one or several trained models about images.

python predict.py image.png --checkpoint checkpoints/<run>
python predict.py images/ list.csv --checkpoint checkpoints/<run> --tta --heatmaps --output results
python predict.py images/ --checkpoint checkpoints/<run> checkpoints/<other run>     # an ensemble
python predict.py images/ --checkpoint checkpoints/<cross-validation>                 # the runs of all its folds
python predict.py list.csv --table clinical.csv --checkpoint checkpoints/<run of studies>
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import DataError, PredictionError
from configs.followed import OF_STUDIES, PREDICT
from utils.arguments import Parser, Values, checkpoint, one_of, whole_number
from utils.claim import claimed_alone
from utils.command_line import add_overrides, run_script
from utils.map_methods import HEATMAPS
from utils.runs.cross_validation import model_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from data.asked import Asked, AskedModel
    from data.asked_images import AskedImages
    from inference.ensemble import Ensemble
    from inference.journal import Journal
    from inference.results import Row
    from utils.runs.json_lines import JsonObject

    Draw = Callable[[int, Row], tuple[str, ...]]

logger = logging.getLogger("predict")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; torch is not imported for it."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code: 0 all were predicted, 3 some were not, 2 none was, or the command is wrong, 130 Ctrl-C.\n"
        "What the columns mean, and the warnings: docs/prediction.md.",
    )
    add = parser.add_argument
    add(
        "input",
        metavar="INPUT",
        nargs="+",
        help="images (PNG, JPEG, WebP, TIFF, DICOM; volumes), folders, tables with `image`",
    )
    models = "a run's folder, a model's file, or a cross-validation's folder; several: mean"
    add("--checkpoint", metavar="FILE", action=Values, takes=checkpoint, required=True, help=models)
    add("--output", metavar="DIR", default="predictions", help="where results are written (predictions)")
    add("--format", metavar="{csv,json}", action=Values, names=("csv", "json"), default=["csv", "json"], help="(both)")
    add("--table", metavar="FILE", help="clinical table of studies; without it columns of the tables that name images")
    add("--missing-columns", action="store_true", help="of studies: what a table lacks is unknown, not an error")
    add("--threshold", metavar="X", type=float, help="for all classes; without it the checkpoint's, or else 0.5")
    add("--tta", action="store_true", help="test-time augmentation: average over five fixed transforms of each image")
    add("--resume", action="store_true", help="go on with the results in --output that were not finished")
    add(
        "--heatmaps",
        metavar="METHOD|N|METHOD:N",
        action=Values,
        nargs="?",
        const="grad_cam",
        takes=lambda value: whole_number(value) or one_of(HEATMAPS)(value.partition(":")[0]),
        help="also draw where findings are (grad_cam); N: for the first N rows with a finding",
    )
    add("--batch-size", metavar="N", type=int, default=16, help="images at a time (16)")
    add(
        "--num-workers", metavar="N", type=int, help="processes that read (one for 32 images, at most 4 and one a core)"
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_overrides(parser, PREDICT)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Predict; returns the exit code: 0 if all were predicted, 3 if some were not, 2 if none or for the user's errors,
    130.
    """
    return run_script(lambda: predict(parse_arguments(arguments)), arguments)


def predict(options: argparse.Namespace) -> int:
    """The recipe: models → images or studies → probabilities, findings, warnings, row by row → heatmaps → files."""
    from inference.journal import Journal, resume, set_aside
    from inference.members import about_prediction
    from inference.results import make_folder, report, write_results
    from training.precision import choose_device
    from utils.process import prepare_process

    device = choose_device(options.device)
    prepare_process(device)
    ensemble, models = open_models(options, device)
    folder, settings = Path(options.output), settings_of(options, ensemble)
    asked = open_asked(options, models)
    rows, draw = rows_of(asked), drawer(options.heatmaps, folder, ensemble, asked)
    make_folder(options.output)
    taken = PredictionError(f"another process is writing into '{folder}': wait for it, or name another by --output")
    with claimed_alone(folder, taken):
        if options.resume:
            resume(folder, settings, rows, ensemble.class_names)
        else:
            set_aside(folder)
        with Journal(folder, settings, rows, ensemble, "csv" in options.format) as journal:
            fill(options, ensemble, asked, rows, journal)
            draw_heatmaps(options.heatmaps, draw, rows, journal)
            about = about_prediction(options.input, device, ensemble)
            paths = write_results(folder, options.format, rows, ensemble, about)
            journal.finish()
        return report(rows, ensemble, paths)


def open_asked(options: argparse.Namespace, models: Sequence[AskedModel]) -> AskedImages | Asked:
    """The images or studies of the inputs; says what is to be said of them."""
    from data.asked import Asked
    from data.asked_images import AskedImages

    if options.batch_size < 1 or (options.num_workers or 0) < 0:
        given = f"--batch-size {options.batch_size}", f"--num-workers {options.num_workers or 0}"
        raise PredictionError(f"{given[0]} must be at least 1, {given[1]} at least 0")
    asked: AskedImages | Asked
    if models[0].of_studies:
        asked = Asked(models, options.input, options.table, options.missing_columns, options.set)
    else:
        asked = AskedImages(models, options.input, options.set)
    for note in asked.notes:
        logger.warning("%s", note)
    return asked


def rows_of(asked: AskedImages | Asked) -> list[Row]:
    """A row an image or a study of the inputs, without its result."""
    from data.asked_images import AskedImages
    from inference.results import Row

    if isinstance(asked, AskedImages):
        rows = [Row(item.name, item.columns) for item in asked.items]
    else:
        studies = asked.dataset_index.studies
        rows = [Row(one.name, asked.columns[n], images=asked.names(n)) for n, one in enumerate(studies)]
    for number, row in enumerate(rows):
        row.fingerprint = asked.fingerprint(number)
    return rows


def fill(
    options: argparse.Namespace, ensemble: Ensemble, asked: AskedImages | Asked, rows: Sequence[Row], journal: Journal
) -> None:
    """The rows that have no result yet, batch by batch, each batch into the files before the next is done."""
    from data.asked_images import AskedImages
    from inference.prediction import batches_to_do, predict_rows

    batches = batches_to_do(rows, options.batch_size)
    numbers = [number for batch in batches for number in batch]
    for number in numbers:
        rows[number].clear()

    def finish(batch: Sequence[int]) -> None:
        for number in batch:
            row = rows[number]
            if not isinstance(asked, AskedImages):
                row.missing = asked.missing(number)
            if row.probabilities is None and not row.error:
                row.error = asked.failure(number)
        journal.add(batch)

    device = ensemble.members[0].predictor.device.type
    workers = min(4, os.cpu_count() or 1, len(numbers) // 32) if options.num_workers is None else options.num_workers
    how = options.batch_size, workers, device == "cuda", numbers
    if isinstance(asked, AskedImages):
        predict_rows(asked.loader(*how), ensemble, rows, batches, asked.warnings, finish)
    else:
        predict_rows(asked.loader(*how), ensemble, rows, batches, asked.warnings, finish)


def settings_of(options: argparse.Namespace, ensemble: Ensemble) -> JsonObject:
    """What the results depend on beside the files, for --resume."""
    from inference.members import made_by

    method, _ = heatmaps_asked(options.heatmaps)
    return made_by(ensemble, options.batch_size, {"--set": sorted(options.set), "--heatmaps": method})


def open_models(options: argparse.Namespace, device: torch.device) -> tuple[Ensemble, list[AskedModel]]:
    """(the Ensemble, what each member's file says of its data)."""
    from configs.section import settled
    from data.asked import AskedModel
    from data.asked_images import input_numbers
    from data.builder import saved_preprocess, saved_table
    from data.profile import TrainingData
    from evaluation.fitting import stored_point
    from inference.ensemble import Ensemble
    from inference.members import make_member
    from models.saved_model import load_models
    from training.precision import choose_available_precision, choose_memory_format

    files = [file for name in options.checkpoint for file in model_files(Path(name))]
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
        if options.heatmaps and first.config.has_volumes():
            raise PredictionError("--heatmaps draws studies of images: `python -m explain` draws those of volumes")
        return
    named = {key for keys in Config.override_keys(options.set).values() for key in keys}
    asked = {"--table": options.table is not None, "--missing-columns": options.missing_columns}
    given = [name for name, there in asked.items() if there] + [f"--set {k}" for k in OF_STUDIES if k in named]
    if given:
        raise PredictionError(f"{', '.join(given)}: '{first.file}' takes single images, this is for models of studies")


def heatmaps_asked(text: str | None) -> tuple[str | None, int | None]:
    """(method, of how many rows) of --heatmaps; None: no heatmaps, and all rows."""
    if text is None:
        return None, None
    method, _, count = ("grad_cam", "", text) if text.lstrip("+-").isdecimal() else text.partition(":")
    if count and not (count.isdecimal() and int(count) > 0):
        raise PredictionError(f"--heatmaps {text}: the number of rows to be drawn is a whole number above 0")
    return method, int(count) if count else None


def drawer(text: str | None, folder: Path, ensemble: Ensemble, asked: AskedImages | Asked) -> Draw | None:
    """(row's number, row) → overlays of its findings, or of the likeliest class where there is none."""
    from data.asked_images import AskedImages
    from explain.prediction_heatmaps import DrawnStudy, PredictionHeatmaps

    method, _ = heatmaps_asked(text)
    if method is None:
        return None
    heatmaps = PredictionHeatmaps(folder, method, ensemble.members, ensemble.orders, asked.resize_modes)

    def draw(number: int, row: Row) -> tuple[str, ...]:
        assert row.probabilities is not None, "a predicted row"
        classes = row.findings or (int(row.probabilities.argmax()),)
        labels = [(ensemble.class_names[k], float(row.probabilities[k])) for k in classes]
        title = row.image if row.findings else f"{row.image}: no finding, this is the likeliest class"
        if isinstance(asked, AskedImages):
            displayed, more, inputs = asked.shown(number)
            maps = heatmaps.of_volume(inputs, classes) if more else heatmaps.of_image(displayed, inputs, classes)
            return heatmaps.draw(number, title, displayed, maps, labels, **more)
        return heatmaps.draw_study(number, title, [DrawnStudy(*one) for one in asked.shown(number)], classes, labels)

    return draw


def draw_heatmaps(text: str | None, draw: Draw | None, rows: Sequence[Row], journal: Journal) -> None:
    """Of all predicted rows, or of the first N with a finding, in their order; those there are stay."""
    from inference.results import rows_to_draw
    from utils.progress import Progress

    _, limit = heatmaps_asked(text)
    chosen = rows_to_draw(rows, limit) if draw is not None else []
    for number in {*range(len(rows))} - {*chosen}:
        rows[number].heatmaps = ()
    if draw is None or not chosen:
        return
    bar = Progress(len(chosen), "heatmaps", every=max(len(chosen) // 10, 1))
    for number in chosen:
        if not rows[number].heatmaps:
            try:
                rows[number].heatmaps = draw(number, rows[number])
            except DataError as error:
                logger.warning("no heatmap of '%s': %s", rows[number].image, error)
            journal.add([number])
        bar.advance(1)
    bar.close()


if __name__ == "__main__":
    sys.exit(main())
