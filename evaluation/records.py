"""What metrics.json and a checkpoint's operating point hold, as plain values: nan is None in all of them."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from utils.decision import DecisionRecord
from utils.intervals import IntervalRecord


class CalibrationRecord(TypedDict):
    """A Calibration; the lists have K entries."""

    method: str
    exclusive: bool
    slopes: list[float]
    intercepts: list[float]
    reasons: list[str]


class OperatingPointRecord(TypedDict):
    """An OperatingPoint, with K thresholds, positives and negatives."""

    calibration: CalibrationRecord | None
    thresholds: list[float | None]
    rule: str
    split: str | None
    images: int
    positive_class: str | None
    positives: list[int]
    negatives: list[int]


class ClassFigures(TypedDict):
    """Counts and figures of one class. figures: by name, see evaluation/figure_table.py.

    no_interval: figure → why it has no interval although it is defined.
    """

    positives: int
    negatives: int
    figures: dict[str, IntervalRecord]
    no_interval: dict[str, str]


class NamedClassFigures(ClassFigures):
    """The same of a class of a subgroup."""

    name: str


class ClassResults(NamedClassFigures):
    """All about one class. confusion: counts by cell; None where the threshold is undefined.

    threshold: None where none decides, as of exclusive classes. threshold_chosen: whether anybody chose it.
    positive_in_training: False where the training split had no positive image of it, so that it was never learnt.
    undefined_draws: figure → draws that left it undefined.
    """

    threshold: float | None
    threshold_chosen: bool
    positive_in_training: bool
    confusion: dict[str, int] | None
    undefined_draws: dict[str, int]


class MeanFigure(IntervalRecord):
    """A mean over classes. classes: over how many."""

    classes: int


class MeanFigures(TypedDict):
    """The means by figure. defined_classes: those with positives and negatives."""

    defined_classes: int
    figures: dict[str, MeanFigure]


class GroupResults(TypedDict):
    """One group of a column."""

    name: str
    images: int
    patients: int
    used_for_gap: bool
    classes: list[NamedClassFigures]
    mean: MeanFigures


class Gap(TypedDict):
    """The two groups that are furthest apart in mean AUROC, over which classes, and by how much."""

    best: str
    worst: str
    classes: list[str]
    auroc: IntervalRecord


class SubgroupResults(TypedDict):
    """The groups of one column. note: why there is no gap, '' where there is one. spellings: what was taken for one."""

    column: str
    groups: list[GroupResults]
    gap: Gap | None
    note: str
    spellings: list[str]


class ClassComparison(TypedDict):
    """One class of two models: DeLong's paired test, and its p corrected by Holm."""

    name: str
    auroc: float | None
    other_auroc: float | None
    difference: IntervalRecord
    z: float | None
    p: float | None
    p_holm: float | None


class MeanComparison(TypedDict):
    """The mean AUROC of two models over the same classes."""

    defined_classes: int
    auroc: float | None
    other_auroc: float | None
    difference: IntervalRecord


class Comparison(TypedDict):
    """Two models on the same images. other: what the second one is called."""

    other: str
    classes: list[ClassComparison]
    mean: MeanComparison


class PairedMean(TypedDict):
    """The mean of a figure with an input and without it, over the same classes; the first minus the second."""

    defined_classes: int
    value: float | None
    other_value: float | None
    difference: IntervalRecord


class WithheldResults(TypedDict):
    """The same model without one of its inputs. studies: those that could be scored without it, of which
    studies_with_it had it; left_out: those that had nothing else. comparison: with it minus without it, as of two
    models. means: average precision and Brier, likewise.
    """

    input: str
    studies: int
    studies_with_it: int
    left_out: int
    comparison: Comparison | None
    means: dict[str, PairedMean]


class IntervalSettings(TypedDict):
    """How the intervals were made."""

    level: float
    method: str
    draws: int
    seed: int


class AttentionResults(TypedDict):
    """Class activation maps against annotated regions, with intervals by patient; see evaluation/attention.py."""

    regions: int
    patients: int
    energy_inside: IntervalRecord
    pointing_game: IntervalRecord
    area: float


class Results(TypedDict):
    """What `evaluate_scores` gives, and metrics.json holds beside what was evaluated.

    attention: only where regions are annotated.
    """

    split: str
    images: int
    patients: int
    interval: IntervalSettings
    decision: DecisionRecord
    threshold_rule: str
    threshold_split: str | None
    calibration: CalibrationRecord | None
    classes: list[ClassResults]
    mean: MeanFigures
    accuracy: IntervalRecord | None
    subgroups: list[SubgroupResults]
    comparison: Comparison | None
    without: list[WithheldResults]
    attention: NotRequired[AttentionResults]
