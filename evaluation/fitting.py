"""Which operating point an evaluation uses: fitted now on the validation split, from the checkpoint, or neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from configs.errors import ConfigError
from evaluation.calibration import METHODS
from evaluation.operating_points import (
    MOST_PROBABLE,
    NOT_CHOSEN,
    OperatingPoint,
    Rule,
    fit_operating_point,
    parse_rule,
    point_of_probabilities,
)
from evaluation.scored_split import BootstrapSettings
from utils.decision import DEFAULT_THRESHOLD, Task
from utils.listener import Scores as ValidationScores

NONE = "none"
DEFAULT_RULE = "youden"
# Where nobody asked for a threshold, a class with fewer positives or negatives keeps the default one.
FEWEST = 5
Scores = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class FitOptions:
    """What the user asks for. rule: None for the stored one, or else Youden's.

    method: of calibration, 'none' for none; None for the stored one, if any.
    """

    rule: Rule | None = None
    method: str | None = None

    @classmethod
    def parse(cls, rule: str | None, method: str | None) -> FitOptions:
        """From the command line. Raises ConfigError as `parse_rule`, and for an unknown method."""
        if method is not None and method not in (*METHODS, NONE):
            raise ConfigError(f"unknown calibration {method!r}: it is one of {', '.join((*METHODS, NONE))}")
        return cls(None if rule is None else parse_rule(rule), method)

    @property
    def asked(self) -> bool:
        """Whether to fit even if something is stored."""
        return self.rule is not None or self.method is not None


def operating_point(
    fit_options: FitOptions,
    stored: Mapping[str, object] | None,
    validation: Callable[[], Scores] | None,
    task: Task,
) -> tuple[OperatingPoint, bool]:
    """(the operating point, whether it was fitted now).

    stored: `as_dict` of one, from the checkpoint, or None. validation: gives logits, targets, mask [N, K] of the
    validation split; None where there is none to fit on.
    With no options the stored one is used; without a stored one, or with one for the other of two classes, it is
    fitted, by Youden's rule and without calibration; without a validation split too, thresholds are 0.5, not chosen.
    Where the most probable class is called there is nothing to fit but a calibration.
    Raises ConfigError for options that need a missing validation split or that the task has no use for, CheckpointError
    for an invalid stored one.
    """
    if fit_options.rule is not None and task.kind == "most_probable_class":
        raise ConfigError(f"--threshold {fit_options.rule}: {task.no_threshold()}")
    before = None if stored is None else OperatingPoint.from_dict(stored, len(task.class_names))
    fits = before is not None and before.positive_class in (None, task.positive_class)
    if validation is None:
        if fit_options.asked:
            raise ConfigError(
                "--threshold and --calibrate fit on the validation split, and there is none here (no split 'val', or "
                "--split all): leave them out, and what the checkpoint brings is used"
            )
        return before or _not_fitted(task), False
    if not fit_options.asked and (fits or task.kind == "most_probable_class"):
        return before or _not_fitted(task), False
    logits, targets, mask = validation()
    calibration = before.calibration if before and fit_options.method is None else fit_options.method
    fitted = fit_operating_point(
        logits,
        targets,
        mask,
        rule=fit_options.rule or _rule_of(before),
        calibration=None if calibration == NONE else calibration,
        task=task,
        fewest=1 if fit_options.rule is not None else FEWEST,
    )
    return fitted, True


def point_of_training(validation: ValidationScores, task: Task) -> OperatingPoint:
    """What leaves training with a model: Youden's thresholds on the validation split, as an evaluation would fit them.

    A class with fewer than 5 positives or negatives has nan, which is 0.5.
    """
    targets, rule = validation.targets > 0.5, parse_rule(DEFAULT_RULE)
    return point_of_probabilities(validation.scores, targets, validation.mask, rule, task, None, "val", FEWEST)


def training_text(stored: Mapping[str, object] | None, task: Task) -> str | None:
    """What leaves training with its best weights, in words; None where nothing was fitted. stored: as a file has it."""
    return None if stored is None else fitted_text(stored_point(stored, len(task.class_names)), task)


def fitted_text(point: OperatingPoint, task: Task) -> str:
    """What an operating point rests on, in words."""
    if task.kind == "most_probable_class":
        return f"no thresholds: {MOST_PROBABLE} is called"
    left = point.decision(task).not_chosen
    counts = dict(zip(task.class_names, zip(point.positives, point.negatives)))
    few = [f"{name} ({counts[name][0]} positives, {counts[name][1]} negatives)" for name in left if name in counts]
    text = f"thresholds by {point.rule} on {point.split} ({point.images:,} images)"
    return text + (f"; {DEFAULT_THRESHOLD}, as there are fewer than {FEWEST}, for {', '.join(few)}" if few else "")


def _not_fitted(task: Task) -> OperatingPoint:
    classes = len(task.class_names)
    if task.kind == "most_probable_class":
        return OperatingPoint((np.nan,) * classes, MOST_PROBABLE, None, 0)
    return OperatingPoint.not_chosen(classes)


def stored_point(stored: Mapping[str, object] | None, classes: int) -> OperatingPoint:
    """The one that a checkpoint brings, or 0.5, not chosen."""
    return OperatingPoint.not_chosen(classes) if stored is None else OperatingPoint.from_dict(stored, classes)


def bootstrap_settings(draws: int) -> BootstrapSettings:
    """For so many draws of patients. Raises ConfigError below 1."""
    if draws < 1:
        raise ConfigError(f"--draws {draws}: at least 1; 2000 give intervals that a second run repeats to 0.001")
    return BootstrapSettings(draws=draws)


def _rule_of(before: OperatingPoint | None) -> Rule:
    return parse_rule(before.rule if before and before.rule not in (NOT_CHOSEN, MOST_PROBABLE) else DEFAULT_RULE)
