"""Whose images results are of: said where files say it, left out everywhere where that is asked for, and --strict."""

import json
import re
import shutil
from pathlib import Path

import pytest

import predict
from data.profile import TrainingData
from data.readers.dicom_identity import IDENTIFIERS, naming_texts, read_attributes
from models.saved_model import load_model
from tests.data.sources.test_studies import write_dicom
from tests.served_studies import write_studies, write_study_run
from tests.test_predict import read_results, run, write_model
from utils.identifiers import without_names

pytestmark = pytest.mark.usefixtures("logging_as_it_was")  # main() takes over logging

WHO = {
    "PatientID": "MRN-4711",
    "PatientName": "Doe^Jane",
    "SOPInstanceUID": "1.2.826.0.1.77.5",
    "AccessionNumber": "ACC0815",
    "Modality": "DX",
    "ViewPosition": "PA",
    "BodyPartExamined": "CHEST",
}
STUDY = "1.2.826.0.1.77"
SECRETS = ("4711", "Doe", "Jane", "1.2.826", "ACC0815")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Trained on DICOM files of two classes, all of them CR of chests."""
    folder = tmp_path_factory.mktemp("trained")
    for number in range(8):
        name = folder / "data" / ("ill", "well")[number % 2] / f"{number}.dcm"
        of = {"PatientID": f"p{number}", "Modality": ("CR", "DX")[number % 3 == 0], "BodyPartExamined": "chest"}
        write_dicom(name, f"1.2.{number}", SOPInstanceUID=f"1.2.{number}.1", **of)
    return write_model(folder / "one.pth", folder / "data")


@pytest.fixture
def asked(tmp_path) -> Path:
    """A file with everything, one named after its patient that cannot be read, one that says nothing, and a PNG."""
    folder = tmp_path / "Doe_Jane"
    write_dicom(folder / f"{WHO['SOPInstanceUID']}.dcm", STUDY, **WHO)
    write_dicom(folder / "nothing.dcm", "")
    whole = (folder / "nothing.dcm").read_bytes()
    write_dicom(folder / "MRN-4711 cut.dcm", STUDY, **WHO)
    cut = folder / "MRN-4711 cut.dcm"
    cut.write_bytes(cut.read_bytes()[: -len(whole) // 4])
    return folder


def test_a_file_says_whose_it_is(asked, checkpoint, tmp_path):
    rows = {row["image"]: row for row in run(tmp_path / "out", asked, "--checkpoint", checkpoint, code=3)}
    whole = rows[f"{WHO['SOPInstanceUID']}.dcm"]
    assert {name: whole[name] for name in IDENTIFIERS} == {
        **{name: WHO[name] for name in IDENTIFIERS if name in WHO},
        "StudyInstanceUID": STUDY,
    }
    assert rows["MRN-4711 cut.dcm"]["error"] and rows["MRN-4711 cut.dcm"]["PatientID"] == "MRN-4711"
    assert rows["nothing.dcm"]["PatientID"] == "" and not rows["nothing.dcm"]["error"]
    said = {row["image"]: row["identifiers"] for row in read_results(tmp_path / "out")["images"]}
    assert said["nothing.dcm"].keys() <= {"SOPInstanceUID", "Modality"} and said[whole["image"]]["Modality"] == "DX"
    table = asked / "list.csv"
    table.write_text(f"image,PatientID,Modality\n{whole['image']},other,x\n", "utf-8")
    (row,) = run(tmp_path / "table", table, "--checkpoint", checkpoint)
    assert (row["PatientID"], row["input PatientID"], row["input Modality"]) == ("MRN-4711", "other", "x")


def test_images_without_headers_have_no_such_columns(checkpoint, tmp_path, asked):
    from PIL import Image

    Image.new("L", (16, 16), 90).save(tmp_path / "a.png")
    (row,) = run(tmp_path / "out", tmp_path / "a.png", "--checkpoint", checkpoint)
    assert "PatientID" not in row and "identifiers" not in read_results(tmp_path / "out")["images"][0]


def everything(folder: Path) -> str:
    """All names and contents of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    texts = (path.read_bytes().decode("utf-8", "replace") for path in files if path.suffix != ".png")
    return "\n".join([*(str(path.relative_to(folder)) for path in files), *texts])


def test_without_identifiers_nothing_names_a_file_or_a_person(asked, checkpoint, tmp_path, capsys, drawing):
    """Table, rows, JSON, what --resume compares, names of heatmaps, and the log."""
    table = asked / "list.csv"
    names = sorted(path.name for path in asked.glob("*.dcm"))
    lines = [f"{name},MRN-4711,Jane Doe" for name in [*names, "Doe gone.dcm"]]
    table.write_text("image,patient_id,who\n" + "\n".join(lines) + "\n", "utf-8")
    (asked / "Doe report.txt").write_text("x", "utf-8")
    for inputs, count in ((asked, 3), (table, 4)):
        out = tmp_path / f"out{count}"
        capsys.readouterr()
        with drawing():
            rows = run(out, inputs, "--checkpoint", checkpoint, "--no-identifiers", "--heatmaps", code=3)
        assert [row["image"] for row in rows] == [f"{number:05d}" for number in range(count)]
        assert {*rows[0]} == {"image", "probability ill", "probability well", "findings", "warnings", "error"}
        assert sum(bool(row["error"]) for row in rows) == count - 2
        shown = capsys.readouterr()
        found = everything(out) + (shown.out + shown.err).replace(str(tmp_path), "")
        assert not [secret for secret in (*SECRETS, "gone", "cut", "report.txt", "nothing.dcm") if secret in found]
        assert read_results(out)["inputs"] == []
    named = run(tmp_path / "named", asked, "--checkpoint", checkpoint, code=3)
    assert [row["probability ill"] for row in named] == [row["probability ill"] for row in rows[:3]]


def test_studies_without_identifiers(tmp_path, capsys):
    data = write_studies(tmp_path / "data")
    checkpoint = write_study_run(tmp_path / "run", data)
    for number, view in enumerate(("PA", "LL")):
        attributes = {**WHO, "SOPInstanceUID": f"1.2.826.0.{number}", "ViewPosition": view, "PatientAge": "057Y"}
        write_dicom(tmp_path / "Doe" / f"{number}.dcm", STUDY, **attributes)
    write_dicom(tmp_path / "Doe" / "cut.dcm", f"{STUDY}.9", **WHO)
    cut = tmp_path / "Doe" / "cut.dcm"
    cut.write_bytes(cut.read_bytes()[:-200])
    (named,) = [
        r for r in run(tmp_path / "named", tmp_path / "Doe", "--checkpoint", checkpoint, code=3) if not r["error"]
    ]
    assert (named["study"], named["PatientID"], named["SOPInstanceUID"]) == (
        STUDY,
        "MRN-4711",
        "1.2.826.0.0|1.2.826.0.1",
    )
    assert named["ViewPosition"] == "PA|LL" and named["Modality"] == "DX"
    capsys.readouterr()
    rows = run(tmp_path / "out", tmp_path / "Doe", "--checkpoint", checkpoint, "--no-identifiers", code=3)
    assert [(row["study"], row["images"]) for row in rows] == [("00000", "00000-1|00000-2"), ("00001", "00001-1")]
    shown = capsys.readouterr()
    found = everything(tmp_path / "out") + (shown.out + shown.err).replace(str(tmp_path), "")
    assert not [secret for secret in SECRETS if secret in found] and rows[1]["error"]
    assert rows[0]["probability lesion"] == named["probability lesion"]


def test_redacted_texts():
    text = "cannot read '/a/O'Neil x.dcm': PatientID 'p 7' of O'Neil x, study 1.2.840.10008.5 is \"odd\""
    found = without_names(text, {"p 7"}, [Path("/a/O'Neil x.dcm")])
    assert not re.search("Neil|p 7|1.2.840|odd|dcm", found) and found.startswith("cannot read '***")
    assert naming_texts({"PatientName": "Doe^Jo^X=ドウ", "PatientID": "12"}) == {"Doe^Jo^X=ドウ", "Doe"}


# ---- --strict


def test_a_checkpoint_knows_modalities_and_body_parts(checkpoint):
    described = load_model(checkpoint).description["training_data"]
    assert {*described["modalities"]} == {"CR", "DX"} and {*described["body_parts"]} == {"CHEST"}
    assert sum(described["modalities"].values()) == sum(described["body_parts"].values()) == described["of"]
    profile = TrainingData.from_dict(described, volumes=False)
    other = {"Modality": "mr", "BodyPartExamined": "HEAD"}
    assert profile.other_acquisition(other) == ["modality MR (training: CR, DX)", "body part HEAD (training: CHEST)"]
    assert profile.other_acquisition(other, shown=False)[0] == "another modality (training: CR, DX)"
    assert profile.other_acquisition({"Modality": " dx ", "BodyPartExamined": "Chest"}) == []
    assert profile.other_acquisition({}) == []


def test_other_modalities_are_told_and_refused_with_strict(checkpoint, tmp_path):
    folder = tmp_path / "asked"
    write_dicom(folder / "a.dcm", STUDY, **WHO)
    write_dicom(folder / "b.dcm", STUDY, **WHO | {"Modality": "MR"})
    write_dicom(folder / "c.dcm", STUDY, **WHO | {"BodyPartExamined": "FOOT"})
    like, modality, part = run(tmp_path / "out", folder, "--checkpoint", checkpoint)
    assert "modality" not in like["warnings"] and "body part" not in like["warnings"]
    assert modality["warnings"].startswith("modality MR (training: CR, DX)") and modality["probability ill"]
    assert "body part FOOT (training: CHEST)" in part["warnings"]
    strict = run(tmp_path / "strict", folder, "--checkpoint", checkpoint, "--strict", code=3)
    assert [bool(row["error"]) for row in strict] == [False, True, True] and strict[0] == like
    assert strict[1]["error"] == "refused by --strict: modality MR (training: CR, DX)"
    assert strict[1]["probability ill"] == strict[1]["findings"] == strict[1]["warnings"] == ""
    shutil.copy(folder / "b.dcm", tmp_path / "b.dcm")
    (row,) = run(tmp_path / "alone", tmp_path / "b.dcm", "--checkpoint", checkpoint, "--strict", code=2)
    assert row["error"]
    run(tmp_path / "hidden", folder, "--checkpoint", checkpoint, "--strict", "--no-identifiers", code=3)
    assert "MR (" not in everything(tmp_path / "hidden") and "another modality" in everything(tmp_path / "hidden")


def test_a_checkpoint_that_does_not_know_is_refused_with_strict(checkpoint, tmp_path, capsys):
    from utils.checkpoint import load_checkpoint, save_checkpoint

    write_dicom(tmp_path / "a.dcm", STUDY, **WHO)
    held = load_checkpoint(checkpoint)
    arguments = [str(tmp_path / "a.dcm"), "--output", str(tmp_path / "out"), "--device", "cpu", "--strict"]
    del held["training_data"]["body_parts"]
    save_checkpoint(held, tmp_path / "half.pth")
    assert predict.main([*arguments, "--checkpoint", str(tmp_path / "half.pth")]) == 0
    assert "does not say of which body part its training images were" in capsys.readouterr().err
    del held["training_data"]["modalities"]
    save_checkpoint(held, tmp_path / "old.pth")
    assert predict.main([*arguments, "--checkpoint", str(tmp_path / "old.pth")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --strict: '") and "leave out --strict" in error


def test_a_folder_of_slices_is_its_first_file_without_an_instance(tmp_path):
    for number in range(2):
        write_dicom(tmp_path / "series" / f"{number}.dcm", STUDY, **WHO | {"SOPInstanceUID": f"1.2.{number}"})
    found = read_attributes(tmp_path / "series")
    assert found["PatientID"] == "MRN-4711" and "SOPInstanceUID" not in found
    assert read_attributes(tmp_path) == read_attributes(tmp_path / "none") == {}
    assert json.dumps(found)
