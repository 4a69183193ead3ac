"""A model of studies asked about one study after another: its columns and views as players, with names and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from configs.errors import ExplanationError
from explain.background import Background, StudyInputs, StudyOutputs
from explain.explained_study import ExplainedStudy, explain_study
from explain.shapley import Bools, Floats
from utils.batch import Inputs, Logits

# What weighs columns, and views, by attention that is learned; what the others give is equal shares or a count.
ATTENTIVE_FUSIONS = ("attention", "cross_attention")
ATTENTIVE_AGGREGATORS = ("attention", "cross_attention", "learned_weight")


class AskedStudy(Protocol):
    """models' OneStudy, see there."""

    def logits(self, table: Tensor, known: Tensor, views: Tensor, /) -> Tensor: ...

    def view_weights(self) -> Tensor: ...

    def table_weights(self) -> Tensor | None: ...


class AskedModel(Protocol):
    """HybridMedNet's promise."""

    def __call__(self, x: Inputs, /) -> Tensor | Logits: ...

    def one_study(self, inputs: Inputs, /) -> AskedStudy: ...


@dataclass(frozen=True)
class Column:
    """A column as a network is given it."""

    name: str
    categorical: bool


@dataclass(frozen=True)
class View:
    """A slot of a study, or a kind of view that it lacks. value: what it is, as people wrote it; '': not there."""

    name: str
    value: str


@dataclass(frozen=True)
class NamedStudy:
    """An explained study. names, cells, sizes: of its players, columns first; a cell is '' where missing, a size the
    number in the cell, nan where that is none. logits: the study's own, of all classes; output: [K], of those that
    are explained."""

    name: str
    names: tuple[str, ...]
    cells: tuple[str, ...]
    sizes: Floats
    logits: Floats
    output: Floats
    explained: ExplainedStudy


@dataclass(frozen=True)
class TableExplainer:
    """classes: columns of the logits that are explained, K of them. view_kinds: of which each study is asked, 'other'
    left out. aggregator, fusion: the model's, as its settings name them."""

    model: AskedModel
    columns: Sequence[Column]
    view_kinds: Sequence[str]
    aggregator: str | None
    fusion: str | None
    background: Background
    methods: Sequence[str]
    classes: Sequence[int]

    def explain(self, name: str, inputs: Inputs, cells: Sequence[str], views: Sequence[View]) -> NamedStudy:
        """One study. inputs: on the model's device. cells: of its columns, '' where missing. views: its slots.

        Raises ExplanationError that names the study.
        """
        asked, lacking = self.model.one_study(inputs), self._lacking(views)
        views = [*views, *lacking]
        there = np.concatenate([inputs.view_mask[0].cpu().numpy(), np.zeros(len(lacking), bool)])
        study = StudyInputs(
            inputs.table[0].double().cpu().numpy(), inputs.table_mask[0].cpu().numpy(), there, self.background
        )
        categorical = np.array([column.categorical for column in self.columns], bool)
        attention = self._attention(asked, len(lacking)) if "attention" in self.methods else None
        outputs = self._outputs(asked, inputs)

        def of_classes(table: Floats, known: Bools, views: Bools) -> Floats:
            return outputs(table, known, views)[:, list(self.classes)]

        try:
            explained = explain_study(of_classes, study, categorical, methods=self.methods, attention=attention)
        except ExplanationError as error:
            raise ExplanationError(f"study '{name}': {error}") from None
        logits = outputs(study.table[None], study.known[None], study.views[None])[0]
        names = (*(column.name for column in self.columns), *_told_from_columns(self.columns, views))
        sizes = np.array([_size(cell, column) for cell, column in zip(cells, self.columns)] + [np.nan] * len(views))
        cells = (*cells, *(view.value for view in views))
        return NamedStudy(name, names, cells, sizes, logits, logits[list(self.classes)], explained)

    def difference(self, inputs: Inputs, study: NamedStudy) -> float:
        """The largest |difference| of a study's logits from those of the whole network, its images looked at again."""
        with torch.no_grad():
            whole = Logits.of(self.model(inputs)).fine[0].double().cpu().numpy()
        return float(np.abs(whole - study.logits).max())

    def _lacking(self, views: Sequence[View]) -> list[View]:
        """The kinds of view that a study has no slot of."""
        return [View(kind, "") for kind in self.view_kinds if kind not in {view.name for view in views}]

    def _outputs(self, asked: AskedStudy, inputs: Inputs) -> StudyOutputs:
        device, slots = inputs.view_mask.device, inputs.view_mask.shape[1]

        def outputs(table: Floats, known: Bools, views: Bools) -> Floats:
            logits = asked.logits(
                torch.from_numpy(table.astype(np.float32)).to(device),
                torch.from_numpy(known).to(device),
                torch.from_numpy(np.ascontiguousarray(views[:, :slots])).to(device),
            )
            found: Floats = logits.double().cpu().numpy()
            return found

        return outputs

    def _attention(self, asked: AskedStudy, lacking: int) -> Floats:
        """[F + V]: shares of columns, then of views; nan where the model has none."""
        columns = asked.table_weights() if self.fusion in ATTENTIVE_FUSIONS else None
        of_columns = np.full(len(self.columns), np.nan) if columns is None else columns.double().cpu().numpy()
        views = asked.view_weights().double().cpu().numpy()
        if self.aggregator not in ATTENTIVE_AGGREGATORS:
            views = np.full(len(views), np.nan)
        padding = np.full(lacking, np.nan if np.isnan(views).all() else 0.0)
        return np.concatenate([of_columns, views, padding])


def check_model(path: Path, methods: Sequence[str], aggregator: str | None, fusion: str | None) -> None:
    """ExplanationError where any of the methods is asked of a model without table and views, or 'attention' of one that
    has none, naming what has it. aggregator, fusion: as its settings name them."""
    model = f"'{path}'"
    if methods and fusion is None and aggregator is None:
        raise ExplanationError(f"--table: {model} takes one image and no table: there are no columns and no views")
    if "attention" in methods and aggregator not in ATTENTIVE_AGGREGATORS and fusion not in ATTENTIVE_FUSIONS:
        raise ExplanationError(
            f"--table attention: {model} has no attention weights (MODEL.table.fusion {_named(fusion)}, "
            f"MODEL.views.aggregator {_named(aggregator)}); the fusions {' and '.join(ATTENTIVE_FUSIONS)} and the "
            f"aggregators {', '.join(ATTENTIVE_AGGREGATORS)} have them: ask for shapley or lime"
        )


def _named(choice: str | None) -> str:
    return "null" if choice is None else f"'{choice}'"


def _told_from_columns(columns: Sequence[Column], views: Sequence[View]) -> list[str]:
    """Names of views, 'view frontal' where a column is called 'frontal' too."""
    taken = {column.name for column in columns}
    return [f"view {view.name}" if view.name in taken else view.name for view in views]


def _size(cell: str, column: Column) -> float:
    return float("nan") if column.categorical or not cell else float(cell)
