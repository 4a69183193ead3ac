"""Which image is trained on, validated on, tested on: never split within a patient, saved with its hash."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.errors import DataError
from data.readers.patient_ids import patient_keys
from data.readers.tables import read_text, some
from data.splits.stratify import stratify_groups
from data.study import SPLITS, DatasetIndex, Study
from utils.atomic_file import write_atomically
from utils.csv_cells import csv_text, original_cell
from utils.text import told_apart

logger = logging.getLogger(__name__)

_HEADER = ("image", "patient_id", "split")
_STUDY_HEADER = ("study", "patient_id", "split", "images")  # these joined by '|'
_HASH_MARK = "# sha256: "


def assign_splits(
    dataset_index: DatasetIndex,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    allow_patient_overlap: bool = False,
) -> np.ndarray:
    """'train', 'val' or 'test' for each image, str [N].

    The source's own splits are kept. Where it names none, all images are drawn; where it names no 'val', that is
    cut from what is not 'test' (NIH's official lists; folders of train and test alone), in the proportion of the
    first two fractions; where it names 'val' but no 'train', the rest is 'train'. Drawing is by patient,
    stratified by class (see stratify_groups), the same for the same dataset index, fractions and seed.

    fractions: train, val, test; they sum to 1. allow_patient_overlap: log a patient in two splits, don't refuse it.
    Raises DataError for that, for an empty train or val split, for images without a split where others have
    'train', for other fractions.
    """
    _check_fractions(fractions)
    if not dataset_index.studies:
        raise DataError("there are no images to split")
    assignment = _fill_in(dataset_index, fractions, seed)
    _check_not_empty(assignment)
    check_overlap(dataset_index, assignment, allow_patient_overlap)
    return assignment


def split_of_file(path: Path, dataset_index: DatasetIndex, allow_patient_overlap: bool = False) -> np.ndarray:
    """The assignment of another run's split.csv, '' for what is in none of its splits, checked as a drawn one is.

    Raises DataError as `read_split` and `assign_splits` do.
    """
    try:
        assignment = read_split(path, dataset_index)
        _check_not_empty(assignment)
    except DataError as error:
        raise DataError(f"DATA.split_file: {error}") from None
    check_overlap(dataset_index, assignment, allow_patient_overlap)
    return assignment


def check_overlap(dataset_index: DatasetIndex, assignment: np.ndarray, allow: bool) -> None:
    """DataError where a patient is in two splits, or a warning where that is allowed."""
    overlap = patient_overlap(dataset_index, assignment)
    if overlap and not allow:
        raise _overlap_error(overlap)
    if overlap:
        logger.warning("DATA.allow_patient_overlap: %s; scores are flattered", _counted(overlap))


def patient_overlap(dataset_index: DatasetIndex, assignment: np.ndarray) -> dict[tuple[str, str], list[str]]:
    """The sorted patients that two splits share, for each pair that shares any."""
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for study, split in zip(dataset_index.studies, assignment):
        if split:
            patients[str(split)].add(study.group)
    shared = {pair: sorted(patients[pair[0]] & patients[pair[1]]) for pair in combinations(SPLITS, 2)}
    return {pair: names for pair, names in shared.items() if names}


def split_hash(dataset_index: DatasetIndex, assignment: np.ndarray) -> str:
    """sha256 (hex) of who is in which split: the same for every order of the images."""
    return _digest(_content(_rows(dataset_index, assignment)))


def saved_hash(path: Path) -> str:
    """The sha256 in a file that write_split saved, which is that of its content; DataError as read_split raises."""
    _verified_rows(path)
    return read_text(path).rpartition(_HASH_MARK)[2].strip()


def write_split(path: Path, dataset_index: DatasetIndex, assignment: np.ndarray) -> str:
    """Write split.csv: image, patient_id, split, sorted by image, then a line '# sha256: …'. Returns that hash.

    An image that a run has no use for is in no split: ''.

    Of studies of several images: study, patient_id, split, images, so that the hash is of all of their images.
    The file is complete or not there: written beside, flushed to disk, renamed. Cells are safe in spreadsheets (see
    `csv_text`); the hash is of what they say.
    """
    digest = split_hash(dataset_index, assignment)
    try:
        write_atomically(path, f"{csv_text(_rows(dataset_index, assignment))}{_HASH_MARK}{digest}\n".encode())
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror}") from None
    return digest


def read_split(path: Path, dataset_index: DatasetIndex) -> np.ndarray:
    """The assignment, str [N] in the dataset index's order, that write_split saved.

    Raises DataError for a missing or damaged file, and where its images or their patients are not the dataset index's.
    """
    saved = _verified_rows(path)
    images = [study.name for study in dataset_index.studies]
    _check_images(path, dataset_index, saved)
    lacking = [image for image in images if image not in saved]
    beyond = sorted(set(saved).difference(images))
    if lacking or beyond:
        raise DataError(
            f"'{path}' is the split of other images: {len(lacking)} of the data's {len(images)} are not in it "
            f"({some(lacking, 3) or 'none'}), {len(beyond)} of its {len(saved)} are not in the data "
            f"({some(beyond, 3) or 'none'}). Use the data it was made from, or start a new run"
        )
    moved = [study for study in dataset_index.studies if not _same_patient(saved[study.name].patient, study.patient_id)]
    if moved:
        was, now = saved[moved[0].name].patient or "none", moved[0].patient_id or "none"
        raise DataError(
            f"'{path}' names another patient for {len(moved)} images: {some([study.name for study in moved], 3)} "
            f"(of the first, then and now: {told_apart(was, now)})"
        )
    return np.array([saved[image].split for image in images])


def _check_images(path: Path, dataset_index: DatasetIndex, saved: Mapping[str, _Row]) -> None:
    """DataError where studies have other images than were saved, or single images were studies or the other way."""
    was, now = any(row.images for row in saved.values()), _has_several(dataset_index)
    if was != now:
        forms = ("single images", "studies of several images")
        raise DataError(
            f"'{path}' is the split of {forms[was]}, the data are {forms[now]}: set DATA.study_column as it was, or "
            "start a new run"
        )
    images = {study.name: _images(study) for study in dataset_index.studies} if now else {}
    other = [name for name, there in images.items() if name in saved and saved[name].images != there]
    if other:
        raise DataError(
            f"'{path}': {len(other)} studies have other images than it was saved for: {some(other, 3)} (of the first, "
            f"then and now: {', '.join(saved[other[0]].images)}; {', '.join(images[other[0]])})"
        )


def _has_several(dataset_index: DatasetIndex) -> bool:
    """Whether studies are called otherwise than their images."""
    studies = dataset_index.studies if dataset_index.images is not None else ()
    return any(study.name not in study.views.values() for study in studies)


def _images(study: Study) -> tuple[str, ...]:
    return tuple(sorted(study.views.values()))


def _same_patient(one: str, other: str) -> bool:
    """Whether ids of one image name the same patient: a table that a spreadsheet has saved again writes 7 for 007."""
    return one == other or bool(one and other and patient_keys(one) & patient_keys(other))


def images_and_patients(path: Path, split: str) -> tuple[frozenset[str], frozenset[str]]:
    """The images of one split of a file that write_split saved, and their studies where it is of these, and the
    patients that it names for them.

    Raises DataError for a missing or damaged file.
    """
    rows = {image: row for image, row in _verified_rows(path).items() if row.split == split}
    images = frozenset(image for row in rows.values() for image in row.images)
    return frozenset(rows) | images, frozenset(row.patient for row in rows.values()) - {""}


def _check_fractions(fractions: Sequence[float]) -> None:
    total = sum(fractions)
    if len(fractions) != 3 or not abs(total - 1.0) <= 1e-6 or min(fractions) < 0:
        raise DataError(
            f"train, val and test fractions {tuple(fractions)} sum to {total:g}: "
            "DATA.train_split, val_split and test_split must be three, none negative, with sum 1"
        )


def _fill_in(dataset_index: DatasetIndex, fractions: Sequence[float], seed: int) -> np.ndarray:
    """The source's splits, completed by drawing where they are not complete (see assign_splits)."""
    given = np.array([study.split or "" for study in dataset_index.studies], dtype="U5")
    known = set(given.tolist()) - {""}
    unnamed = given == ""
    if not known:
        return _draw(dataset_index, np.arange(len(given)), SPLITS, fractions, seed)
    if "train" in known and unnamed.any():
        names = some([dataset_index.studies[index].name for index in np.flatnonzero(unnamed)])
        raise DataError(f"{unnamed.sum()} of {len(given)} images have no split while others have: {names}")
    given[unnamed] = "train"
    if "val" not in known:
        pool = np.flatnonzero(given == "train")
        if pool.size:
            given[pool] = _draw(dataset_index, pool, SPLITS[:2], fractions[:2], seed)
    return given


def _draw(
    dataset_index: DatasetIndex, pool: np.ndarray, names: Sequence[str], fractions: Sequence[float], seed: int
) -> np.ndarray:
    """A split name for each image of pool, patients whole, fractions scaled to sum 1."""
    total = sum(fractions)
    if total <= 0:
        raise DataError("DATA.train_split and DATA.val_split are both 0")
    groups = [dataset_index.studies[index].group for index in pool]
    labels = dataset_index.label_matrix()[pool]
    chosen = stratify_groups(labels, groups, [fraction / total for fraction in fractions], seed)
    return np.array(names, dtype="U5")[chosen]


def _check_not_empty(assignment: np.ndarray) -> None:
    counts = {split: int((assignment == split).sum()) for split in SPLITS}
    empty = [split for split in ("train", "val") if not counts[split]]
    if empty:
        listed = ", ".join(f"{split} {count}" for split, count in counts.items())
        raise DataError(
            f"the {' and '.join(empty)} split is empty ({listed} images): "
            "give the data more patients, another split, or other DATA.*_split fractions"
        )


def _counted(overlap: dict[tuple[str, str], list[str]]) -> str:
    pairs = ", ".join(f"{one} and {other} share {len(names)}" for (one, other), names in overlap.items())
    patients = sorted(set().union(*overlap.values()))
    return f"{len(patients)} patients stand in more than one split ({pairs}): {some(patients, 10)}"


def _overlap_error(overlap: dict[tuple[str, str], list[str]]) -> DataError:
    return DataError(
        f"{_counted(overlap)}. Correct the split, remove its column to have one drawn by patient, "
        "or set DATA.allow_patient_overlap=true"
    )


def _rows(dataset_index: DatasetIndex, assignment: np.ndarray) -> list[tuple[str, ...]]:
    if len(assignment) != len(dataset_index.studies):
        raise ValueError(f"{len(assignment)} splits for {len(dataset_index.studies)} images")
    pairs = zip(dataset_index.studies, assignment)
    if _has_several(dataset_index):
        rows = ((study.name, study.patient_id, str(split), "|".join(_images(study))) for study, split in pairs)
        return [_STUDY_HEADER, *sorted(rows)]
    return [_HEADER, *sorted((study.name, study.patient_id, str(split)) for study, split in pairs)]


class _Row(NamedTuple):
    """images: of a study; () where the row is of one image."""

    patient: str
    split: str
    images: tuple[str, ...] = ()


def _content(rows: Iterable[Sequence[str]]) -> str:
    """What is hashed: rows as CSV, no cell changed for spreadsheets."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _verified_rows(path: Path) -> dict[str, _Row]:
    """Image or study → what a split.csv says of it, whose hash is right."""
    content, mark, digest = read_text(path, "utf-8").rpartition(_HASH_MARK)
    rows = list(csv.reader(io.StringIO(content, newline="")))
    restored = [[original_cell(cell) for cell in row] for row in rows]
    # Files of before cells were made safe have them as they are.
    said = next((one for one in (restored, rows) if _digest(_content(one)) == digest.strip()), None)
    if not mark or said is None:
        raise DataError(f"'{path}' is damaged or was edited: its content is not what its sha256 line says")
    header = next((one for one in (_HEADER, _STUDY_HEADER) if said[:1] == [list(one)]), None)
    if header is None or any(len(row) != len(header) or row[2] not in (*SPLITS, "") for row in said[1:]):
        raise DataError(f"'{path}' is not a split file: its columns must be {', '.join(_HEADER)}")
    return {row[0]: _Row(row[1], row[2], tuple(row[3].split("|")) if row[3:] else ()) for row in said[1:]}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
