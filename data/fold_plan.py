"""The data of a cross-validation: opened, dealt to folds, written into its folder and read back from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.default_config import Config
from configs.errors import DataError
from data.builder import evaluation_labels, open_data, resolve, split_data
from data.evaluation_data import EvaluationData
from data.splits.assignment import images_and_patients, read_split, write_split
from data.splits.folds import NO_FOLD, TEST, TRAIN, VAL, Folds, draw_folds, fold_notes, of_assignments, one_fold
from data.splits.resumed_data import LabelRecord
from data.splits.saved_split import SavedSplit
from data.study import DatasetIndex
from utils.decision import Task
from utils.runs.cross_validation import CrossValidation, Part, split_path
from utils.runs.files import SPLIT


@dataclass(frozen=True)
class FoldPlan:
    """data: the studies and what is known about them. task: what the classes are to each other. notes: what a reader of
    any figure must know, in sentences. optimistic: what is scored decides about the best epoch, too.
    """

    data: EvaluationData
    folds: Folds
    task: Task
    labels_sha256: str
    notes: list[str] = field(default_factory=list)

    @property
    def index(self) -> DatasetIndex:
        """The studies."""
        return self.data.dataset_index

    @property
    def optimistic(self) -> bool:
        """Whether what is scored is what the best epoch is chosen by."""
        return self.folds.scored == VAL

    @property
    def has_test(self) -> bool:
        """Whether there are studies that no run has seen in any way, for all of them as one model."""
        return len(self.folds.runs) > 1 and bool((self.folds.together == TEST).any())

    def write(self, folder: Path) -> None:
        """The split of each fold, and that of all as one model."""
        for fold, assignment in enumerate(self.folds.runs):
            path = split_path(folder, fold)
            path.parent.mkdir(exist_ok=True)
            write_split(path, self.index, assignment)
        write_split(folder / SPLIT, self.index, self.folds.together)


def draw_plan(config: Config, count: int, part: Part, inner: bool) -> FoldPlan:
    """config: as the user gave it. count: of folds. part, inner: see CrossValidation. Raises DataError."""
    index = open_data(config)
    given = _given(config, index, part, count)
    share = config.DATA.val_split / (config.DATA.train_split + config.DATA.val_split)
    folds = one_fold(given) if count == 1 else draw_folds(index, given, count, config.TRAIN.seed, share, inner)
    return _plan(config, index, folds)


def read_plan(config: Config, folder: Path, record: CrossValidation) -> FoldPlan:
    """Of a cross-validation that goes on. Raises DataError where the images are not those of its splits."""
    index = open_data(config)
    runs = [read_split(split_path(folder, fold), index) for fold in range(record.folds)]
    plan = _plan(config, index, of_assignments(runs, read_split(folder / SPLIT, index), record.validation == "inner"))
    if plan.labels_sha256 != record.labels_sha256:
        plan.notes.append(
            "The labels have changed since it began: runs that were finished then had learnt the old ones."
        )
    return plan


def _given(config: Config, index: DatasetIndex, part: Part, count: int) -> np.ndarray:
    """'train' for what the folds are of, str [N]; of one fold the split of train.py."""
    named = config.DATA.split_file is not None or any(study.split for study in index.studies)
    if count > 1 and part == "all" and not named:
        return np.full(len(index.studies), TRAIN)
    split = split_data(resolve(config, index), index)
    return split if count == 1 or part == "train" else np.where(split == VAL, TRAIN, split)


def _plan(config: Config, index: DatasetIndex, folds: Folds) -> FoldPlan:
    resolved = resolve(config, index)
    split = SavedSplit(index, folds.together, "the cross-validation", True)
    location = config.DATA.data_dir or "the built-in sample data"
    data = EvaluationData(location, index, evaluation_labels(resolved, index), split)
    task = Task(index.class_names, resolved.MODEL.task == "multi_class", resolved.DATA.positive_class)
    notes = [*_optimism(folds), *fold_notes(index, folds), *_taught_before(config, index, folds)]
    if len(folds.runs) > 1:
        notes += _identical(index, folds)
    return FoldPlan(data, folds, task, LabelRecord.of(index).sha256, notes)


def _optimism(folds: Folds) -> list[str]:
    if folds.scored != VAL:
        return []
    what = "what a fold holds out is its" if len(folds.runs) > 1 else "there is no test part, and what is scored is the"
    return [f"Optimistic: {what} validation part too, by which the best epoch, thresholds and calibration are chosen."]


def _identical(index: DatasetIndex, folds: Folds) -> list[str]:
    """Images of the same content that different folds hold out: their models have seen them."""
    torn = [rows for rows in index.identical if len({folds.held[row] for row in rows} - {NO_FOLD}) > 1]
    if not torn:
        return []
    names = ", ".join(" = ".join(index.studies[row].name for row in rows[:3]) for rows in torn[:3])
    return [
        f"{len(torn):,} images stand in several folds under several names ({names}): the models that they are scored "
        "by have seen them, and the figures are flattered."
    ]


def _taught_before(config: Config, index: DatasetIndex, folds: Folds) -> list[str]:
    """Weights that each run begins with or learns from, and that may know what it holds out."""
    notes = []
    for key, file in (("MODEL.init_from", config.MODEL.init_from), ("LOSS.teacher", config.LOSS.teacher)):
        if file is None:
            continue
        path = Path(file) if Path(file).is_dir() else Path(file).parent
        try:
            images, patients = images_and_patients(path / SPLIT, TRAIN)
        except DataError:
            notes.append(
                f"{key} ('{file}') does not say what it was trained on: if it has seen these studies, every figure is "
                "flattered."
            )
            continue
        held = [index.studies[row] for row in np.flatnonzero(folds.held != NO_FOLD)]
        known = sum(one.name in images or one.patient_id in patients for one in held)
        if known:
            notes.append(
                f"{key} ('{file}') was trained on {known:,} of the studies that folds hold out, or on their patients: "
                "every figure is flattered."
            )
    return notes
