"""The results as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.records import Results
from utils.intervals import IntervalRecord
from utils.text import printable

HEADING = ("class", "positives / negatives", "AUROC", "AP", "sensitivity", "specificity")
DISPLAYED = ("auroc", "average_precision", "sensitivity", "specificity")
UNDEFINED = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A figure, '–' where it is undefined."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def with_interval(figure: IntervalRecord, digits: int = 3) -> str:
    """'0.812 [0.790–0.833]', '0.812' where the interval is undefined, '–' where all is."""
    low, high = figure["low"], figure["high"]
    ends = "" if low is None or high is None else f" [{low:.{digits}f}–{high:.{digits}f}]"
    return number(figure["value"], digits) + ends


def _cells(name: str, counts: str, figures: Mapping[str, IntervalRecord]) -> tuple[str, ...]:
    displayed = [with_interval(figures[DISPLAYED[0]]), *(number(figures[key]["value"]) for key in DISPLAYED[1:])]
    return (printable(name), counts, *displayed)


def format_results_table(results: Results) -> str:
    """Class, positives / negatives, AUROC with its interval, AP, sensitivity, specificity; then the means.

    results: what `evaluate_scores` gives. The means say how many classes they are over.
    """
    classes, mean = results["classes"], results["mean"]
    rows: list[tuple[str, ...]] = [HEADING]
    rows += [_cells(row["name"], f"{row['positives']:,} / {row['negatives']:,}", row["figures"]) for row in classes]
    noun = "class" if len(classes) == 1 else "classes"
    rows.append(_cells(f"mean of {mean['defined_classes']} of {len(classes)} {noun}", "", mean["figures"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADING))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2])])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[3:], widths[3:]))
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0].rstrip(), rule, *lines[1:-1], rule, lines[-1]])
