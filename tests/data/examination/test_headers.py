"""Patients that only DICOM headers know."""

from pathlib import Path

import numpy as np
import pytest

from configs.default_config import Config
from data.builder import open_data
from data.examination.headers import header_findings
from tests.doctor_cases import write_dicom


def told(root: Path, sides: list[str]) -> list[str]:
    index = open_data(Config.from_overrides([f"DATA.data_dir={root}"]))
    assignment = np.array([sides[number % len(sides)] for number in range(len(index.studies))])
    return [one.message for one in header_findings(index, assignment, None)]


def test_folders_of_a_pacs_are_patients(tmp_path):
    for number in range(6):
        write_dicom(tmp_path / f"PAT{number // 2}" / "series" / str(number), number, PatientID=f"PAT{number // 2}")
    (found,) = told(tmp_path, ["train"])
    assert found.startswith("each of the 3 classes holds the images of one patient alone")


@pytest.mark.parametrize("sides, count", [(["train"], 0), (["train", "val"], 1)])
def test_one_patient_on_two_sides(tmp_path, sides, count):
    for number in range(8):
        write_dicom(tmp_path / "AB"[number % 2] / str(number), number, PatientID=f"P{number // 4}")
    found = told(tmp_path, sides)
    assert len(found) == count and all(one.startswith("by their DICOM headers 2 patients are in more") for one in found)


def test_headers_that_name_nobody(tmp_path):
    for number in range(4):
        write_dicom(tmp_path / "AB"[number % 2] / str(number), number, PatientID="" if number else "Anonymous")
    (tmp_path / "A" / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish")
    assert told(tmp_path, ["train", "val"]) == []
