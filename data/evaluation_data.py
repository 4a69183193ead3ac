"""The data a finished model is evaluated on: images, what is known about them, and which split they are in."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.default_config import Config
from configs.errors import DataError, LackingTableError
from data.builder import evaluation_labels, open_data
from data.loading.loaders import Labels
from data.splits.saved_split import SavedSplit, saved_split
from data.study import DatasetIndex
from utils.text import alike_between

_WITHOUT_TABLE = (
    "name the model's columns so in the data, say where they are by --set DATA.table.file=FILE, or say to evaluate.py "
    "that they are missing for all studies: --without COLUMN, or --without table"
)


@dataclass(frozen=True)
class EvaluationData:
    """place: folder or file. dataset_index: every image. labels: theirs, as they are scored. split: which is where."""

    location: str
    dataset_index: DatasetIndex
    labels: Labels
    split: SavedSplit

    def known(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of 0 and 1, and whether they are known, bool; both [n, K]. index: n rows of the dataset index."""
        return self.labels.target[index] > 0.5, self.labels.mask[index]

    def labelled(self, logits: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(logits, labels, mask), each [n, K], of what a Predictor gave for one model: logits [1, n, K], index [n]."""
        return logits[0], *self.known(index)

    def images(self, index: np.ndarray) -> list[str]:
        """What n images are called."""
        return [self.dataset_index.studies[row].name for row in index]

    def patients(self, index: np.ndarray) -> list[str]:
        """Whose n images are, '' where unknown."""
        return [self.dataset_index.studies[row].patient_id for row in index]

    def names(self, index: np.ndarray) -> tuple[list[str], list[str], list[str]]:
        """Image, patient and split of n images."""
        return self.images(index), self.patients(index), self.split.assignment[index].tolist()

    def groups(self, index: np.ndarray) -> list[str]:
        """What is drawn together: the patient, or the image itself where no patient is named."""
        return [self.dataset_index.studies[row].group for row in index]

    def not_learnt(self) -> frozenset[str]:
        """The classes that no image of the training split is positive for, where the split is the model's own."""
        rows = self.split.rows("train") if self.split.own and self.split.has("train") else np.empty(0, np.int64)
        labels, mask = self.known(rows)
        counts = (labels & mask).sum(axis=0)
        return frozenset(name for name, n in zip(self.dataset_index.class_names, counts) if len(rows) and not n)

    def column_names(self) -> list[str]:
        """Further columns of the labels table, and those of a clinical table."""
        return sorted({name for study in self.dataset_index.studies for name in study.table})

    def columns(self, names: Sequence[str], index: np.ndarray) -> dict[str, list[str]]:
        """Name → n texts of further columns of the labels table. Raises DataError for one that is not there."""
        there = self.column_names()
        for name in names:
            if name not in there:
                near = difflib.get_close_matches(name, there, 1)
                raise DataError(
                    f"the data have no column {name!r}{f': did you mean {near[0]!r}?' if near else ''} "
                    f"(there {'is' if len(there) == 1 else 'are'} {', '.join(there) or 'none'})"
                )
        return {name: [self.dataset_index.studies[row].table.get(name, "") for row in index] for name in names}


def open_evaluation_data(
    config: Config,
    class_names: Sequence[str] | None,
    folder: Path,
    digest: str | None,
    own_data: bool,
    may_lack: Collection[str] = (),
) -> EvaluationData:
    """What the DATA section names, with the model's classes in the model's order.

    class_names: the model's; None where its file does not say, as the previous release's: then those of the data, if
    they are as many. folder: the run's, with its split.csv. digest, own_data: see `saved_split`.
    may_lack: columns of the model's table that count as unknown for all studies where the data have none.
    Raises DataError where the data lack a class of the model, and as `open_data` and `saved_split` do.
    """
    config = config.model_copy(deep=True)
    if class_names is not None:
        config.DATA.class_names = list(class_names)
    try:
        dataset_index = open_data(config, may_lack)
    except LackingTableError as error:
        raise DataError(f"{error}; {_WITHOUT_TABLE}") from None
    expected, there = tuple(class_names) if class_names is not None else None, dataset_index.class_names
    if expected not in (None, there) or len(there) != config.MODEL.num_classes:
        raise DataError(
            f"the model has {config.MODEL.num_classes} classes ({', '.join(expected or ('names unknown',))}), the data "
            f"have {len(there)} ({', '.join(there)}): the data must have every "
            f"one of them; DATA.class_names says which columns they are{alike_between(*_unmatched(expected, there))}"
        )
    split = saved_split(dataset_index, folder / "split.csv", digest, own_data)
    location = config.DATA.data_dir or "the built-in sample data"
    return EvaluationData(location, dataset_index, evaluation_labels(config, dataset_index), split)


def _unmatched(expected: Sequence[str] | None, there: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names that only the one side has."""
    return [name for name in expected or () if name not in there], [n for n in there if n not in (expected or ())]
