"""Where a probability becomes a finding: thresholds chosen on the validation split, and what they cost."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.errors import CheckpointError, ConfigError
from evaluation.calibration import Calibration, fit_calibration, uncalibrated
from evaluation.records import OperatingPointRecord
from utils.decision import DEFAULT_THRESHOLD, DecisionRule, Task, calls_at
from utils.intervals import plain
from utils.metrics import roc_curve

Floats = NDArray[np.float64]

RULES = ("youden", "f1", "sensitivity", "specificity")
FIGURES = ("sensitivity", "specificity", "ppv", "npv", "f1")
NOT_CHOSEN = "0.5, not chosen"
MOST_PROBABLE = "the most probable class"


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen. name: one of RULES. wanted: the least sensitivity or specificity, else None."""

    name: str
    wanted: float | None = None

    def __str__(self) -> str:
        return self.name if self.wanted is None else f"{self.name}={self.wanted:g}"


def parse_rule(text: str) -> Rule:
    """'youden', 'f1', 'sensitivity=0.9' or 'specificity=0.95'. Raises ConfigError for anything else."""
    name, sign, number = (part.strip() for part in text.strip().lower().partition("="))
    allowed = "youden, f1, sensitivity=0.9 or specificity=0.95 (any share above 0, at most 1)"
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, 1)
        raise ConfigError(
            f"unknown threshold rule {text!r}: {f'did you mean {near[0]!r}? ' if near else ''}it is {allowed}"
        )
    if name in ("youden", "f1"):
        if sign:
            raise ConfigError(f"threshold rule {text!r}: {name} takes no number; it is {allowed}")
        return Rule(name)
    try:
        wanted = float(number)
    except ValueError:
        raise ConfigError(f"threshold rule {text!r}: {name} needs a number, as in {name}=0.9") from None
    if not 0 < wanted <= 1:
        raise ConfigError(f"threshold rule {text!r}: {wanted:g} is not a share above 0 and at most 1")
    return Rule(name, wanted)


def choose_threshold(scores: ArrayLike, labels: ArrayLike, rule: Rule) -> float:
    """The threshold that a rule asks for; a score at or above it is positive.

    scores, labels: [N], known labels only, as for `utils.metrics.auroc`.
    'youden': largest sensitivity + specificity - 1 (Youden 1950). 'f1': largest F1. 'sensitivity=s': the highest
    threshold with at least that sensitivity. 'specificity=s': the lowest with at least that specificity.
    Candidates are the scores that occur, and for a specificity that none of them reaches the next number above the
    highest; of equally good ones the highest is taken. nan where positives or negatives are absent.
    """
    fpr, tpr, thresholds = roc_curve(scores, labels)
    label = np.asarray(labels, np.float64)
    positives, negatives = label.sum(), label.size - label.sum()
    if not positives or not negatives:
        return math.nan
    # Counts back from rates, so that equally good thresholds are equal, and a wanted 0.9 is reached by 9 of 10.
    true_positives, false_positives = np.rint(tpr[1:] * positives), np.rint(fpr[1:] * negatives)
    thresholds = thresholds[1:]
    if rule.name == "youden":
        return float(thresholds[np.argmax(true_positives * negatives - false_positives * positives)])
    if rule.name == "f1":
        return float(thresholds[np.argmax(2 * true_positives / (positives + true_positives + false_positives))])
    assert rule.wanted is not None
    if rule.name == "sensitivity":
        return float(thresholds[np.argmax(true_positives / positives >= rule.wanted)])
    enough = np.flatnonzero((negatives - false_positives) / negatives >= rule.wanted)
    return float(thresholds[enough[-1]] if enough.size else np.nextafter(thresholds[0], np.inf))


def between_scores(threshold: float, scores: Floats) -> float:
    """A threshold that calls the same ones of these probabilities, half-way down to the next one that occurs (or to 0).

    On the score itself a probability that comes out smaller in its last digit, in another batch size, precision or
    program, would fall on the other side. Above all scores it is half-way to 1. Source: pROC's thresholds (Robin 2011).
    """
    if math.isnan(threshold):
        return threshold
    above, below = scores[scores >= threshold], scores[scores < threshold]
    high = float(above.min()) if above.size else 1.0
    low = float(below.max()) if below.size else 0.0
    middle = (low + high) / 2
    return middle if low < middle else threshold


def confusion_counts(
    probabilities: Floats, targets: ArrayLike, mask: ArrayLike, thresholds: ArrayLike, exclusive: bool = False
) -> Floats:
    """True positives, false positives, true negatives, false negatives of each class. [N, K] … → [4, K].

    mask: bool [N, K], False where the label is unknown. thresholds: [K]; all four are nan where it is nan. Of exclusive
    classes the most probable one is called, and thresholds are not looked at.
    """
    known, present = np.asarray(mask, bool), np.asarray(targets) == 1
    limit = np.zeros(known.shape[1]) if exclusive else np.asarray(thresholds, np.float64)
    flagged = calls_at(probabilities, limit, exclusive)
    cells = (flagged & present, flagged & ~present, ~flagged & ~present, ~flagged & present)
    counts = np.stack([np.count_nonzero(cell & known, axis=0) for cell in cells]).astype(np.float64)
    return np.where(np.isnan(limit), math.nan, counts)


def threshold_figures(counts: Floats) -> dict[str, Floats]:
    """Sensitivity, specificity, PPV, NPV and F1 from [4, …] counts or sums of weights; nan where 0 / 0.

    F1 = 2 TP / (2 TP + FP + FN) is 0 without a true positive, and undefined without positives.
    """
    tp, fp, tn, fn = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), math.nan),
        }


@dataclass(frozen=True)
class OperatingPoint:
    """What is fitted on a validation split, and stored in a checkpoint: calibration and thresholds.

    thresholds: K numbers on the (calibrated) probabilities, nan where undefined and where the class has none. rule: as
    text, NOT_CHOSEN, or MOST_PROBABLE of exclusive classes. split: where it was fitted, None where nowhere.
    images: how many it rests on. positive_class: of two exclusive classes the one that the threshold is of.
    positives, negatives: K counts of known labels that it rests on; () where nothing says.
    """

    thresholds: tuple[float, ...]
    rule: str
    split: str | None
    images: int
    calibration: Calibration | None = None
    positive_class: str | None = None
    positives: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()

    def decision(self, task: Task) -> DecisionRule:
        """What is called with it. A threshold that was chosen for the other one of two classes is none."""
        other = self.positive_class not in (None, task.positive_class)
        return DecisionRule(task, (math.nan,) * len(self.thresholds) if other else self.thresholds)

    def probabilities(self, logits: ArrayLike, exclusive: bool) -> Floats:
        """[N, K] → [N, K], calibrated where there is a calibration."""
        return self.calibration.probabilities(logits) if self.calibration else uncalibrated(logits, exclusive)

    def as_dict(self) -> OperatingPointRecord:
        """Plain values for a checkpoint and for JSON."""
        return {
            "calibration": self.calibration.as_dict() if self.calibration else None,
            "thresholds": [plain(value) for value in self.thresholds],
            "rule": self.rule,
            "split": self.split,
            "images": self.images,
            "positive_class": self.positive_class,
            "positives": list(self.positives),
            "negatives": list(self.negatives),
        }

    # Any: values of a file, of which nothing is known before they are converted below.
    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classes: int) -> OperatingPoint:
        """What `as_dict` gave, of a model with so many classes. Raises CheckpointError where it does not fit."""
        try:
            stored = values["calibration"]
            calibration = None if stored is None else Calibration.from_dict(stored)
            thresholds = tuple(math.nan if x is None else float(x) for x in values["thresholds"])
            split = None if values["split"] is None else str(values["split"])
            positive = values.get("positive_class")
            counts = (tuple(int(n) for n in values.get(key) or ()) for key in ("positives", "negatives"))
            point = cls(
                thresholds,
                str(values["rule"]),
                split,
                int(values["images"]),
                calibration,
                None if positive is None else str(positive),
                *counts,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"the stored operating point cannot be read ({error!r}): fit it again") from None
        for size in (len(thresholds), len(calibration.slopes) if calibration else classes):
            if size != classes:
                raise CheckpointError(
                    f"the stored operating point is for {size} classes, the model has {classes}: fit it again"
                )
        return point

    @classmethod
    def not_chosen(cls, classes: int, calibration: Calibration | None = None) -> OperatingPoint:
        """One half for every class, where nothing was fitted."""
        return cls((DEFAULT_THRESHOLD,) * classes, NOT_CHOSEN, None, 0, calibration)


def choose_thresholds(
    probabilities: Floats, targets: ArrayLike, mask: ArrayLike, rule: Rule, fewest: int = 1
) -> tuple[float, ...]:
    """`choose_threshold` of each class over its known labels, between two scores. [N, K] each → K numbers.

    nan where there are fewer than `fewest` positives or negatives.
    """
    known, labels = np.asarray(mask, bool), np.asarray(targets, np.float64)
    found = []
    for k in range(known.shape[1]):
        scores, label = probabilities[known[:, k], k], labels[known[:, k], k]
        enough = min(label.sum(), (1 - label).sum()) >= fewest
        found.append(between_scores(choose_threshold(scores, label, rule), scores) if enough else math.nan)
    return tuple(found)


def fit_operating_point(
    logits: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    *,
    rule: Rule,
    exclusive: bool = False,
    calibration: Calibration | str | None = None,
    split: str = "val",
    task: Task | None = None,
    fewest: int = 1,
) -> OperatingPoint:
    """Calibration, then thresholds on the calibrated probabilities, of a validation split.

    logits, targets, mask: [N, K] as for `fit_calibration`. calibration: a method to fit, one already fitted, or None.
    task: where it says more than `exclusive`. fewest: see `choose_thresholds`.
    Raises ConfigError as `fit_calibration` does.
    """
    task = task or Task(tuple(f"class {k + 1}" for k in range(np.shape(logits)[1])), exclusive)
    if isinstance(calibration, str):
        calibration = fit_calibration(logits, targets, mask, calibration, task.exclusive)
    probabilities = calibration.probabilities(logits) if calibration else uncalibrated(logits, task.exclusive)
    return point_of_probabilities(probabilities, targets, mask, rule, task, calibration, split, fewest)


def point_of_probabilities(
    probabilities: Floats,
    targets: ArrayLike,
    mask: ArrayLike,
    rule: Rule,
    task: Task,
    calibration: Calibration | None = None,
    split: str = "val",
    fewest: int = 1,
) -> OperatingPoint:
    """Thresholds for the classes whose calls depend on one, nan for the others; see `fit_operating_point`."""
    known, labels = np.asarray(mask, bool), np.asarray(targets, np.float64)
    thresholds = choose_thresholds(probabilities, labels, known, rule, fewest)
    decide = () if task.kind == "most_probable_class" else task.measured
    return OperatingPoint(
        tuple(value if k in decide else math.nan for k, value in enumerate(thresholds)),
        str(rule) if decide else MOST_PROBABLE,
        split,
        len(probabilities),
        calibration,
        task.positive_class,
        tuple((known & (labels == 1)).sum(axis=0).tolist()),
        tuple((known & (labels == 0)).sum(axis=0).tolist()),
    )
