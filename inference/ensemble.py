"""Several trained models as one: their calibrated probabilities averaged, class by class, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from configs.errors import PredictionError
from inference.predictor import Predictor
from utils.batch import Inputs
from utils.decision import DEFAULT_THRESHOLD, DecisionRule, Task
from utils.text import alike_between


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    name: its file. task: what its classes are to each other. predictor: runs it alone. to_probabilities: logits float64
    [N, K] → probabilities, calibrated where there is a calibration. thresholds: K numbers on them, nan where undefined;
    () where none were chosen. rule: how they were chosen, in words. input: which of the inputs is its own. facts: for
    the results file. not_learnt: classes that no image of its training split was positive for.
    """

    name: str
    task: Task
    predictor: Predictor
    to_probabilities: Callable[[np.ndarray], np.ndarray]
    thresholds: tuple[float, ...] = ()
    rule: str = ""
    input: int = 0
    facts: Mapping[str, object] = field(default_factory=dict)
    not_learnt: frozenset[str] = frozenset()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its classes, in its order."""
        return self.task.class_names

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.predictor.members[0]


class Ensemble:
    """members: one or more models of the same classes, in any order of these; the first one's order counts.

    threshold: one for all classes, in place of those of the members. What is called is what evaluate.py measures, as
    both have it from `decision`.
    Raises PredictionError where classes or tasks differ, where the threshold is none, or where the task has none.
    """

    def __init__(self, members: Sequence[Member], threshold: float | None = None) -> None:
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise PredictionError(f"a threshold is a probability, from 0 to 1, not {threshold:g}")
        self.members = tuple(members)
        self.class_names = members[0].class_names
        for member in members[1:]:
            _check_same_classes(members[0], member)
        task = Task(self.class_names, members[0].task.exclusive, _positive_class(members))
        if threshold is not None and task.kind == "most_probable_class":
            raise PredictionError(f"--threshold {threshold:g}: {task.no_threshold()}")
        # orders[m][k]: where member m has class k
        self.orders = [[m.class_names.index(name) for name in self.class_names] for m in members]
        thresholds, self.threshold_source = self._thresholds(threshold, task)
        self.decision = DecisionRule(task, thresholds)
        self.not_learnt = tuple(name for name in self.class_names if any(name in m.not_learnt for m in members))

    def probabilities(self, inputs: Sequence[Inputs]) -> np.ndarray:
        """Inputs of B studies for each preprocessing → float64 [B, K], NaN where a model gives NaN."""
        return self.begin(inputs)()

    def begin(self, inputs: Sequence[Inputs]) -> Callable[[], np.ndarray]:
        """As `probabilities`, in two steps: what comes back gives them, and only that waits for the device."""
        pending = [member.predictor.begin(inputs[member.input]) for member in self.members]
        return lambda: np.mean([self._of(m, logits()) for m, logits in enumerate(pending)], axis=0)

    def _of(self, m: int, logits: Sequence[Tensor]) -> np.ndarray:
        (own,) = logits
        return self.members[m].to_probabilities(own.numpy())[:, self.orders[m]]

    def _thresholds(self, threshold: float | None, task: Task) -> tuple[tuple[float, ...], str]:
        """(one per class, nan where none was chosen; where they come from): means over the members that have one, as
        probabilities are means too.
        """
        count = len(self.class_names)
        if task.kind == "most_probable_class":
            return (math.nan,) * count, "none: the most probable class is called"
        if threshold is not None:
            return (threshold,) * count, f"{threshold:g}, as asked"
        chosen = [(m, order) for m, order in zip(self.members, self.orders) if m.thresholds]
        if not chosen:
            return (math.nan,) * count, f"{DEFAULT_THRESHOLD}, as none were chosen: evaluate.py does"
        table = [[m.thresholds[k] for k in order] for m, order in chosen]
        values = tuple(_mean_of_defined(column) for column in zip(*table))
        rules = "; ".join(dict.fromkeys(m.rule for m, _ in chosen))
        source = rules if len(self.members) == 1 else f"means of {len(chosen)} of {len(self.members)} models ({rules})"
        undefined = DecisionRule(task, values).not_chosen
        if undefined:
            source += f"; {DEFAULT_THRESHOLD} where it was undefined ({', '.join(undefined)})"
        return values, source


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _check_same_classes(one: Member, other: Member) -> None:
    lacking, more = (
        [name for name in a.class_names if name not in b.class_names] for a, b in ((one, other), (other, one))
    )
    if lacking or more:
        raise PredictionError(
            f"an ensemble needs models of the same classes: '{other.name}' lacks {', '.join(lacking) or 'none'} of "
            f"'{one.name}' and has {', '.join(more) or 'none'} beside{alike_between(lacking, more)}"
        )
    if one.task.exclusive != other.task.exclusive:
        raise PredictionError(f"of '{one.name}' and '{other.name}' one has exclusive classes, the other has not")


def _positive_class(members: Sequence[Member]) -> str | None:
    """The one that all agree on which have one; files of before it was a setting have none."""
    named = {member.task.positive_class: member.name for member in members if member.task.positive_class is not None}
    if len(named) > 1:
        words = ", ".join(f"'{file}': {positive}" for positive, file in named.items())
        raise PredictionError(
            f"the models differ in their positive class ({words}): --set DATA.positive_class=… says it"
        )
    return next(iter(named), None)
