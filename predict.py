#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Ask one or several trained models about images.

python predict.py image.png --checkpoint checkpoints/<run>
python predict.py images/ list.csv --checkpoint checkpoints/<run> --tta --heatmaps --output results
python predict.py images/ --checkpoint checkpoints/<run> checkpoints/<other run>     # an ensemble
python predict.py images/ --checkpoint checkpoints/<cross-validation>                 # the runs of all its folds
python predict.py list.csv --table clinical.csv --checkpoint checkpoints/<run of studies>
python predict.py --watch incoming/ --checkpoint checkpoints/<run> --output results --dicom-output sr
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import PredictionError
from configs.followed import OF_STUDIES, PREDICT
from utils.arguments import Parser, Values, checkpoint, one_of, whole_number
from utils.claim import claimed_alone
from utils.command_line import add_overrides, run_script
from utils.map_methods import HEATMAPS
from utils.runs.cross_validation import model_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from data.asked import AskedModel
    from inference.ensemble import Ensemble

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
        nargs="*",
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
    add("--no-identifiers", action="store_true", help="rows by number: no names of files, patients, examinations")
    add("--strict", action="store_true", help="refuse images of a modality or body part unlike the training images")
    add("--dicom-output", choices=("sr", "sc", "both"), help="also as DICOM: structured report, heatmaps, both")
    add("--watch", metavar="FOLDER", help="in place of INPUT: predict its files as they arrive, until SIGTERM")
    add(
        "--quiet",
        metavar="S",
        type=float,
        help="seconds without change after which a file (5) or a study (30) is whole",
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
    from hybridmednet.asking import (
        check_dicom,
        dicom_writer,
        draw_heatmaps,
        drawer,
        fill,
        open_asked,
        rows_of,
        settings_of,
        write_dicom,
    )
    from hybridmednet.watching import watch
    from inference.journal import Journal, resume, set_aside
    from inference.members import about_prediction
    from inference.results import make_folder, report, write_results
    from training.precision import choose_device
    from utils.process import prepare_process

    check_inputs(options)
    device = choose_device(options.device)
    prepare_process(device)
    ensemble, models = open_models(options, device)
    if options.watch is not None:
        return watch(options, ensemble, models)
    folder, settings = Path(options.output), settings_of(options, ensemble)
    asked = open_asked(options, models, options.input)
    rows, draw = rows_of(asked), drawer(options.heatmaps, folder, ensemble, asked)
    writer = dicom_writer(options.dicom_output, folder, ensemble)
    if writer is not None:
        check_dicom(asked)
    make_folder(options.output)
    taken = PredictionError(f"another process is writing into '{folder}': wait for it, or name another by --output")
    with claimed_alone(folder, taken):
        if options.resume:
            resume(folder, settings, rows, ensemble.class_names)
        else:
            set_aside(folder)
        with Journal(folder, settings, rows, ensemble, "csv" in options.format) as journal:
            fill(options, ensemble, asked, rows, journal.add)
            draw_heatmaps(options.heatmaps, draw, rows, journal)
            failed = write_dicom(writer, rows, asked, journal)
            about = about_prediction([] if options.no_identifiers else options.input, device, ensemble)
            paths = write_results(folder, options.format, rows, ensemble, about)
            journal.finish()
        return report(rows, ensemble, paths, failed)


def check_inputs(options: argparse.Namespace) -> None:
    """Raises PredictionError where options do not go together, whatever the models are."""
    if options.batch_size < 1 or (options.num_workers or 0) < 0:
        given = f"--batch-size {options.batch_size}", f"--num-workers {options.num_workers or 0}"
        raise PredictionError(f"{given[0]} must be at least 1, {given[1]} at least 0")
    if (options.watch is None) == (not options.input):
        what = "both INPUT and --watch" if options.input else "neither INPUT nor --watch"
        raise PredictionError(f"{what}: name what is to be predicted, or a folder whose files are as they arrive")
    if options.quiet is not None and (options.watch is None or not options.quiet > 0):
        raise PredictionError(f"--quiet {options.quiet:g}: seconds above 0, for --watch")
    if options.dicom_output and options.no_identifiers:
        raise PredictionError("--dicom-output is of a patient and a study: it cannot be had with --no-identifiers")
    if options.dicom_output in ("sc", "both") and options.heatmaps is None:
        options.heatmaps = "grad_cam"  # what secondary captures are of


def open_models(options: argparse.Namespace, device: torch.device) -> tuple[Ensemble, list[AskedModel]]:
    """(the Ensemble, what each member's file says of its data)."""
    from data.asked_images import input_numbers
    from hybridmednet.opened_model import OpenedModel
    from inference.ensemble import Ensemble
    from models.saved_model import load_models

    files = [file for name in options.checkpoint for file in model_files(Path(name))]
    opened = [OpenedModel.of(file, saved) for file, saved in zip(files, load_models(files, options.set, PREDICT))]
    models = [one.asked for one in opened]
    check_options(options, models)
    members = [one.member(number, device, options.tta) for one, number in zip(opened, input_numbers(models))]
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
        if options.strict:
            check_acquisition(model)
    if first.of_studies:
        if options.heatmaps and first.config.has_volumes():
            raise PredictionError("--heatmaps draws studies of images: `python -m explain` draws those of volumes")
        return
    named = {key for keys in Config.override_keys(options.set).values() for key in keys}
    asked = {"--table": options.table is not None, "--missing-columns": options.missing_columns}
    given = [name for name, there in asked.items() if there] + [f"--set {k}" for k in OF_STUDIES if k in named]
    if given:
        raise PredictionError(f"{', '.join(given)}: '{first.file}' takes single images, this is for models of studies")


def check_acquisition(model: AskedModel) -> None:
    """Raises PredictionError where nothing is known that --strict could compare; says where half of it is not."""
    known = (
        {} if model.profile is None else {"modality": model.profile.modalities, "body part": model.profile.body_parts}
    )
    lacking = [name for name in ("modality", "body part") if not known.get(name)]
    if len(lacking) == 2:
        raise PredictionError(
            f"--strict: '{model.file}' does not say of which modality or body part its training images were (they were "
            "no DICOM files, or it is older than that), so nothing could be refused: leave out --strict"
        )
    for name in lacking:
        logger.warning("--strict: '%s' does not say of which %s its training images were", model.file, name)


if __name__ == "__main__":
    sys.exit(main())
