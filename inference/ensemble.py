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
from utils.text import alike_between

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    name: its file. predictor: runs it alone. to_probabilities: logits float64 [N, K] → probabilities, calibrated where
    there is a calibration. thresholds: K numbers on them, nan where undefined; () where none were chosen.
    rule: how they were chosen, in words. input: which of the inputs is its own. facts: for the results file.
    """

    name: str
    class_names: tuple[str, ...]
    exclusive: bool
    predictor: Predictor
    to_probabilities: Callable[[np.ndarray], np.ndarray]
    thresholds: tuple[float, ...] = ()
    rule: str = ""
    input: int = 0
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.predictor.members[0]


class Ensemble:
    """members: one or more models of the same classes, in any order of these; the first one's order counts.

    threshold: one for all classes, in place of those of the members.
    Raises PredictionError where classes or tasks differ, or where the threshold is none.
    """

    def __init__(self, members: Sequence[Member], threshold: float | None = None) -> None:
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise PredictionError(f"a threshold is a probability, from 0 to 1, not {threshold:g}")
        self.members = tuple(members)
        self.class_names, self.exclusive = members[0].class_names, members[0].exclusive
        for member in members[1:]:
            _check_same_classes(members[0], member)
        # orders[m][k]: where member m has class k
        self.orders = [[m.class_names.index(name) for name in self.class_names] for m in members]
        self.thresholds, self.threshold_source = self._thresholds(threshold)

    def probabilities(self, inputs: Sequence[Inputs]) -> np.ndarray:
        """Inputs of B studies for each preprocessing → float64 [B, K], NaN where a model gives NaN."""
        return self.begin(inputs)()

    def begin(self, inputs: Sequence[Inputs]) -> Callable[[], np.ndarray]:
        """As `probabilities`, in two steps: what comes back gives them, and only that waits for the device."""
        pending = [member.predictor.begin(inputs[member.input]) for member in self.members]
        return lambda: np.mean([self._of(m, logits()) for m, logits in enumerate(pending)], axis=0)

    def findings(self, probabilities: np.ndarray) -> list[int]:
        """[K] → classes at or over their threshold; of exclusive classes the likeliest one alone."""
        if self.exclusive:
            return [int(probabilities.argmax())]
        return [k for k, (p, threshold) in enumerate(zip(probabilities, self.thresholds)) if p >= threshold]

    def _of(self, m: int, logits: Sequence[Tensor]) -> np.ndarray:
        (own,) = logits
        return self.members[m].to_probabilities(own.numpy())[:, self.orders[m]]

    def _thresholds(self, threshold: float | None) -> tuple[tuple[float, ...], str]:
        """(one per class, where they come from): means over the members that have one, as probabilities are means
        too.
        """
        count = len(self.class_names)
        if threshold is not None:
            return (threshold,) * count, f"{threshold:g}, as asked"
        chosen = [(m, order) for m, order in zip(self.members, self.orders) if m.thresholds]
        if not chosen:
            return (DEFAULT_THRESHOLD,) * count, f"{DEFAULT_THRESHOLD}, as none were chosen: evaluate.py does"
        table = [[m.thresholds[k] for k in order] for m, order in chosen]
        values = [_mean_of_defined(column) for column in zip(*table)]
        rules = "; ".join(dict.fromkeys(m.rule for m, _ in chosen))
        source = rules if len(self.members) == 1 else f"means of {len(chosen)} of {len(self.members)} models ({rules})"
        undefined = [name for name, value in zip(self.class_names, values) if math.isnan(value)]
        if undefined:
            source += f"; {DEFAULT_THRESHOLD} where it was undefined ({', '.join(undefined)})"
        return tuple(DEFAULT_THRESHOLD if math.isnan(value) else value for value in values), source


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
    if one.exclusive != other.exclusive:
        raise PredictionError(f"of '{one.name}' and '{other.name}' one has exclusive classes, the other has not")
