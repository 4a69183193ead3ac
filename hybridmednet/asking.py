"""What is asked of models, from inputs to rows: what predict.py and a watched folder have in common."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DataError, PredictionError
from data.asked import Asked, AskedModel
from data.asked_images import AskedImages
from data.sources.unlabelled import AskedInputs
from explain.prediction_heatmaps import DrawnStudy, PredictionHeatmaps
from inference.dicom_output import AskedModels, DicomKind, DicomOutput
from inference.ensemble import Ensemble
from inference.journal import Journal
from inference.members import made_by
from inference.prediction import batches_to_do, predict_rows
from inference.results import Row, rows_to_draw
from utils.environment import describe_environment
from utils.progress import Progress
from utils.runs.json_lines import JsonObject

logger = logging.getLogger("predict")

AnyAsked = AskedImages | Asked
Draw = Callable[[int, Row, int], tuple[str, ...]]
REFUSED = "refused by --strict: "


def open_asked(options: argparse.Namespace, models: Sequence[AskedModel], inputs: AskedInputs) -> AnyAsked:
    """The images or studies of the inputs; says what is to be said of them."""
    asked: AnyAsked
    if models[0].of_studies:
        tables = options.table, options.missing_columns
        with nothing_quoted(options.no_identifiers):
            asked = Asked(models, inputs, *tables, options.set, options.no_identifiers)
    else:
        asked = AskedImages(models, inputs, options.set, options.no_identifiers)
    if options.no_identifiers and asked.notes:
        logger.warning("%d remarks on the inputs are not shown, as they may name files", len(asked.notes))
    for note in () if options.no_identifiers else asked.notes:
        logger.warning("%s", note)
    return asked


@contextmanager
def nothing_quoted(wanted: bool) -> Iterator[None]:
    """Where it is wanted pydicom is silent, which quotes values that it warns of; data workers inherit this."""
    level, log = logging.getLogger("pydicom").level, logging.getLogger("pydicom")
    with warnings.catch_warnings():
        if wanted:
            warnings.filterwarnings("ignore", module="pydicom")
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)


def rows_of(asked: AnyAsked) -> list[Row]:
    """A row an image or a study of the inputs, without its result."""
    if isinstance(asked, AskedImages):
        rows = [Row(*of) for of in zip(asked.names, asked.columns)]
    else:
        studies = asked.dataset_index.studies
        rows = [Row(one.name, asked.columns[n], images=asked.names(n)) for n, one in enumerate(studies)]
    has_identifiers = asked.has_identifiers
    for number, row in enumerate(rows):
        row.fingerprint, row.identifiers = asked.fingerprint(number), {} if has_identifiers else None
    return rows


def fill(
    options: argparse.Namespace,
    ensemble: Ensemble,
    asked: AnyAsked,
    rows: Sequence[Row],
    done: Callable[[Sequence[int]], None],
) -> None:
    """The rows that have no result yet, batch by batch. done: is handed those of a batch before the next is done."""
    batches = batches_to_do(rows, options.batch_size)
    numbers = [number for batch in batches for number in batch]
    for number in numbers:
        rows[number].clear()

    def finish(batch: Sequence[int]) -> None:
        for number in batch:
            _complete(rows[number], number, asked, options.strict)
        done(batch)

    device = ensemble.members[0].predictor.device.type
    workers = min(4, os.cpu_count() or 1, len(numbers) // 32) if options.num_workers is None else options.num_workers
    how = options.batch_size, workers, device == "cuda", numbers
    with nothing_quoted(options.no_identifiers):
        if isinstance(asked, AskedImages):
            predict_rows(asked.loader(*how), ensemble, rows, batches, asked.warnings, finish)
        else:
            predict_rows(asked.loader(*how), ensemble, rows, batches, asked.warnings, finish)


def _complete(row: Row, number: int, asked: AnyAsked, strict: bool) -> None:
    """What is said of a row that was read and computed: what is missing, whose it is, why it has no probabilities."""
    if not isinstance(asked, AskedImages):
        row.missing = asked.missing(number)
    if row.identifiers is not None:
        row.identifiers = asked.identifiers(number)
    if strict and row.probabilities is not None and (unlike := asked.other_acquisition(number)):
        row.clear()
        row.error = f"{REFUSED}{'; '.join(unlike)}"
    if row.probabilities is None and not row.error:
        row.error = asked.failure(number)


def settings_of(options: argparse.Namespace, ensemble: Ensemble) -> JsonObject:
    """What the results depend on beside the files, for --resume."""
    method, _ = heatmaps_asked(options.heatmaps)
    return made_by(
        ensemble,
        options.batch_size,
        {
            "--set": sorted(options.set),
            "--heatmaps": method,
            "--strict": options.strict,
            "--no-identifiers": options.no_identifiers,
            "--dicom-output": options.dicom_output,
            "--watch": options.watch is not None,
        },
    )


def heatmaps_asked(text: str | None) -> tuple[str | None, int | None]:
    """(method, of how many rows) of --heatmaps; None: no heatmaps, and all rows."""
    if text is None:
        return None, None
    method, _, count = ("grad_cam", "", text) if text.lstrip("+-").isdecimal() else text.partition(":")
    if count and not (count.isdecimal() and int(count) > 0):
        raise PredictionError(f"--heatmaps {text}: the number of rows to be drawn is a whole number above 0")
    return method, int(count) if count else None


def drawer(text: str | None, folder: Path, ensemble: Ensemble, asked: AnyAsked) -> Draw | None:
    """(row's number, row, number in the names of files) → overlays of its findings, or of the likeliest class where
    there is none.
    """
    method, _ = heatmaps_asked(text)
    if method is None:
        return None
    heatmaps = PredictionHeatmaps(folder, method, ensemble.members, ensemble.orders, asked.resize_modes)

    def draw(number: int, row: Row, place: int) -> tuple[str, ...]:
        assert row.probabilities is not None, "a predicted row"
        classes = row.findings or (int(row.probabilities.argmax()),)
        labels = [(ensemble.class_names[k], float(row.probabilities[k])) for k in classes]
        title = row.image if row.findings else f"{row.image}: no finding, this is the likeliest class"
        if isinstance(asked, AskedImages):
            displayed, more, inputs = asked.shown(number)
            maps = heatmaps.of_volume(inputs, classes) if more else heatmaps.of_image(displayed, inputs, classes)
            return heatmaps.draw(place, title, displayed, maps, labels, **more)
        return heatmaps.draw_study(place, title, [DrawnStudy(*one) for one in asked.shown(number)], classes, labels)

    return draw


def draw_heatmaps(text: str | None, draw: Draw | None, rows: Sequence[Row], journal: Journal) -> None:
    """Of all predicted rows, or of the first N with a finding, in their order; those there are stay."""
    _, limit = heatmaps_asked(text)
    chosen = rows_to_draw(rows, limit) if draw is not None else []
    for number in {*range(len(rows))} - {*chosen}:
        rows[number].heatmaps = ()
    if draw is None or not chosen:
        return
    bar = Progress(len(chosen), "heatmaps", every=max(len(chosen) // 10, 1))
    for number in chosen:
        if not rows[number].heatmaps:
            draw_row(draw, number, rows[number], number)
            journal.add([number])
        bar.advance(1)
    bar.close()


def draw_row(draw: Draw, number: int, row: Row, place: int) -> None:
    """The heatmaps of a row; says why there are none where its file cannot be read any more."""
    try:
        row.heatmaps = draw(number, row, place)
    except DataError as error:
        logger.warning("no heatmap of '%s': %s", row.image, error)


# ---- DICOM


def dicom_writer(kind: str | None, folder: Path, ensemble: Ensemble) -> DicomOutput | None:
    """What writes --dicom-output; None where it is not asked for. Raises PredictionError without highdicom."""
    if kind is None:
        return None
    kinds: tuple[DicomKind, ...] = ("sr", "sc") if kind == "both" else ("sr",) if kind == "sr" else ("sc",)
    digests = [str(member.facts.get("sha256")) for member in ensemble.members]
    version = str(describe_environment("", "")["git_commit"] or "without a version")
    models = AskedModels(ensemble.class_names, digests, ensemble.threshold_source, version)
    return DicomOutput(folder, kinds, models)


def check_dicom(asked: AnyAsked) -> None:
    """Raises PredictionError where an input is no DICOM file, and so belongs to no study."""
    others = asked.not_dicom()
    if others:
        raise PredictionError(
            f"--dicom-output: {len(others)} of the inputs are no DICOM files ('{others[0]}'), so there is no patient "
            "and no study that a result could be of: ask about them without it"
        )


def write_dicom_row(output: DicomOutput, number: int, row: Row, asked: AnyAsked) -> bool:
    """The DICOM objects of a row; False, said and noted in its warnings, where they cannot be made."""
    try:
        row.dicom = output.write(row, asked.headers(number))
    except PredictionError as error:
        logger.warning("%s", error)
        row.warnings = (*row.warnings, str(error))
        return False
    return True


def write_dicom(output: DicomOutput | None, rows: Sequence[Row], asked: AnyAsked, journal: Journal) -> int:
    """Of all predicted rows; how many of them have none."""
    failed = 0
    for number, row in enumerate(rows) if output is not None else ():
        if row.probabilities is not None and output is not None:
            failed += not write_dicom_row(output, number, row, asked)
            journal.add([number])
    return failed
