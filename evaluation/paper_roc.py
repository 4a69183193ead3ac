"""One ROC for a paper: several classes of a model, or several models' class, in a column's width.

What is drawn is what evaluations left behind: curves.json and, for the intervals, metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from configs.errors import EvaluationError
from evaluation.curves import ClassCurves
from evaluation.records import Results
from utils.figures import BLUE, GREEN, GREY, ORANGE, new_figure, tidy, unit_square
from utils.fonts import display_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FigureStyle = Literal["screen", "paper"]
Width = Literal["single", "double"]
STYLES, WIDTHS = get_args(FigureStyle), get_args(Width)
PAPER_DPI = 300
# Inches of a column, and of the page's width: 89 and 183 mm, as Nature has them; others differ by millimetres.
_INCHES = {"single": 89 / 25.4, "double": 183 / 25.4}
_POINTS = 7  # of letters, as journals ask for 5 to 8
MOST_CURVES = 8
# Okabe & Ito's palette; the kind of line tells curves apart in print without colour.
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
_LINES = ("-", "--", "-.", ":")
_LETTERS = 28


@dataclass(frozen=True)
class LabelledCurve:
    """A curve from (0, 0) to (1, 1). auroc, low, high: with its interval, None where there is none."""

    name: str
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    auroc: float
    low: float | None
    high: float | None

    def label(self, name: str) -> str:
        """'name 0.812 (0.764–0.855)'."""
        interval = "" if self.low is None or self.high is None else f" ({self.low:.3f}–{self.high:.3f})"
        return f"{name} {self.auroc:.3f}{interval}"


def class_curves(
    curves: Sequence[ClassCurves], results: Results, names: Sequence[str] | None = None, titles: Mapping[str, str] = {}
) -> list[LabelledCurve]:
    """The classes of one model, in their order; without names those with the most positives, of which AUROC is defined.

    titles: class → what figures call it. Raises EvaluationError for a class that is not there or has no curve.
    """
    by_name = {one["name"]: one for one in curves}
    figures = {one["name"]: one["figures"]["auroc"] for one in results["classes"]}
    defined = [name for name in by_name if figures[name]["value"] is not None]
    for name in names or ():
        if name not in defined:
            why = "has no curve: it lacks positives or negatives" if name in by_name else "is none of its classes"
            raise EvaluationError(f"--classes: {name!r} {why}; there are {', '.join(defined)}")
    if names is None:
        most = sorted(defined, key=lambda name: -by_name[name]["positives"])[:MOST_CURVES]
        names = [name for name in by_name if name in most]
    found = []
    for name in names:
        roc, auroc = by_name[name]["roc"], figures[name]
        assert auroc["value"] is not None, "defined"
        rates = complete(roc["false_positive_rate"]), complete(roc["true_positive_rate"])
        found.append(LabelledCurve(titles.get(name, name), *rates, auroc["value"], auroc["low"], auroc["high"]))
    return found


def complete(values: Sequence[float | None]) -> tuple[float, ...]:
    """A curve's numbers. Raises EvaluationError for a gap, which no file of ours has."""
    if None in values:
        raise EvaluationError("curves.json has a curve with a gap")
    return tuple(value for value in values if value is not None)


def read_evaluation(folder: Path) -> tuple[list[ClassCurves], Results]:
    """curves.json and metrics.json of a folder that evaluate.py wrote, or of a run's evaluation-test or -val.

    Raises EvaluationError where there is none, or it cannot be read.
    """
    inside = [folder, folder / "evaluation-test", folder / "evaluation-val"]
    place = next((one for one in inside if (one / "curves.json").is_file()), None)
    if place is None:
        raise EvaluationError(f"there is no curves.json in '{folder}' or its evaluation-test: run evaluate.py first")
    try:
        # Any: files may be anyone's; what is not as expected is an error below.
        curves: Any = json.loads((place / "curves.json").read_text(encoding="utf-8"))
        results: Any = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        for one in curves["classes"]:
            _ = one["name"], one["positives"], one["roc"]["false_positive_rate"], one["roc"]["true_positive_rate"]
        for one in results["classes"]:
            _ = one["name"], one["figures"]["auroc"]["value"], one["figures"]["auroc"]["low"]
        _ = results["split"], results["images"], results["interval"]["level"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"the evaluation in '{place}' cannot be read: {type(error).__name__} {error}") from None
    return curves["classes"], results


def paper_roc_figure(curves: Sequence[LabelledCurve], level: float, width: Width = "single") -> Figure:
    """All curves in one square, the legend with AUROC and interval below it, or beside it in the page's width.

    level: of the intervals, 0.95. Raises EvaluationError for none, and for more than can be told apart.
    """
    if not 1 <= len(curves) <= MOST_CURVES:
        raise EvaluationError(f"{len(curves)} curves in one ROC: 1 to {MOST_CURVES} can be told apart")
    inches, beside = _INCHES[width], width == "double"
    figure = new_figure(inches, inches / 2 if beside else inches + 0.17 * (len(curves) + 1))
    axes = figure.subplots()
    unit_square(axes)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, linestyle=(0, (2, 2)))
    for n, (curve, name) in enumerate(zip(curves, display_names([one.name for one in curves], _LETTERS))):
        (line,) = axes.plot(curve.false_positive_rate, curve.true_positive_rate, linewidth=1.1, label=curve.label(name))
        line.set(color=_COLOURS[n], linestyle=_LINES[n % len(_LINES)])
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=_POINTS)
    axes.set_xlabel("1 − specificity", fontsize=_POINTS)
    axes.set_ylabel("sensitivity", fontsize=_POINTS)
    tidy(axes)
    legend = figure.legend(
        loc="outside right center" if beside else "outside lower center",
        title=f"AUROC ({level:.0%} interval)",
        fontsize=_POINTS,
        frameon=False,
        handlelength=2.6,
    )
    legend.get_title().set_fontsize(_POINTS)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
