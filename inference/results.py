"""What a prediction leaves behind: predictions.csv for tables, predictions.json with all that belongs to it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from configs.errors import PredictionError
from inference.ensemble import Ensemble
from utils.atomic_file import write_atomically
from utils.command_line import show
from utils.csv_cells import csv_text, probability_text
from utils.identifiers import IDENTIFIERS
from utils.metrics import NEVER_SEEN
from utils.text import printable

logger = logging.getLogger(__name__)

SOME_FAILED = 3
_ONE = {"images": "image", "studies": "study"}


@dataclass
class Row:
    """The result of one image, or of a study of that name. columns: what a table said of it. probabilities: [K], None
    with an error.

    findings: the classes that are called. heatmaps: files, relative to the results' folder. images: what those of a
    study are called; None: the row is of an image. missing: columns and views that the study lacks. fingerprint: of its
    files and of what is known of them, by which --resume knows them again. identifiers: of utils.identifiers, those its
    files have; None where no file of any row has one, or they are left out. dicom: files, see dicom_output.py.
    """

    image: str
    columns: Mapping[str, str] = field(default_factory=dict)
    probabilities: np.ndarray | None = None
    findings: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    heatmaps: tuple[str, ...] = ()
    images: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    fingerprint: str = ""
    identifiers: Mapping[str, str] | None = None
    dicom: tuple[str, ...] = ()

    def clear(self) -> None:
        """As before it was predicted."""
        self.probabilities, self.findings, self.warnings, self.error = None, (), (), ""
        self.heatmaps, self.dicom = (), ()

    def fill(self, probabilities: np.ndarray, warnings: Sequence[str], ensemble: Ensemble) -> bool:
        """Take over what the models say; whether that is of use: NaN is an error of the row."""
        if not np.isfinite(probabilities).all():
            self.error = "a model gives NaN for it"
            return False
        self.probabilities, self.warnings = probabilities, tuple(warnings)
        self.findings = ensemble.decision.findings(probabilities)
        return True


def make_folder(name: str) -> Path:
    """The results' folder, made before the work so that it is not done in vain. Raises PredictionError."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PredictionError(f"cannot make the folder '{name}': {error.strerror}; name another by --output") from None
    return Path(name)


def report(rows: Sequence[Row], ensemble: Ensemble, paths: Sequence[Path], failed: int = 0) -> int:
    """Print the results, for a single image its probabilities; the exit code, see `exit_code`. failed: rows whose DICOM
    output could not be made.
    """
    counts, noun = count(rows), _noun(rows)
    number = f"1 {_ONE[noun]}" if len(rows) == 1 else f"{len(rows)} {noun}"
    if len(rows) == 1 and counts["predicted"]:
        show(image_table(rows[0], ensemble))
        for warning in rows[0].warnings:
            show(f"unlike the training images: {warning}")
    if failed:
        logger.warning("%d of %d %s have no DICOM output: see the column warnings", failed, len(rows), noun)
    if counts["warnings"]:
        logger.warning(
            "%d of %d %s are unlike the training images: see the column warnings",
            counts["warnings"],
            counts["predicted"],
            noun,
        )
    show(
        f"{number}: {counts['predicted']} predicted, {counts['errors']} with an error, "
        f"{counts['warnings']} with warnings"
    )
    show(f"thresholds: {printable(ensemble.threshold_source)}")
    if ensemble.not_learnt:
        names = ", ".join(map(printable, ensemble.not_learnt))
        show(f"{NEVER_SEEN} no positive image in training, so never learnt: {names}")
    show(f"results: {', '.join(map(printable, paths))}")
    return exit_code(counts["predicted"], counts["errors"] + failed)


def rows_to_draw(rows: Sequence[Row], limit: int | None) -> list[int]:
    """Those of which heatmaps are drawn: all that were predicted, or the first of these with a finding."""
    predicted = [number for number, row in enumerate(rows) if row.probabilities is not None]
    if limit is None:
        return predicted
    found = [number for number in predicted if rows[number].findings]
    chosen = found[:limit]
    logger.info("heatmaps of the first %d of %d rows with a finding, as results are ordered", len(chosen), len(found))
    return chosen


def exit_code(predicted: int, errors: int) -> int:
    """0: all were predicted; 3: some were not; 2: none was."""
    return 2 if not predicted else SOME_FAILED if errors else 0


def write_results(
    folder: Path, formats: Sequence[str], rows: Sequence[Row], ensemble: Ensemble, about: Mapping[str, object]
) -> list[Path]:
    """Write predictions.csv and predictions.json, each whole or not at all; their paths. Raises PredictionError."""
    makers = {"csv": lambda: results_csv(rows, ensemble), "json": lambda: results_json(rows, ensemble, about)}
    paths = [folder / f"predictions.{name}" for name in formats]
    try:
        for name, path in zip(formats, paths):
            write_atomically(path, makers[name]().encode("utf-8", "backslashreplace"))  # names that are no UTF-8
    except OSError as error:
        raise cannot_write(folder, error) from None
    return paths


def cannot_write(folder: Path, error: OSError) -> PredictionError:
    """Of a place for results."""
    return PredictionError(f"cannot write results into '{folder}': {error.strerror}; see --output")


class ResultTable:
    """predictions.csv of some rows: `header`, and `cells` of one.

    Columns: image, or study, images and missing ('a|b'); identifiers; those of the input tables; 'probability <class>'
    for each class; findings ('A|B'), warnings ('a; b'), error. Probabilities have nine digits, see `probability_text`.
    A column of an input table that is called like one of these is 'input <name>'.
    """

    def __init__(self, rows: Sequence[Row], ensemble: Ensemble) -> None:
        self.names = ensemble.class_names
        self.columns = list(dict.fromkeys(name for row in rows for name in row.columns))
        own = [f"probability {name}" for name in self.names]
        first, last = ["image"], ["findings", "warnings", "error"]
        if _noun(rows) == "studies":
            first = ["study", "images", "missing"]
        self.identifiers = IDENTIFIERS if any(row.identifiers is not None for row in rows) else ()
        first += self.identifiers
        kept = [f"input {name}" if name in (*first, *own, *last) else name for name in self.columns]
        self.header = [*first, *kept, *own, *last]
        self.limits = [[] if math.isnan(limit) else [limit] for limit in ensemble.decision.limits]

    def cells(self, row: Row) -> list[str]:
        """In the order of the header."""
        given = [row.columns.get(name, "") for name in self.columns]
        figures = [""] * len(self.names)
        if row.probabilities is not None:
            figures = list(map(probability_text, row.probabilities.tolist(), self.limits))
        findings = "|".join(self.names[k] for k in row.findings)
        begin = [row.image] if row.images is None else [row.image, "|".join(row.images), "|".join(row.missing)]
        begin += [(row.identifiers or {}).get(name, "") for name in self.identifiers]
        return [*begin, *given, *figures, findings, "; ".join(row.warnings), row.error]


def results_csv(rows: Sequence[Row], ensemble: Ensemble) -> str:
    """The table as text, the same for the same input: no dates and no paths of this machine but those in errors."""
    table = ResultTable(rows, ensemble)
    return csv_text([table.header, *map(table.cells, rows)])


def results_json(rows: Sequence[Row], ensemble: Ensemble, about: Mapping[str, object]) -> str:
    """The same with thresholds, where they come from, the models, and what `about` says of the program and the time."""
    content = {
        **about,
        "models": [{"file": member.name, **member.facts} for member in ensemble.members],
        "threshold_source": ensemble.threshold_source,
        "thresholds": ensemble.decision.as_dict()["thresholds"] or None,
        "decision": ensemble.decision.as_dict(),
        "no_positive_in_training": list(ensemble.not_learnt),
        "counts": count(rows),
        _noun(rows): [as_dict(row, ensemble.class_names) for row in rows],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def count(rows: Sequence[Row]) -> dict[str, int]:
    """Of images or studies: all, those predicted, those with an error, those with a warning."""
    errors, warned = (
        sum(bool(text) for text in texts) for texts in ([r.error for r in rows], [r.warnings for r in rows])
    )
    return {_noun(rows): len(rows), "predicted": len(rows) - errors, "errors": errors, "warnings": warned}


def _noun(rows: Sequence[Row]) -> str:
    return "studies" if any(row.images is not None for row in rows) else "images"


def image_table(row: Row, ensemble: Ensemble) -> str:
    """One image's probabilities for a terminal, the likeliest first."""
    assert row.probabilities is not None
    limits = ensemble.decision.limits
    marked = [f"{name} {NEVER_SEEN}" if name in ensemble.not_learnt else name for name in ensemble.class_names]
    names = list(map(printable, marked))
    width = max(map(len, [*names, "class"]))
    without = all(map(math.isnan, limits))
    lines = [f"{'class':{width}}  probability{'' if without else '  threshold'}"]
    for k in np.argsort(-row.probabilities, kind="stable").tolist():
        limit = "" if without else f"  {'–':>9}" if math.isnan(limits[k]) else f"  {limits[k]:9.3f}"
        mark = "  finding" if k in row.findings else ""
        lines.append(f"{names[k]:{width}}  {row.probabilities[k]:11.3f}{limit}{mark}")
    return "\n".join(lines)


class Outcome(TypedDict):
    """What predictions.json says of an image or a study, after `image`, or after `study`, `images` and `missing`;
    probabilities (by class) and findings are null where there is an error.
    """

    columns: dict[str, str]
    probabilities: dict[str, float] | None
    findings: list[str] | None
    warnings: list[str]
    error: str | None
    heatmaps: list[str]
    identifiers: NotRequired[dict[str, str]]
    dicom: NotRequired[list[str]]


def as_dict(row: Row, names: Sequence[str]) -> dict[str, object]:
    """A row of predictions.json, as plain values. names: of the classes."""
    known = row.probabilities is not None
    outcome: Outcome = {
        "columns": dict(row.columns),
        "probabilities": dict(zip(names, row.probabilities.tolist())) if row.probabilities is not None else None,
        "findings": [names[k] for k in row.findings] if known else None,
        "warnings": list(row.warnings),
        "error": row.error or None,
        "heatmaps": list(row.heatmaps),
    }
    if row.identifiers is not None:
        outcome["identifiers"] = dict(row.identifiers)
    if row.dicom:
        outcome["dicom"] = list(row.dicom)
    if row.images is None:
        return {"image": row.image, **outcome}
    return {"study": row.image, "images": list(row.images), "missing": list(row.missing), **outcome}
