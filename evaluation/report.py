"""report.html: one file with its images inside, which opens nothing else and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.operating_points import NOT_CHOSEN
from evaluation.records import ClassResults, Results
from evaluation.reliability import BINS
from evaluation.results_table import UNDEFINED, number, p_value
from utils.metrics import NEVER_SEEN
from utils.text import printable_lines

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Table:
    """A table in words. heading: the names of its columns, of which each row has a text; the first is the row's."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""


@dataclass(frozen=True)
class About:
    """What was evaluated, in words.

    title: the page's. facts: name → text, as listed. warnings: what a reader must know before any figure.
    notes: further sentences. titles: class → what it is called in the report and its figures. tables: further ones,
    shown before the figures of classes. All text is escaped and shown as it is.
    """

    title: str
    facts: Mapping[str, str]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()


def report_html(results: Results, about: About, images: Mapping[str, bytes]) -> str:
    """The page.

    results: what `evaluate_scores` gives, with 'comparison' where there is one. images: PNG files by name: 'classes',
    'roc', 'pr', 'calibration', 'confusion', 'histograms' and 'subgroup 0', …, each optional.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_finalized)
    environment.filters |= {"number": number, "count": _count, "p_value": p_value}
    return environment.get_template(TEMPLATE).render(
        results=results,
        title=about.title,
        facts=about.facts,
        tables=about.tables,
        warnings=about.warnings,
        notes=[*about.notes, *notes_of(results)],
        level=f"{results['interval']['level']:.0%}",
        threshold_text=threshold_text(results),
        calibration_text=calibration_text(results),
        never_seen=NEVER_SEEN,
        never=[one["name"] for one in results["classes"] if not one["positive_in_training"]],
        counts={one["name"]: (one["positives"], one["negatives"]) for one in results["classes"]},
        images={name: base64.b64encode(content).decode() for name, content in images.items()},
    )


def _finalized(value: object) -> object:
    """Every value that the template shows, before it is escaped for HTML; what the template made itself as it is."""
    return printable_lines(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def threshold_text(results: Results) -> str:
    """Where the thresholds come from."""
    rule, split, decision = results["threshold_rule"], results["threshold_split"], results["decision"]
    if decision["rule"] == "most_probable_class":
        return (
            "Exactly one class is called in each image, the most probable one: no thresholds. The figures are of each "
            "class against the rest."
        )
    called = "A probability at or above its threshold is a finding."
    if decision["positive_class"] is not None:
        (other,) = (name for name in decision["classes"] if name != decision["positive_class"])
        called = f"{decision['positive_class']} is called at or above its threshold, else {other}."
    if rule == NOT_CHOSEN:
        return (
            f"Thresholds are 0.5, not chosen: there was no validation split, and the checkpoint brings none. {called}"
        )
    text = f"Thresholds were chosen on the {split} split by the rule '{rule}'."
    left = [one["name"] for one in results["classes"] if not one["threshold_chosen"]]
    if left:
        text += f" 0.5, not chosen, as that split has too few positives or negatives: {', '.join(left)}."
    if split == results["split"]:
        text += " These are the same images, so that the figures below are flattered."
    return f"{text} {called}"


def calibration_text(results: Results) -> str:
    """Whether probabilities are calibrated, how and which classes are not."""
    calibration = results["calibration"]
    if calibration is None:
        return "Probabilities are the network's own: no calibration."
    text = f"Probabilities are calibrated: {calibration['method']} scaling, fitted on the validation split."
    names = [one["name"] for one in results["classes"]]
    left = [f"{name} ({reason})" for name, reason in zip(names, calibration["reasons"]) if reason]
    return text + (f" Left as they were: {'; '.join(left)}." if left else "")


def notes_of(results: Results) -> list[str]:
    """How the figures were made, and which are undefined."""
    interval = results["interval"]
    notes = [
        f"Intervals are for {interval['level']:.0%} and know that a patient's images resemble each other. AUROC: a "
        "score interval (Newcombe 2006) with the variance of Obuchowski 1997. Sensitivity, specificity, PPV, NPV, F1 "
        "and accuracy: mid-P with an effective number of images (Rao & Scott 1992); average precision and Brier alike. "
        "Means, gaps and differences: made of these (Zou & Donner 2008), with the correlation in "
        f"{interval['draws']:,} bootstrap draws of patients, seed {interval['seed']}. Thresholds and calibration are "
        "held fixed.",
        "AUROC counts equal scores one half. Average precision is the step-wise sum, without interpolation.",
        f"Brier is the mean squared error of a class's probability. ECE is over {BINS} bins of equal width. Smaller is "
        "better. The ECE of few images is too large by chance: its interval, a test inverted, knows that.",
        "PPV and NPV hold at the prevalence of these images only.",
        f"'{UNDEFINED}' is a figure that is undefined here. It is never counted as 0 and never averaged in.",
    ]
    return [*notes, *_undefined(results["classes"]), *_without_interval(results["classes"])]


def _undefined(classes: Sequence[ClassResults]) -> list[str]:
    found = []
    never = [one["name"] for one in classes if not one["positive_in_training"]]
    if never:
        found.append(
            f"{NEVER_SEEN} No image of the training split was positive, so that nothing was learnt; not in the means: "
            f"{', '.join(never)}."
        )
    for kind in ("positives", "negatives"):
        lacking = [one["name"] for one in classes if not one[kind]]
        if lacking:
            found.append(f"Without {kind}, hence undefined and not in the means: {', '.join(lacking)}.")
    few = [one["name"] for one in classes if 0 < one["positives"] < 10]
    if few:
        found.append(f"Fewer than 10 positives, so that the figures say little: {', '.join(few)}.")
    return found


def _without_interval(classes: Sequence[ClassResults]) -> list[str]:
    """Which figures have no interval, by reason."""
    by_reason: dict[str, list[str]] = {}
    for one in classes:
        for name, reason in one["no_interval"].items():
            by_reason.setdefault(reason, []).append(f"{one['name']} ({name.replace('_', ' ')})")
    return [f"No interval, as there are {reason}: {', '.join(found)}." for reason, found in by_reason.items()]


def _count(value: float | None) -> str:
    return UNDEFINED if value is None else f"{int(value):,}"
