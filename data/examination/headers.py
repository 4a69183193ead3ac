"""What DICOM headers say of patients where no table does: folders that are patients, people on two sides of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from configs.errors import DataError
from data.examination.images import sample_rows
from data.readers.digests import thread_pool
from data.readers.patient_ids import names_nobody
from data.readers.tables import some
from data.sources.dicom_studies import read_header
from data.study import DatasetIndex
from utils.examination.findings import Finding, are
from utils.words import name_key

_TABLE = "name the patients in a table beside the folders, with the columns image and patient_id"


def header_findings(dataset_index: DatasetIndex, assignment: np.ndarray, most: int | None) -> list[Finding]:
    """Of single images, or some of them, that name no patient; files that are no DICOM say nothing."""
    if dataset_index.images is not None:
        return []
    rows = [row for row, study in enumerate(dataset_index.studies) if not study.patient_id]
    rows = [rows[at] for at in sample_rows(len(rows), most).tolist()]
    with thread_pool() as pool:
        found = dict(zip(rows, pool.map(lambda row: _patient_of(dataset_index, row), rows)))
    patients = {row: patient for row, patient in found.items() if patient}
    return [*_classes_that_are_patients(dataset_index, patients), *_on_two_sides(assignment, patients)]


def _patient_of(dataset_index: DatasetIndex, row: int) -> str:
    files = dataset_index.files(row)
    try:
        header = read_header(files[0]) if files else None
    except (DataError, OSError, ValueError, AttributeError, NotImplementedError):
        return ""  # decoding it says what is wrong with the file
    return "" if header is None or names_nobody(header.patient) else header.patient


def _classes_that_are_patients(dataset_index: DatasetIndex, patients: dict[int, str]) -> Iterator[Finding]:
    """Folders of a PACS, one a person, which look like folders of classes."""
    if not dataset_index.exclusive or not patients:
        return
    of_class: dict[str, set[str]] = defaultdict(set)
    for row, patient in patients.items():
        name = dataset_index.class_names[int(np.argmax(dataset_index.studies[row].labels))]
        of_class[name].add(name_key(patient))
    named = [name for name, found in of_class.items() if found == {name_key(name)}]
    alone = all(len(found) == 1 for found in of_class.values()) and len(set.union(*of_class.values())) == len(of_class)
    if len(named) == len(of_class) or (alone and len(of_class) > 2):
        yield Finding(
            "warning",
            "labels",
            f"each of the {len(of_class)} classes holds the images of one patient alone, by their DICOM headers "
            f"({some(list(of_class), 3)}): the folders are patients, not classes, and a network would learn to tell "
            "people apart",
            "write labels.csv into the data's folder: a row an image, with the columns image (its path from there), "
            "labels and patient_id",
        )


def _on_two_sides(assignment: np.ndarray, patients: dict[int, str]) -> Iterator[Finding]:
    sides: dict[str, set[str]] = defaultdict(set)
    for row, patient in patients.items():
        sides[patient].add(str(assignment[row]))
    torn = [patient for patient, found in sides.items() if len(found) > 1]
    if torn:
        yield Finding(
            "warning",
            "patients",
            f"by their DICOM headers {are(len(torn), 'patient')} in more than one split, of {len(sides):,}: "
            f"{some(torn, 5)}: scores are flattered",
            _TABLE,
        )
