"""Structured reports and secondary captures: valid to dciodvfy where it is installed, and saying what the row says."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

import predict
from configs.errors import PredictionError
from inference.dicom_output import CAUTION, AskedModels, DicomOutput, secondary_capture, structured_report
from inference.results import Row
from tests.data.readers.dicom_cases import dataset_of, ramp
from tests.data.sources.test_studies import write_dicom
from tests.served_studies import write_studies, write_study_run
from tests.test_predict import read_results, run, write_model

pytest.importorskip("highdicom", reason='DICOM output needs it: pip install "highdicom>=0.25"')

ASKED = AskedModels(("Pneumonia", "结节", "x" * 80), ("ab" * 32,), "0.5, as none were chosen", "1.2")
WHO = {
    "PatientID": "MRN-4711",
    "PatientName": "Müller^Jörg",
    "PatientBirthDate": "19700102",
    "PatientSex": "M",
    "AccessionNumber": "A1",
    "StudyID": "S1",
    "StudyDate": "20240102",
    "StudyTime": "101112",
    "Modality": "DX",
    "BodyPartExamined": "CHEST",
    "SpecificCharacterSet": "ISO_IR 100",
}


def source(**attributes: str) -> pydicom.Dataset:
    dataset = dataset_of(ramp(12), 12, **{"StudyInstanceUID": "1.2.3", **WHO, **attributes})
    del dataset.PixelData
    return dataset


def row_of(findings: tuple[int, ...] = (0,), heatmaps: tuple[str, ...] = ()) -> Row:
    row = Row("a.dcm", heatmaps=heatmaps, findings=findings)
    row.probabilities = np.array([0.123456789012, 1e-12, 1.0])
    return row


def check_valid(path: Path) -> None:
    """No errors of dciodvfy (dicom3tools); without it, what pydicom and highdicom check when they write and read."""
    assert pydicom.dcmread(path).SOPInstanceUID
    if shutil.which("dciodvfy"):
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert not errors, errors


def contents(item: pydicom.Dataset) -> list[pydicom.Dataset]:
    """All content items of a document."""
    inner = [one for child in item.get("ContentSequence", []) for one in contents(child)]
    return [item, *inner]


def written(tmp_path: Path, dataset: pydicom.Dataset) -> pydicom.Dataset:
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    check_valid(tmp_path / "x.dcm")
    return pydicom.dcmread(tmp_path / "x.dcm")


def test_a_report_says_what_the_row_says(tmp_path):
    report = written(tmp_path, structured_report(row_of(), [source()], ASKED))
    for name in ("PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"):
        assert report.get(name) == WHO[name]
    assert report.PatientName == WHO["PatientName"] and report.StudyInstanceUID == "1.2.3"
    assert (
        report.SeriesInstanceUID != "1.2.3"
        and report.Modality == "SR"
        and "not for clinical" in report.SeriesDescription
    )
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    items = contents(report)
    names = [item.ConceptNameCodeSequence[0] for item in items if "ConceptNameCodeSequence" in item]
    numbers = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.MeasuredValueSequence[0]
        for item in items
        if item.get("ValueType") == "NUM"
    }
    assert float(numbers["Probability of Pneumonia"].NumericValue) == 0.123456789
    assert float(numbers["Probability of 结节"].NumericValue) == 1e-12 and len(numbers) == 3
    units = {n.MeasurementUnitsCodeSequence[0].CodeValue for n in numbers.values()}
    assert units == {"1"}
    called = [
        i.ConceptNameCodeSequence[0].CodeMeaning
        for i in items
        if i.get("ConceptCodeSequence") and i.ConceptCodeSequence[0].CodeValue == "CALLED"
    ]
    assert called == ["Pneumonia"]
    assert all(len(name.CodeValue) <= 16 and len(name.CodeMeaning) <= 64 for name in names)
    texts = [item.TextValue for item in items if item.get("ValueType") == "TEXT"]
    assert CAUTION in texts and any("ab" * 32 in text for text in texts) and "HybridMedNet" in texts
    (image,) = [i for i in items if i.get("ValueType") == "IMAGE"]
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"


@pytest.mark.parametrize(
    ("attributes", "site", "side"),
    [
        ({}, "Chest", None),
        ({"BodyPartExamined": "BREAST", "ImageLaterality": "L", "Modality": "MG"}, "Breast", "Left"),
        ({"BodyPartExamined": "BREAST", "Laterality": "R", "Modality": "MG"}, "Breast", "Right"),
        ({"BodyPartExamined": "BREAST", "ImageLaterality": "B"}, "Breast", None),
        ({"BodyPartExamined": "NOWHERE"}, None, None),
    ],
)
def test_sites_and_sides_are_those_of_the_images(attributes, site, side):
    items = contents(structured_report(row_of(), [source(**attributes)], ASKED))
    said = {
        i.ConceptNameCodeSequence[0].CodeMeaning: i.ConceptCodeSequence[0].CodeMeaning
        for i in items
        if i.get("ConceptCodeSequence")
    }
    assert said.get("Finding Site") == site and said.get("Laterality") == side


def test_uids_are_functions_of_what_is_said():
    def uids(row: Row, of: pydicom.Dataset, asked: AskedModels = ASKED) -> tuple[str, str]:
        report = structured_report(row, [of], asked)
        return report.SeriesInstanceUID, report.SOPInstanceUID

    first = uids(row_of(), source())
    assert first == uids(row_of(), source(PatientID="other")) and all(len(uid) <= 64 for uid in first)
    other_row = row_of()
    other_row.probabilities = other_row.probabilities / 2
    others = [
        uids(other_row, source()),
        uids(row_of(), source(SOPInstanceUID="1.2.3.5")),
        uids(row_of(), source(), AskedModels(ASKED.class_names, ("cd" * 32,), ASKED.source, "1.2")),
    ]
    assert len({first[1], *(uid for _, uid in others)}) == 4
    assert others[0][0] == others[1][0] == first[0] != others[2][0]


def test_a_secondary_capture_is_marked_as_burnt_in(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    of = source(
        BodyPartExamined="BREAST",
        ImageLaterality="L",
        LossyImageCompression="01",
        LossyImageCompressionMethod="ISO_10918_1",
        LossyImageCompressionRatio="10",
    )
    image = written(tmp_path, secondary_capture(tmp_path / "map.png", 1, row_of(), [of], ASKED))
    assert (image.BurnedInAnnotation, image.ImageLaterality, image.BodyPartExamined) == ("YES", "L", "BREAST")
    assert image.PatientID == "MRN-4711" and image.ImageComments == CAUTION and image.LossyImageCompression == "01"
    assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
    found = image.pixel_array
    assert (found[:60] == pixels).all() and found.shape[0] > 60 and (found[60:] < 100).any()


def test_headers_that_lack_what_is_needed(tmp_path):
    bare = source()
    for name in (*WHO, "SpecificCharacterSet"):
        if name in bare:
            del bare[name]
    written(tmp_path, structured_report(row_of(), [DicomOutput(tmp_path, ["sr"], ASKED) and prepared(bare)], ASKED))
    for keyword in ("StudyInstanceUID", "SOPInstanceUID"):
        of = source()
        del of[keyword]
        with pytest.raises(PredictionError, match=f"no DICOM output for 'a.dcm': its file has no {keyword}"):
            DicomOutput(tmp_path, ["sr"], ASKED).write(row_of(), [of])
    with pytest.raises(PredictionError, match=r"no DICOM output for .a\.dcm."):
        DicomOutput(tmp_path, ["sr"], ASKED).write(row_of(), [source(PatientSex="unclear")])


def prepared(dataset: pydicom.Dataset) -> pydicom.Dataset:
    from inference.dicom_output import _prepared

    return _prepared(dataset, "a.dcm")


@pytest.mark.usefixtures("logging_as_it_was")
def test_from_the_command_line(tmp_path, capsys, drawing):
    for number in range(8):
        write_dicom(tmp_path / "data" / ("ill", "well")[number % 2] / f"{number}.dcm", f"1.2.{number}")
    checkpoint = write_model(tmp_path / "one.pth", tmp_path / "data")
    folder = tmp_path / "asked"
    write_dicom(folder / "a.dcm", "1.2.3", **WHO)
    write_dicom(folder / "b.dcm", "", SOPInstanceUID="1.2.3.9")  # of no study
    given = ["--checkpoint", checkpoint, "--dicom-output", "both", "--num-workers", 0]
    with drawing():
        rows = run(tmp_path / "out", folder, *given, code=3)
    assert "its file has no StudyInstanceUID" in rows[1]["warnings"] and not rows[0]["warnings"].count("DICOM")
    whole, without = read_results(tmp_path / "out")["images"]
    assert len(whole["dicom"]) == 1 + len(whole["heatmaps"]) and "dicom" not in without
    for name in whole["dicom"]:
        check_valid(tmp_path / "out" / name)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "dicom").iterdir()}
    with drawing():
        run(tmp_path / "out", folder / "a.dcm", *given)
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "dicom").iterdir()} == before
    Image.new("L", (16, 16)).save(folder / "c.png")
    for more, words in (
        ([folder], "1 of the inputs are no DICOM files ('c.png')"),
        ([folder / "a.dcm", "--no-identifiers"], "--no-identifiers"),
    ):
        arguments = [*more, *given, "--output", tmp_path / "refused", "--device", "cpu"]
        assert predict.main(list(map(str, arguments))) == 2
        assert words in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "refused").exists()


@pytest.mark.usefixtures("logging_as_it_was")
def test_a_study_has_one_report_of_all_its_images(tmp_path):
    data = write_studies(tmp_path / "data")
    checkpoint = write_study_run(tmp_path / "run", data)
    for number, view in enumerate(("PA", "LL")):
        own = {**WHO, "SOPInstanceUID": f"1.2.3.{number}", "ViewPosition": view, "PatientAge": "050Y"}
        write_dicom(tmp_path / "asked" / f"{number}.dcm", "1.2.3", **own)
    run(tmp_path / "out", tmp_path / "asked", "--checkpoint", checkpoint, "--dicom-output", "sr")
    (study,) = read_results(tmp_path / "out")["studies"]
    (name,) = study["dicom"]
    check_valid(tmp_path / "out" / name)
    items = contents(pydicom.dcmread(tmp_path / "out" / name))
    images = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items if i.get("ValueType") == "IMAGE"]
    assert images == ["1.2.3.0", "1.2.3.1"]
