"""Everything that is said of one study's columns and views, as rows of a table, and summed up over a split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypedDict, get_args

import numpy as np

from configs.errors import ExplanationError
from explain.background import StudyInputs, StudyOutputs
from explain.lime import LimeExplanation, lime
from explain.rank_correlation import RankCorrelation, rank_correlation
from explain.shapley import PERMUTATIONS, Attributions, Bools, Floats, shapley_values
from explain.table_explanations import ExplanationRow
from utils.intervals import plain

TableMethod = Literal["shapley", "lime", "attention"]
TABLE_METHODS: Final[tuple[TableMethod, ...]] = get_args(TableMethod)
UNDEFINED: Final = "undefined"


class Agreement(NamedTuple):
    """Of attention weights with Shapley values: weights are shares among columns, and among views, never of both."""

    columns: RankCorrelation
    views: RankCorrelation


@dataclass(frozen=True)
class ExplainedStudy:
    """P columns and views, K outputs. playing: [P]. attention: [P], nan where a player has no weight of its own; None
    of a model without. agreements: K, of attention with Shapley values, where both were asked for, else empty."""

    playing: Bools
    shapley: Attributions | None
    lime: LimeExplanation | None
    attention: Floats | None
    agreements: tuple[Agreement, ...]

    def rows(
        self, study: str, class_names: Sequence[str], names: Sequence[str], cells: Sequence[str]
    ) -> Iterator[ExplanationRow]:
        """Rows of table_explanations.csv: class by class, method by method. names, cells: of P columns and views.

        Players without an attention weight of their own have no row of that method.
        """
        for k, class_name in enumerate(class_names):
            for method, values, uncertainty in self._of_class(k):
                for i, (name, cell) in enumerate(zip(names, cells, strict=True)):
                    if math.isnan(values[i]):
                        continue
                    doubt = None if uncertainty is None else float(uncertainty[i])
                    yield ExplanationRow(study, class_name, method, name, cell, float(values[i]), doubt)

    def _of_class(self, k: int) -> Iterator[tuple[TableMethod, Floats, Floats | None]]:
        if self.shapley is not None:
            yield "shapley", self.shapley.values[:, k], self.shapley.standard_error[:, k]
        if self.lime is not None:
            yield "lime", self.lime.coefficients[:, k], self.lime.spread[:, k]
        if self.attention is not None:
            yield "attention", self.attention, None


def explain_study(
    outputs: StudyOutputs,
    study: StudyInputs,
    categorical: Bools,
    *,
    methods: Sequence[str] = TABLE_METHODS,
    attention: Floats | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> ExplainedStudy:
    """Explain one study by any of TABLE_METHODS.

    categorical: [F]. attention: weights [F + V] that the model gave to this study, None of a model that has none.
    Raises ExplanationError for other methods, and for attention that a model does not have.
    """
    for method in methods:
        if method not in TABLE_METHODS:
            raise ExplanationError(f"unknown method {method!r} for tables: one of {', '.join(TABLE_METHODS)}")
    if "attention" in methods and attention is None:
        raise ExplanationError("this model weighs neither columns nor views by attention: leave out 'attention'")
    playing = study.playing
    shapley = None
    if "shapley" in methods:
        shapley = shapley_values(study.value(outputs), playing, permutations=permutations, seed=seed)
    linear = lime(outputs, study, categorical) if "lime" in methods else None
    weights = attention if "attention" in methods else None
    agreements: tuple[Agreement, ...] = ()
    if shapley is not None and weights is not None:
        agreements = tuple(_agreement(weights, phi, playing, len(study.table)) for phi in shapley.values.T)
    return ExplainedStudy(playing, shapley, linear, weights, agreements)


def _agreement(weights: Floats, attributions: Floats, playing: Bools, columns: int) -> Agreement:
    parts = (slice(None, columns), slice(columns, None))
    return Agreement(*(rank_correlation(weights[part], attributions[part], playing[part]) for part in parts))


class RankSummary(TypedDict):
    """The mean rank correlation over the studies where it is defined, and of how many players in the mean."""

    mean: float | Literal["undefined"]
    studies: int
    players: float | None


class ClassSummary(TypedDict):
    """Means over studies where they are defined, None where nowhere. lime_spread: the largest over seeds."""

    lime_r_squared: float | None
    lime_spread: float | None
    rank_correlation_columns: RankSummary | None
    rank_correlation_views: RankSummary | None


class TableSummary(TypedDict):
    """exact: studies whose Shapley values were not sampled. additivity: the largest |Σφ - (f - f₀)|."""

    studies: int
    exact: int
    additivity: float | None
    largest_standard_error: float | None
    classes: dict[str, ClassSummary]


def summarise_tables(explained: Sequence[ExplainedStudy], class_names: Sequence[str]) -> TableSummary:
    """What to know of a split's explanations before they are believed, as plain values."""
    shapley = [one.shapley for one in explained if one.shapley is not None]
    return {
        "studies": len(explained),
        "exact": sum(one.exact for one in shapley),
        "additivity": max((one.additivity_error for one in shapley), default=None),
        "largest_standard_error": max((float(one.standard_error.max(initial=0.0)) for one in shapley), default=None),
        "classes": {name: _class_summary(explained, k) for k, name in enumerate(class_names)},
    }


def _class_summary(explained: Sequence[ExplainedStudy], k: int) -> ClassSummary:
    fits = [one.lime for one in explained if one.lime is not None]
    r_squared = [float(fit.r_squared[k]) for fit in fits]
    agreements = [one.agreements[k] for one in explained if one.agreements]
    return {
        "lime_r_squared": _mean([fit for fit in r_squared if not math.isnan(fit)]),
        "lime_spread": max((float(fit.spread[:, k].max(initial=0.0)) for fit in fits), default=None),
        "rank_correlation_columns": _rank_summary([one.columns for one in agreements]),
        "rank_correlation_views": _rank_summary([one.views for one in agreements]),
    }


def _rank_summary(found: Sequence[RankCorrelation]) -> RankSummary | None:
    defined = [one for one in found if one.defined]
    mean, players = _mean([one.value for one in defined]), _mean([one.players for one in defined])
    return {"mean": UNDEFINED if mean is None else mean, "studies": len(defined), "players": players} if found else None


def _mean(values: Sequence[float]) -> float | None:
    return plain(float(np.mean(values))) if values else None
