"""Which operating point an evaluation uses: fitted now on the validation split, from the checkpoint, or neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from configs.errors import ConfigError
from evaluation.calibration import METHODS
from evaluation.operating_points import NOT_CHOSEN, OperatingPoint, Rule, fit_operating_point, parse_rule
from evaluation.scored_split import BootstrapSettings

NONE = "none"
DEFAULT_RULE = "youden"
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
    classes: int,
    exclusive: bool,
) -> tuple[OperatingPoint, bool]:
    """(the operating point, whether it was fitted now).

    stored: `as_dict` of one, from the checkpoint, or None. validation: gives logits, targets, mask [N, K] of the
    validation split; None where there is none to fit on. classes: K.
    With no options the stored one is used; without a stored one it is fitted, by Youden's rule and without calibration;
    without a validation split too, thresholds are 0.5, not chosen.
    Raises ConfigError for options that need a missing validation split, CheckpointError for an invalid stored one.
    """
    before = None if stored is None else OperatingPoint.from_dict(stored, classes)
    if validation is None:
        if fit_options.asked:
            raise ConfigError(
                "--threshold and --calibrate fit on the validation split, and there is none here (no split 'val', or "
                "--split all): leave them out, and what the checkpoint brings is used"
            )
        return before or OperatingPoint.not_chosen(classes), False
    if before is not None and not fit_options.asked:
        return before, False
    logits, targets, mask = validation()
    calibration = before.calibration if before and fit_options.method is None else fit_options.method
    fitted = fit_operating_point(
        logits,
        targets,
        mask,
        rule=fit_options.rule or _rule_of(before),
        exclusive=exclusive,
        calibration=None if calibration == NONE else calibration,
    )
    return fitted, True


def stored_point(stored: Mapping[str, object] | None, classes: int) -> OperatingPoint:
    """The one that a checkpoint brings, or 0.5, not chosen."""
    return operating_point(FitOptions(), stored, None, classes, False)[0]


def bootstrap_settings(draws: int) -> BootstrapSettings:
    """For so many draws of patients. Raises ConfigError below 1."""
    if draws < 1:
        raise ConfigError(f"--draws {draws}: at least 1; 2000 give intervals that a second run repeats to 0.001")
    return BootstrapSettings(draws=draws)


def _rule_of(before: OperatingPoint | None) -> Rule:
    return parse_rule(before.rule if before and before.rule != NOT_CHOSEN else DEFAULT_RULE)
