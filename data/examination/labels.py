"""Classes and patients of a split: too rare, contradicting, unknown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from configs.consistency import means_none
from data.readers.tables import some
from data.study import SPLITS, DatasetIndex, Study
from utils.examination.findings import Finding, are, counted, have
from utils.words import has_no_value, name_key

# Positives of a class in a split below which an interval exists and says little: of 10, all found, it is 0.69 to 1.
FEW_POSITIVES = 10
_DISPLAYED = 5
_OLDEST, _YOUNGEST = 120, 0


def class_counts(dataset_index: DatasetIndex, assignment: np.ndarray) -> list[str]:
    """A line a class: 'Mass: train 20 of 100, val 3 of 20' of the known labels, positives first."""
    labels = dataset_index.label_matrix()
    splits = [split for split in SPLITS if (assignment == split).any()]
    lines = []
    for name, column in zip(dataset_index.class_names, labels.T):
        counts = []
        for split in splits:
            of = column[assignment == split]
            counts.append(f"{split} {int((of == 1).sum()):,} of {int(np.isin(of, (0, 1)).sum()):,}")
        unsure = int((column == -1).sum())
        lines.append(f"{name}: {', '.join(counts)}{f' ({unsure:,} uncertain)' if unsure else ''}")
    return lines


def label_findings(dataset_index: DatasetIndex, assignment: np.ndarray, fewest_patients: int) -> list[Finding]:
    """fewest_patients: with positives, and with negatives, below which a figure has no interval."""
    found = [*_unknown(dataset_index), *_contradicting(dataset_index)]
    labels = dataset_index.label_matrix()
    groups = np.array([study.group for study in dataset_index.studies])
    for split in SPLITS:
        rows = np.flatnonzero(assignment == split)
        if not len(rows):
            continue
        # of exclusive classes each is negative where another is positive
        for kind, value in (("positive", 1), ("negative", 0))[: 1 if dataset_index.exclusive else 2]:
            found += _rare(
                dataset_index.class_names, labels[rows] == value, groups[rows], (split, kind), fewest_patients
            )
    return found


def _rare(
    names: Sequence[str], hits: np.ndarray, groups: np.ndarray, what: tuple[str, str], fewest: int
) -> Iterator[Finding]:
    """hits: bool [n, K]. what: split and kind of label."""
    split, kind = what
    images = hits.sum(axis=0)
    patients = np.array([len(set(groups[column].tolist())) for column in hits.T])
    never = [name for name, count in zip(names, images) if not count]
    few = [f"{name} ({count})" for name, count in zip(names, patients) if 0 < count < fewest]
    if never and split == "train":
        yield Finding(
            "warning",
            "labels",
            f"none of the {len(hits):,} images of train is {kind} for {some(never, _DISPLAYED)}: "
            "nothing is learnt of it",
            "leave the class out (DATA.class_names), or find images of it",
        )
    elif never:
        yield Finding(
            "warning",
            "labels",
            f"none of the {len(hits):,} images of {split} is {kind} for {some(never, _DISPLAYED)}: "
            "it has no AUROC there",
            "give that split more patients (DATA.val_split, DATA.test_split), or draw another split (TRAIN.seed)",
        )
    if few and split != "train":
        yield Finding(
            "warning",
            "labels",
            f"{split}: fewer than {fewest} patients are {kind} for {some(few, _DISPLAYED)}: no intervals",
            "do not report these classes by themselves, or give that split more patients",
        )
    rare = [
        f"{name} ({count})"
        for name, count, of in zip(names, images, patients)
        if of >= fewest and count < FEW_POSITIVES
    ]
    if rare and kind == "positive":
        yield Finding(
            "note",
            "labels",
            f"{split}: fewer than {FEW_POSITIVES} positives of {some(rare, _DISPLAYED)}: "
            + ("little can be learnt of them" if split == "train" else "their intervals will be wide"),
        )


def _unknown(dataset_index: DatasetIndex) -> Iterator[Finding]:
    labels = dataset_index.label_matrix()
    empty = np.flatnonzero(~np.isin(labels, (0, 1)).any(axis=1)).tolist()
    nothing = [dataset_index.studies[row].name for row in empty]
    if nothing:
        yield Finding(
            "warning",
            "labels",
            f"{len(nothing):,} of {counted(len(labels), 'image')} without a known label: {some(nothing, _DISPLAYED)}",
            "they are read and teach nothing: label them, or take them out",
        )


def _contradicting(dataset_index: DatasetIndex) -> Iterator[Finding]:
    """Of classes side by side: the one that says 'nothing' together with another."""
    if dataset_index.exclusive:
        return
    positive = dataset_index.label_matrix() == 1
    for column, name in enumerate(dataset_index.class_names):
        if not means_none(name):
            continue
        both = np.flatnonzero(positive[:, column] & (positive.sum(axis=1) > 1))
        if len(both):
            names = [_with_labels(dataset_index, row) for row in both.tolist()]
            yield Finding(
                "warning",
                "labels",
                f"{are(len(both), 'image')} positive for '{name}' and for another class: {some(names, 3)}",
                "one of the two is wrong: correct the labels",
            )


def _with_labels(dataset_index: DatasetIndex, row: int) -> str:
    study = dataset_index.studies[row]
    names = (name for name, value in zip(dataset_index.class_names, study.labels.tolist()) if value == 1)
    return f"{study.name} ({'|'.join(names)})"


def patient_findings(studies: Sequence[Study]) -> Iterator[Finding]:
    """One patient with two sexes; ages that nobody has. That no patient is named is said when data are opened."""
    sexes: dict[str, dict[str, str]] = defaultdict(dict)
    odd = []
    for study in studies:
        sex, age = study.table.get("sex", ""), study.table.get("age", "")
        if study.patient_id and not has_no_value(sex):
            sexes[study.patient_id].setdefault(name_key(sex)[:1], sex)
        if (years := _number(age)) is not None and not _YOUNGEST <= years <= _OLDEST:
            odd.append(f"{study.name} ({age})")
    two = [f"{patient} ({' and '.join(found.values())})" for patient, found in sexes.items() if len(found) > 1]
    if two:
        yield Finding(
            "warning",
            "patients",
            f"{have(len(two), 'patient')} images of two sexes: {some(two, _DISPLAYED)}",
            "two people under one id, or one cell that is wrong: correct patient_id or sex",
        )
    if odd:
        yield Finding(
            "warning",
            "patients",
            f"{have(len(odd), 'image')} an age that is not between {_YOUNGEST} and {_OLDEST} years: "
            f"{some(odd, _DISPLAYED)}",
            "months or days instead of years, or a code for 'unknown': correct the column, or empty those cells",
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
