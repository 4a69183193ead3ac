"""The results as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.operating_points import MOST_PROBABLE
from evaluation.records import ClassResults, Comparison, Results, WithheldResults
from utils.intervals import IntervalRecord
from utils.metrics import NEVER_SEEN
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

    results: what `evaluate_scores` gives. The means say how many classes they are over. Below the table stands what is
    called, and which classes the training never saw.
    """
    classes, mean = results["classes"], results["mean"]
    rows: list[tuple[str, ...]] = [HEADING]
    rows += [_cells(_marked(row), f"{row['positives']:,} / {row['negatives']:,}", row["figures"]) for row in classes]
    noun = "class" if len(classes) == 1 else "classes"
    rows.append(_cells(f"mean of {mean['defined_classes']} of {len(classes)} {noun}", "", mean["figures"]))
    return "\n".join([*_lines(rows), *_called(results), *_never_seen(results)])


def format_comparison(comparison: Comparison) -> str:
    """Class, AUROC of both models, the difference with its interval, p by DeLong's test and after Holm."""
    rows: list[tuple[str, ...]] = [("class", "difference of AUROC", "AUROC", "other's", "p, DeLong", "p, Holm")]
    for one in comparison["classes"]:
        figures = (number(one["auroc"]), number(one["other_auroc"]), p_value(one["p"]), p_value(one["p_holm"]))
        rows.append((printable(one["name"]), _signed(one["difference"]), *figures))
    mean = comparison["mean"]
    noun = "class" if mean["defined_classes"] == 1 else "classes"
    means = (number(mean["auroc"]), number(mean["other_auroc"]), "", "")
    rows.append((f"mean of {mean['defined_classes']} {noun}", _signed(mean["difference"]), *means))
    return "\n".join([f"compared with {printable(comparison['other'])}; above 0 this model is better", *_lines(rows)])


def format_withheld(withheld: Sequence[WithheldResults]) -> str:
    """Input, what it brings to mean AUROC with the interval, AUROC with it and without it, studies that have it."""
    rows: list[tuple[str, ...]] = [("input", "it brings, AUROC", "studies that have it", "with it", "without it")]
    for one in withheld:
        mean = one["comparison"]["mean"] if one["comparison"] else None
        figures = (number(mean["auroc"]), number(mean["other_auroc"])) if mean else (UNDEFINED, UNDEFINED)
        counts = f"{one['studies_with_it']:,} of {one['studies']:,}"
        rows.append((printable(one["input"]), _signed(mean["difference"]) if mean else UNDEFINED, counts, *figures))
    lines = _lines(rows)
    return "\n".join(["what each input brings; above 0 the model is better with it", *lines[:-2], *lines[-1:]])


def p_value(p: float | None) -> str:
    """A p-value is never printed as 0, however small it is."""
    return "< 0.0001" if p is not None and p < 0.0001 else number(p, 4)


def _signed(figure: IntervalRecord) -> str:
    low, high = figure["low"], figure["high"]
    ends = "" if low is None or high is None else f" [{low:+.3f} to {high:+.3f}]"
    return (UNDEFINED if figure["value"] is None else f"{figure['value']:+.3f}") + ends


def _marked(row: ClassResults) -> str:
    return row["name"] if row["positive_in_training"] else f"{row['name']} {NEVER_SEEN}"


def _called(results: Results) -> list[str]:
    decision = results["decision"]
    if decision["rule"] == "most_probable_class":
        return [f"called: {MOST_PROBABLE} of each image; sensitivity and specificity are of that"]
    thresholds = f"thresholds: {results['threshold_rule']}" + (
        f", chosen on {results['threshold_split']}" if results["threshold_split"] else ""
    )
    left = [printable(row["name"]) for row in results["classes"] if not row["threshold_chosen"]]
    if results["threshold_split"] and left:
        thresholds += f"; 0.5, not chosen, for {', '.join(left)}"
    if decision["positive_class"] is None:
        return [thresholds]
    ((positive, threshold),) = decision["thresholds"].items()
    name, other = printable(positive), printable(next(one for one in decision["classes"] if one != positive))
    return [thresholds, f"called: {name} where its probability is at least {threshold:.4f}, else {other}"]


def _never_seen(results: Results) -> list[str]:
    names = [printable(row["name"]) for row in results["classes"] if not row["positive_in_training"]]
    return [f"{NEVER_SEEN} no positive image in training, so not in the means: {', '.join(names)}"] if names else []


def _lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A heading, the rows and a last row between rules; the first and the third column lean to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2])])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[3:], widths[3:]))
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return [lines[0].rstrip(), rule, *lines[1:-1], rule, lines[-1]]
