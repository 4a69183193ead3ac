"""Which study a DICOM file belongs to and what view it shows, by its header, for data without a table that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from configs.errors import DataError
from data.readers.dicom import looks_like_dicom, read_dataset
from data.readers.regular_files import read_head
from data.study import DatasetIndex, Study
from utils.words import is_missing, name_key

# The column that stands for the attribute of that name, (0020,000D).
STUDY_UID = "StudyInstanceUID"
VIEW, AGE, SEX = "view", "age", "sex"


class Header(NamedTuple):
    """study: StudyInstanceUID. view: ViewPosition, before it the side where one is named, as 'L CC'. Each '' where
    the file does not say it.
    """

    study: str
    patient: str
    view: str
    age: str
    sex: str


def with_headers(dataset_index: DatasetIndex, study_column: str | None) -> DatasetIndex:
    """The same images with the columns StudyInstanceUID, view, age and sex, and their patients, from their headers.

    Only where study_column is StudyInstanceUID and no table has it; what a table says of view, age, sex and patient
    stays. Raises DataError for images that are no DICOM files, or of several.
    """
    if study_column is None or name_key(study_column) != name_key(STUDY_UID):
        return dataset_index
    if any(name_key(column) == name_key(STUDY_UID) for study in dataset_index.studies[:1] for column in study.table):
        return dataset_index
    rows = range(len(dataset_index.studies))
    return replace(dataset_index, studies=tuple(_with_header(dataset_index, row) for row in rows))


def _with_header(dataset_index: DatasetIndex, row: int) -> Study:
    study, files = dataset_index.studies[row], dataset_index.files(row)
    if not files:
        raise DataError(f"DATA.study_column is {STUDY_UID}, but the source of '{study.name}' does not report its files")
    header = read_header(files[0])
    if header is None:
        raise DataError(
            f"DATA.study_column is {STUDY_UID}, but '{study.name}' is no DICOM file, and no column of a "
            "table has that name"
        )
    said = {STUDY_UID: header.study, VIEW: header.view, AGE: header.age, SEX: header.sex}
    known = {name: text for name, text in study.table.items() if not is_missing(text)}
    return replace(study, table={**study.table, **said, **known}, patient_id=study.patient_id or header.patient)


def read_header(path: Path) -> Header | None:
    """What a DICOM file's header says; None for other files."""
    if not looks_like_dicom(read_head(path)):
        return None
    dataset = read_dataset(path, header_only=True)

    def text(name: str) -> str:
        return str(dataset.get(name) or "").strip()

    side = text("ImageLaterality") or text("Laterality")
    sides = [side] if side in ("L", "R") else []  # B: both, U: an organ that is not paired
    view = " ".join(filter(None, [*sides, text("ViewPosition")]))
    return Header(text("StudyInstanceUID"), text("PatientID"), view, text("PatientAge"), text("PatientSex"))
