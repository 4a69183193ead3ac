"""What an evaluation leaves behind: report.html, metrics.json, predictions.csv and the images, each whole."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from configs.errors import EvaluationError
from evaluation.curves import ClassCurves, curves_of
from evaluation.forest_plots import classes_figure, subgroups_figure
from evaluation.paper_roc import PAPER_DPI, FigureStyle, class_curves, paper_roc_figure
from evaluation.plots import confusion_figure, precision_recall_figure, roc_figure
from evaluation.predictions_table import predictions_csv
from evaluation.probability_plots import calibration_figure, histogram_figure
from evaluation.records import Results
from evaluation.report import About, report_html
from evaluation.scored_split import ScoredSplit
from evaluation.titles import titled_results, titled_split
from utils.atomic_file import write_atomically
from utils.figures import VectorFormat, encoded, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("evaluate")

Names = tuple[Sequence[str], Sequence[str], Sequence[str]]

IMAGES = ("roc", "pr", "calibration", "confusion")


def make_folder(asked: str | None, beside: Path, split: str, other_data: str | None) -> Path:
    """Make the folder before the work begins, so that it is not done in vain. Raises EvaluationError.

    asked: its path; None: evaluation-<split> in `beside`, with the name of other_data, a path, where that is not None,
    so that an evaluation on other data does not replace that on the run's own.
    """
    name = f"evaluation-{split}" + (f"-{Path(other_data).resolve().stem}" if other_data else "")
    path = Path(asked) if asked else beside / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"cannot make the folder '{path}': {error.strerror}; name another by --output") from None
    return path


def draw_figures(
    scored: ScoredSplit, thresholds: Sequence[float], results: Results, before: np.ndarray | None
) -> dict[str, Figure]:
    """The report's images by name. before: uncalibrated probabilities [N, K], where there is a calibration."""
    figures = {
        "classes": classes_figure(results),
        "roc": roc_figure(scored, thresholds),
        "pr": precision_recall_figure(scored, thresholds),
        "calibration": calibration_figure(scored, before),
        "confusion": confusion_figure(scored, thresholds),
        "histograms": histogram_figure(scored, thresholds),
    }
    level = results["interval"]["level"]
    return figures | {f"subgroup {n}": subgroups_figure(one, level) for n, one in enumerate(results["subgroups"])}


def write_evaluation(
    path: Path,
    scored: ScoredSplit,
    before: np.ndarray | None,
    results: Results,
    about: About,
    names: Names,
    findings: Sequence[str],
    vector: VectorFormat | None = None,
    style: FigureStyle = "screen",
) -> None:
    """Write all files into a folder that is there; those of an earlier evaluation are replaced one by one.

    scored: N images with their probabilities. before: uncalibrated ones of the same classes [N, K], where those are
    calibrated. results: of these, by `evaluate_scores`; metrics.json is that, with what `about` says. names: image,
    patient and split of each image; findings: the classes that are called, N texts each. vector: every figure as such
    a file too. style: 'paper' for roc_paper as well, all classes in one, as PNG, SVG and PDF. Raises EvaluationError.
    """
    metadata = {"evaluated": dict(about.facts), "warnings": list(about.warnings), "notes": list(about.notes)}
    thresholds = [math.nan if one["threshold"] is None else one["threshold"] for one in results["classes"]]
    shown, titled = titled_split(scored, about.titles), titled_results(results, about.titles)
    drawn = draw_figures(shown, thresholds, titled, before)
    figures = {name: png(one) for name, one in drawn.items()}
    files = {f"{name}.png": figures[name] for name in IMAGES}
    if vector is not None:
        files |= {f"{name.replace(' ', '_')}.{vector}": encoded(one, vector) for name, one in drawn.items()}
    curves = curves_of(scored, thresholds, before)
    if style == "paper":
        files |= paper_files(curves["classes"], results, about.titles)
    texts = {
        "metrics.json": _json({**metadata, **results}, 2),
        "curves.json": _json(curves, None),
        "predictions.csv": predictions_csv(scored, *names, findings, thresholds),
        "report.html": report_html(titled, about, figures),
    }
    try:
        for file, content in (files | {file: text.encode() for file, text in texts.items()}).items():
            write_atomically(path / file, content)
    except OSError as error:
        raise EvaluationError(f"cannot write into '{path}': {error.strerror or error}") from None


def paper_files(curves: Sequence[ClassCurves], results: Results, titles: Mapping[str, str]) -> dict[str, bytes]:
    """roc_paper.png, .svg and .pdf; none, and a log line says why, where no class has a curve."""
    drawn = class_curves(curves, results, titles=titles)
    if not drawn:
        logger.warning("--figure-style paper: no class has both positives and negatives, so there is no ROC")
        return {}
    figure = paper_roc_figure(drawn, results["interval"]["level"])
    return {f"roc_paper.{kind}": encoded(figure, kind, PAPER_DPI) for kind in ("png", *get_args(VectorFormat))}


def _json(content: Mapping[str, object], indent: int | None) -> str:
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
