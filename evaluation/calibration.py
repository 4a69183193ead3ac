"""Scores into probabilities that can be read as such: temperature and Platt scaling, fitted on validation logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logit, softmax

from configs.errors import CheckpointError, ConfigError
from evaluation.records import CalibrationRecord

Floats = NDArray[np.float64]

METHODS = ("temperature", "platt")
# Slopes (one over temperatures) are sought between these: below, the scores say nothing; above, all is separated.
SMALLEST_SLOPE, LARGEST_SLOPE = 0.01, 100.0
# A dozen is usual.
MOST_STEPS = 200
SLOPE_TOO_SMALL = "the scores do not rise with the label here"


def uncalibrated(logits: ArrayLike, exclusive: bool) -> Floats:
    """Sigmoids of multi-label logits, the softmax of exclusive ones, in float64. [N, K] → [N, K]."""
    values = np.asarray(logits, np.float64)
    return np.asarray(softmax(values, axis=1) if exclusive else expit(values), np.float64)


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(slope · logit + intercept) a class, or the softmax of the same line for exclusive classes.

    method: 'temperature' (slope 1 / T, intercept 0) or 'platt'. exclusive: whether exactly one class is present.
    slopes, intercepts: K numbers each; slopes are positive, so that ranks and AUROC stay as they are; 1 and 0 where
    a class was not calibrated. Exclusive classes share one slope.
    reasons: K texts, '' where calibrated, else why not.
    """

    method: str
    exclusive: bool
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    reasons: tuple[str, ...]

    def probabilities(self, logits: ArrayLike) -> Floats:
        """Calibrated probabilities, float64. [N, K] → [N, K]. Raises ValueError for another number of classes."""
        values = np.asarray(logits, np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.slopes):
            raise ValueError(f"a calibration of {len(self.slopes)} classes got logits {values.shape}")
        return uncalibrated(values * self.slopes + self.intercepts, self.exclusive)

    def as_dict(self) -> CalibrationRecord:
        """Plain values, for a checkpoint and for JSON."""
        return {
            "method": self.method,
            "exclusive": self.exclusive,
            "slopes": list(self.slopes),
            "intercepts": list(self.intercepts),
            "reasons": list(self.reasons),
        }

    # Any: values of a file, of which nothing is known before they are converted below.
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """What `as_dict` gave. Raises CheckpointError where a value is missing or cannot be."""
        try:
            slopes, intercepts = (tuple(float(x) for x in values[key]) for key in ("slopes", "intercepts"))
            reasons = tuple(str(x) for x in values["reasons"])
            created = cls(str(values["method"]), bool(values["exclusive"]), slopes, intercepts, reasons)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the stored calibration cannot be read ({error!r}): fit it again") from None
        finite = all(math.isfinite(x) for x in (*slopes, *intercepts)) and all(x > 0 for x in slopes)
        if created.method not in METHODS or not finite or not len(slopes) == len(intercepts) == len(reasons) > 0:
            raise CheckpointError(
                "the stored calibration is not one (it needs a known method, positive finite slopes and as many "
                "intercepts): fit it again"
            )
        return created


def fit_calibration(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike, method: str, exclusive: bool = False, smooth: bool = True
) -> Calibration:
    """Maximum likelihood on the known labels of a validation split.

    logits: [N, K], finite where known. targets: [N, K], 0 or 1 where mask, bool [N, K], holds.
    method: 'temperature' or 'platt'; exclusive classes have one temperature, and rows that are not wholly known are
    left out. smooth: Platt's targets (P + 1) / (P + 2) and 1 / (N + 2) in place of 1 and 0, which keep the slope finite
    where the split is separated; False fits the labels themselves.
    A class stays as it is, with the reason, where positives or negatives are absent, or where its scores do not rise
    with the label (a slope below 0.01 would be needed; a negative one would turn ranks round). A temperature that the
    data would let fall without end stops at 0.01.
    Raises ConfigError for an unknown method, and for Platt scaling of exclusive classes.
    Sources: Guo et al., ICML 2017 (temperature), here a class each for multi-label tasks; Platt 1999.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown calibration {method!r}: it is one of {', '.join(METHODS)}, none")
    if exclusive and method == "platt":
        raise ConfigError(
            "Platt scaling is for labels that stand alone; exclusive classes take calibration temperature"
        )
    z, y, known = np.asarray(logits, np.float64), np.asarray(targets, np.float64), np.asarray(mask, bool)
    if not z.shape == y.shape == known.shape or z.ndim != 2:
        raise ValueError(f"logits, targets and mask must all be [N, K], got {z.shape}, {y.shape}, {known.shape}")
    if exclusive:
        rows = known.all(axis=1)
        lines = [_shared_temperature(z[rows], y[rows])] * z.shape[1]
    else:
        fit = _temperature if method == "temperature" else _platt_smooth if smooth else _platt_plain
        lines = [_line(fit, z[known[:, k], k], y[known[:, k], k]) for k in range(z.shape[1])]
    slopes, intercepts, reasons = zip(*lines)
    return Calibration(method, exclusive, slopes, intercepts, reasons)


Line = tuple[float, float, str]


def _untouched(reason: str) -> Line:
    return 1.0, 0.0, reason


def _line(fit: Callable[[Floats, Floats], Line], z: Floats, y: Floats) -> Line:
    """One class: (slope, intercept, reason)."""
    positives = int(y.sum())
    if not 0 < positives < y.size:
        return _untouched(f"no {'negatives' if positives else 'positives'} in the split it was to be fitted on")
    if not np.isfinite(z).all():
        raise ValueError(f"{int((~np.isfinite(z)).sum())} of {z.size} logits are not finite")
    return fit(z, y)


def _slope(gradient: Callable[[float], float]) -> Line:
    """The zero of the likelihood's derivative in the slope, which only rises: the problem is convex."""
    if gradient(SMALLEST_SLOPE) >= 0:
        return _untouched(SLOPE_TOO_SMALL)
    if gradient(LARGEST_SLOPE) <= 0:
        return LARGEST_SLOPE, 0.0, ""
    return float(brentq(gradient, SMALLEST_SLOPE, LARGEST_SLOPE, xtol=1e-13)), 0.0, ""


def _temperature(z: Floats, y: Floats) -> Line:
    return _slope(lambda slope: float(np.dot(z, expit(slope * z) - y)))


def _shared_temperature(z: Floats, y: Floats) -> Line:
    if not len(z):
        return _untouched("no wholly known image in the split it was to be fitted on")
    return _slope(lambda slope: float(np.sum(z * (softmax(slope * z, axis=1) - y))))


def _platt_smooth(z: Floats, y: Floats) -> Line:
    positives = y.sum()
    return _platt(z, np.where(y > 0, (positives + 1) / (positives + 2), 1 / (y.size - positives + 2)))


def _platt_plain(z: Floats, y: Floats) -> Line:
    if z[y > 0].max() <= z[y == 0].min():
        return _untouched(SLOPE_TOO_SMALL)
    if z[y == 0].max() <= z[y > 0].min():
        return _untouched("the split is separated: no slope is the best")
    return _platt(z, y)


def _platt(z: Floats, t: Floats) -> Line:
    """The line of largest likelihood, found on standardised logits; t: targets in [0, 1]."""
    centre, scale = z.mean(), z.std()
    if scale == 0:
        return _untouched(SLOPE_TOO_SMALL)
    rise, height = _newton(np.stack([(z - centre) / scale, np.ones_like(z)]), t)
    slope, intercept = float(rise / scale), float(height - rise * centre / scale)
    return (slope, intercept, "") if slope >= SMALLEST_SLOPE else _untouched(SLOPE_TOO_SMALL)


def _newton(columns: Floats, t: Floats) -> Floats:
    """The logistic regression of targets t [n] on columns [2, n]: halved Newton steps down a convex function. [2]"""

    def loss(line: Floats) -> float:
        u = line @ columns
        return float(-np.mean(t * log_expit(u) + (1 - t) * log_expit(-u)))

    line = np.array([0.0, logit(t.mean())])
    for _ in range(MOST_STEPS):
        p = expit(line @ columns)
        gradient = columns @ (p - t) / t.size
        step = np.linalg.solve((columns * (p * (1 - p))) @ columns.T / t.size, gradient)
        # Below this the loss cannot be compared any more: the step is the last, and whole.
        if gradient @ step < 1e-13:
            return line - step
        while loss(line - step) > loss(line):
            step = step / 2
        line = line - step
    raise AssertionError("Newton's method on a convex function must converge")
