"""From probabilities to calls: the one rule that evaluation, prediction, explanation and exported files share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

Calls = NDArray[np.bool_]
Kind = Literal["thresholds", "most_probable_class", "positive_class"]

DEFAULT_THRESHOLD = 0.5


class DecisionRecord(TypedDict):
    """A DecisionRule in plain values, for JSON; whoever reads a file's probabilities needs nothing else.

    thresholds: by class. rule: 'thresholds': a class is called where its probability is at or above its threshold.
    'most_probable_class': the class of the largest probability is called, the first of equal ones; no thresholds.
    'positive_class': positive_class is called where its probability is at or above its threshold, else the other one.
    """

    rule: Kind
    classes: list[str]
    thresholds: dict[str, float]
    positive_class: str | None


@dataclass(frozen=True)
class Task:
    """What the classes of a model are to each other.

    exclusive: exactly one is present. positive_class: of two exclusive classes the one that a threshold decides about;
    None where the most probable class is called. Raises ValueError where it is not one of two exclusive classes.
    """

    class_names: tuple[str, ...]
    exclusive: bool = False
    positive_class: str | None = None

    def __post_init__(self) -> None:
        fits = self.exclusive and len(self.class_names) == 2 and self.positive_class in self.class_names
        if self.positive_class is not None and not fits:
            raise ValueError(f"{self.positive_class!r} is not one of two exclusive classes: {self.class_names}")

    @property
    def kind(self) -> Kind:
        """How classes are called."""
        if not self.exclusive:
            return "thresholds"
        return "most_probable_class" if self.positive_class is None else "positive_class"

    @property
    def measured(self) -> tuple[int, ...]:
        """The classes that figures are about: all, or the positive one of two, whose mirror image the other is."""
        if self.positive_class is None:
            return tuple(range(len(self.class_names)))
        return (self.class_names.index(self.positive_class),)

    @property
    def other_class(self) -> str:
        """The class that is called where the positive one is not; '' where no class is the positive one."""
        return "" if self.positive_class is None else self.class_names[1 - self.measured[0]]

    def no_threshold(self) -> str:
        """Why a threshold says nothing of exclusive classes, and what to do."""
        names = self.class_names
        advice = f", or --set DATA.positive_class={names[1]} to decide about that one" if len(names) == 2 else ""
        return (
            f"of {len(names)} exclusive classes the most probable one is called, however probable it is: no threshold "
            f"plays a part; leave it out{advice}"
        )


def calls_at(probabilities: NDArray[np.float64], thresholds: ArrayLike, exclusive: bool) -> Calls:
    """[N, K], [K] → bool [N, K]: at or above the threshold; of exclusive classes the most probable one of each row."""
    if not exclusive:
        return np.asarray(probabilities >= np.asarray(thresholds, np.float64))
    called = np.zeros(np.shape(probabilities), bool)
    called[np.arange(len(called)), np.argmax(probabilities, axis=1)] = True
    return called


@dataclass(frozen=True)
class DecisionRule:
    """What is called, of (calibrated) probabilities.

    thresholds: K numbers; nan where none is chosen, which is 0.5 then; those that the task has no use for are ignored.
    """

    task: Task
    thresholds: tuple[float, ...]

    @property
    def limits(self) -> tuple[float, ...]:
        """The thresholds that decide, K numbers: nan where none does."""
        decide = () if self.task.kind == "most_probable_class" else self.task.measured
        chosen = [DEFAULT_THRESHOLD if math.isnan(threshold) else threshold for threshold in self.thresholds]
        return tuple(chosen[k] if k in decide else math.nan for k in range(len(chosen)))

    @property
    def not_chosen(self) -> tuple[str, ...]:
        """The classes with the default threshold, as none was chosen for them."""
        pairs = zip(self.task.class_names, self.thresholds, self.limits)
        return tuple(name for name, chosen, limit in pairs if math.isnan(chosen) and not math.isnan(limit))

    def calls(self, probabilities: NDArray[np.float64]) -> Calls:
        """[N, K] → bool [N, K], whether a class is called present."""
        if self.task.positive_class is None:
            return calls_at(probabilities, self.limits, self.task.exclusive)
        (positive,) = self.task.measured
        called = calls_at(probabilities, self.limits, False)
        called[:, 1 - positive] = ~called[:, positive]
        return called

    def findings(self, probabilities: NDArray[np.float64]) -> tuple[int, ...]:
        """[K] of one image → the classes that are called, in their order."""
        return tuple(np.flatnonzero(self.calls(np.asarray(probabilities)[None])[0]).tolist())

    def texts(self, probabilities: NDArray[np.float64]) -> list[str]:
        """[N, K] → what is called in each row, as a cell of a table: 'A|B', '' where nothing is."""
        names = self.task.class_names
        return ["|".join(names[k] for k in np.flatnonzero(row)) for row in self.calls(probabilities)]

    def as_dict(self) -> DecisionRecord:
        """Plain values for JSON."""
        limits = dict(zip(self.task.class_names, self.limits))
        return {
            "rule": self.task.kind,
            "classes": list(self.task.class_names),
            "thresholds": {name: limit for name, limit in limits.items() if not math.isnan(limit)},
            "positive_class": self.task.positive_class,
        }
