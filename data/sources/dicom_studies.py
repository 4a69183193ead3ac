"""Which study a DICOM file belongs to and what view it shows, by its header, for data without a table that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from configs.errors import DataError
from data.readers.dicom import looks_like_dicom, read_dataset
from data.readers.patient_ids import names_nobody
from data.readers.regular_files import read_head
from data.readers.tables import some
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
    stays. Files that are no DICOM, or cannot be read, name no study. Raises DataError where none does.
    """
    if study_column is None or name_key(study_column) != name_key(STUDY_UID):
        return dataset_index
    if any(name_key(column) == name_key(STUDY_UID) for study in dataset_index.studies[:1] for column in study.table):
        return dataset_index
    headers = [_header_of(dataset_index, row) for row in range(len(dataset_index.studies))]
    if not any(header and header.study for header in headers):
        names = some([study.name for study in dataset_index.studies], 2)
        raise DataError(
            f"DATA.study_column is {STUDY_UID}: no column of a table has that name, and no DICOM header says it "
            f"({names})"
        )
    studies = tuple(_with_header(study, header) for study, header in zip(dataset_index.studies, headers))
    return replace(dataset_index, studies=studies)


def _header_of(dataset_index: DatasetIndex, row: int) -> Header | None:
    files = dataset_index.files(row)
    try:
        return read_header(files[0]) if files else None
    except Exception:  # whoever reads the image says what is wrong with the file
        return None


def _with_header(study: Study, header: Header | None) -> Study:
    if header is None:
        return study
    said = {STUDY_UID: header.study, VIEW: header.view, AGE: header.age, SEX: header.sex}
    known = {name: text for name, text in study.table.items() if not is_missing(text)}
    patient = "" if names_nobody(header.patient) else header.patient
    return replace(study, table={**study.table, **said, **known}, patient_id=study.patient_id or patient)


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
