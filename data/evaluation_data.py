"""The data a finished model is evaluated on: images, what is known about them, and which split they are in."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.default_config import Config
from configs.errors import DataError, LackingTableError
from configs.run_data import RUN_CONFIG
from data.builder import evaluation_labels, open_data
from data.cache.reader import AnyPreprocess
from data.clinical_table import NumericColumn
from data.loading.loaders import Labels
from data.loading.studies import EncodedTable, ReadStudy, StudyInputs
from data.splits.assignment import read_split
from data.splits.saved_split import SavedSplit, saved_split
from data.study import DatasetIndex, Pixels
from data.table_encoding import TableEncoding
from utils.batch import Inputs
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


class WholeView(NamedTuple):
    """A view of a study. value: what the table says of it, else its kind. row: of the image index. pixels: as they are
    read; None: they cannot be.
    """

    name: str
    value: str
    row: int
    pixels: Pixels | None


class WholeStudy(NamedTuple):
    """A study as a network is given it, and as people know it. problems: why images cannot be read."""

    inputs: Inputs
    views: tuple[WholeView, ...]
    problems: tuple[str, ...]


class WholeStudies:
    """Studies one at a time, with all that is known of them, or images that stand alone: for those who look at one.

    preprocess, encoding: the model's. Raises DataError where the data lack the columns of its table.
    """

    def __init__(
        self, dataset_index: DatasetIndex, preprocess: AnyPreprocess, encoding: TableEncoding | None = None
    ) -> None:
        self.dataset_index, self.preprocess, self.encoding = dataset_index, preprocess, encoding
        self.table = EncodedTable.of(encoding, dataset_index)
        groups = () if dataset_index.images is None else dataset_index.images.rows
        self._place = {row: (number, view) for number, rows in enumerate(groups) for view, row in enumerate(rows)}

    @property
    def several(self) -> bool:
        """Whether a study may have several images, or a table."""
        return self.dataset_index.images is not None

    def image_rows(self, row: int) -> Sequence[int]:
        """Rows of the image index, of a study's images."""
        return (row,) if self.dataset_index.images is None else self.dataset_index.images.rows[row]

    def place(self, image_row: int) -> tuple[int, int]:
        """(the study of an image, which of its views that is)."""
        return self._place[image_row] if self.several else (image_row, 0)

    def read(self, row: int) -> WholeStudy:
        """A study without what of it cannot be read; DataError for an image that stands alone and cannot be."""
        images = self.dataset_index.images
        if images is None:
            pixels = self.dataset_index.read(row)
            image = self.preprocess.apply(self.dataset_index, row, full=pixels).image[None]
            return WholeStudy(Inputs.of_images(image), (WholeView("", "", row, pixels),), ())
        views, read, problems = [], [], []
        for name, image_row in zip(self.dataset_index.studies[row].views, images.rows[row], strict=True):
            found: Pixels | None = None
            try:
                found = images.index.read(image_row)
                read.append(self.preprocess.apply(images.index, image_row, full=found))
            except DataError as error:
                found = None
                problems.append(str(error))
            value = images.index.studies[image_row].table.get("view", "") or name
            views.append(WholeView(name, value, image_row, found))
        mask = np.array([view.pixels is not None for view in views], bool)
        kinds = np.array(images.kinds[row], np.int64)
        study = ReadStudy(tuple(read), mask, kinds, self.table.values[row], self.table.known[row])
        return WholeStudy(StudyInputs(self.preprocess).collate([study]).inputs, tuple(views), tuple(problems))

    def cells(self, row: int) -> list[str]:
        """The columns that a network is given of a study, as people wrote them; '' where unknown."""
        if self.encoding is None or self.dataset_index.table is None:
            return []
        columns = {column.name: column for column in self.dataset_index.table.columns}
        cells = []
        for name, known, value in zip(self.encoding.names, self.table.known[row], self.table.values[row]):
            column = columns.get(name)
            if not known:
                cells.append("")
            elif column is None:  # an indicator
                cells.append(f"{value:g}")
            else:
                cells.append(f"{column.values[row]:.9g}" if isinstance(column, NumericColumn) else column.words[row])
        return cells


def training_table(
    data: EvaluationData, encoding: TableEncoding, folder: Path, own_data: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(names, values and known, [R, F] both) of the run's training studies, as a network is given them.

    folder: the run's. own_data: whether `data` are where its config.yaml says; else they are looked for there.
    Raises DataError where they are not to be had.
    """
    dataset_index, assignment = data.dataset_index, data.split.assignment
    if not own_data:
        lacking = [name for name in (RUN_CONFIG, "split.csv") if not (folder / name).is_file()]
        if lacking:
            raise DataError(
                f"what stands in for a column that is away are rows of the training split, which these data are not, "
                f"and '{folder}' has no {' and no '.join(lacking)} that says where that is: give --data the run's own"
            )
        dataset_index = open_data(Config.from_yaml(folder / RUN_CONFIG, saved=True))
        assignment = read_split(folder / "split.csv", dataset_index)
    rows = np.flatnonzero(assignment == "train")
    if not len(rows):
        raise DataError(
            "what stands in for a column that is away are rows of the training split, and there is none in "
            f"{data.split.source}: keep the run's split.csv beside its checkpoint"
        )
    table = EncodedTable.of(encoding, dataset_index)
    return [dataset_index.studies[row].name for row in rows], table.values[rows], table.known[rows]
