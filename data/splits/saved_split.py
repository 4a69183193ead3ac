"""Which images a saved run was trained, validated and tested on, for those who use its model later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.errors import DataError, EvaluationError
from data.readers.patient_ids import keys_of
from data.splits.assignment import images_and_patients, patient_overlap, read_split, saved_hash
from data.study import SPLITS, DatasetIndex

logger = logging.getLogger(__name__)

ALL = "all"


@dataclass(frozen=True)
class SavedSplit:
    """The split of every image of a dataset index.

    assignment: str [N], 'train', 'val', 'test', or '' where unknown. source: where it comes from, in words.
    own: it is the very split that the model was trained with. warnings: what makes it less than that.
    trained_images, trained_patients: names of the training images in the run's split.csv, where there is one.
    """

    dataset_index: DatasetIndex
    assignment: np.ndarray
    source: str
    own: bool
    warnings: tuple[str, ...] = ()
    trained_images: frozenset[str] = field(default_factory=frozenset)
    trained_patients: frozenset[str] = field(default_factory=frozenset)

    def rows(self, split: str) -> np.ndarray:
        """Rows of the dataset index in a split, or all; DataError naming the splits there are where it is empty."""
        if split == ALL:
            return np.arange(len(self.assignment))
        rows = np.flatnonzero(self.assignment == split)
        if rows.size:
            return rows
        there = [f"{name} ({n} images)" for name in SPLITS if (n := int((self.assignment == name).sum()))]
        raise DataError(
            f"there is no {split} split in {self.source}; there {'is' if len(there) == 1 else 'are'} "
            f"{', '.join(there) or 'none'}: choose one by --split, or take every image by --split all"
        )

    def has(self, split: str) -> bool:
        """Whether a split has images."""
        return bool((self.assignment == split).any())

    def concerns(self, split: str) -> list[str]:
        """What flatters figures on this split: images or patients that the model has been trained on."""
        if split in ("train", ALL) and self.own:
            count = int((self.assignment[self.rows(split)] == "train").sum())
            return [f"The model was trained on {count:,} of these images: the figures are flattered."]
        if self.own:
            shared = patient_overlap(self.dataset_index, self.assignment).get(("train", split), [])
            return [f"{len(shared):,} patients are in train and {split}: figures are flattered."] if shared else []
        studies = [self.dataset_index.studies[row] for row in self.rows(split)]
        trained = keys_of(self.trained_patients)
        known = sum(s.name in self.trained_images or bool(keys_of([s.patient_id]) & trained) for s in studies)
        text = f"{known:,} of these images or their patients have names that the model was trained on"
        return [f"{text}: if they are the same, the figures are flattered."] if known else []


def saved_split(dataset_index: DatasetIndex, path: Path, digest: str | None, own_data: bool) -> SavedSplit:
    """The run's split.csv where it is of these images, else the splits that the source itself names.

    path: that split.csv; it need not be there. digest: what the checkpoint says it was trained with, or None.
    own_data: the data are where the run's config says, so that a split.csv that does not fit them is a DataError; for
    other data it is left aside. Nothing is drawn: images without a named split have none.
    """
    if not path.is_file():
        return _of_source(dataset_index)
    try:
        assignment = read_split(path, dataset_index)
    except DataError:
        if own_data:
            raise
        return _of_source(dataset_index, *images_and_patients(path, "train"))
    if digest is not None and saved_hash(path) == digest:
        return SavedSplit(dataset_index, assignment, f"'{path}'", True)
    says = "does not say which split it was trained with" if digest is None else "was trained with another split"
    warning = f"The checkpoint {says}: some of these images may have been trained on ('{path}')."
    logger.warning("%s", warning)
    return SavedSplit(dataset_index, assignment, f"'{path}'", False, (warning,), *images_and_patients(path, "train"))


def members_digest(folder: Path, says: Mapping[Path, str | None]) -> str | None:
    """The hash of a cross-validation's split.csv, where its runs were trained with their own; else None.

    says: a run's folder → the hash of its split, as its checkpoint has it.
    """
    if any(digest is None or saved_hash(run / "split.csv") != digest for run, digest in says.items()):
        return None
    trained = images_and_patients(folder / "split.csv", "train")[0]
    seen = [images_and_patients(run / "split.csv", split)[0] for run in says for split in ("train", "val")]
    seen_by_all = images_and_patients(folder / "split.csv", "val")[0]
    return saved_hash(folder / "split.csv") if trained | seen_by_all >= frozenset().union(*seen) else None


def check_unseen(split: SavedSplit, asked: str, folder: Path) -> None:
    """Raises EvaluationError where a cross-validation's runs would be scored, as one model, on what they were trained
    on.
    """
    if not split.own or (asked not in ("train", ALL) and split.has(asked)):
        return
    there = [name for name in ("test", "val") if split.has(name)]
    advice = f"--split {there[0]}, or --data with other images" if there else "--data with other images"
    what = "there is no test part in" if asked not in ("train", ALL) else "models were trained on these images in"
    raise EvaluationError(
        f"--split {asked}: {what} the cross-validation '{folder}'. Each of its studies was trained on by all runs but "
        f"those that held it out, whose figures are in '{folder / 'report.html'}'; for its runs as one model: {advice}"
    )


def _of_source(
    dataset_index: DatasetIndex, images: frozenset[str] = frozenset(), patients: frozenset[str] = frozenset()
) -> SavedSplit:
    assignment = np.array([study.split or "" for study in dataset_index.studies], dtype="U5")
    return SavedSplit(dataset_index, assignment, "the data", False, (), images, patients)
