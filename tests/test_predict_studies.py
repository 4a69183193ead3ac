"""predict.py on studies: every form in which they come, what it must equal, gaps, and errors of one line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import predict
from configs.followed import OF_STUDIES
from tests.data.sources.test_studies import write_dicom
from tests.evaluation_runs import call
from tests.served_studies import STUDIES, write_rows, write_studies, write_study_run
from tests.settings_read import settings_read
from utils.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("logging_as_it_was")  # main() takes over logging
CLASSES = ("lesion", "effusion")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_studies(tmp_path_factory.mktemp("studies") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    return write_study_run(tmp_path_factory.mktemp("runs") / "run", data)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def ask(output: Path, checkpoint: object, *arguments: object, code: int = 0) -> list[dict[str, str]]:
    """predict.main: the rows of its table."""
    checkpoints = checkpoint if isinstance(checkpoint, tuple) else (checkpoint,)
    given = [*arguments, "--checkpoint", *checkpoints, "--output", output, "--device", "cpu"]
    assert predict.main([str(argument) for argument in given]) == code
    return rows_of(output / "predictions.csv")


def refused(capsys, checkpoint: object, *arguments: object) -> str:
    """The error."""
    checkpoints = checkpoint if isinstance(checkpoint, tuple) else (checkpoint,)
    given = [*arguments, "--checkpoint", *checkpoints, "--device", "cpu", "--output", "nowhere"]
    assert predict.main([str(argument) for argument in given]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and not Path("nowhere").exists()
    assert err.count("error: ") == 1
    return err.partition("error: ")[2]


def chances(rows: list[dict[str, str]]) -> dict[str, list[float]]:
    name = "study" if "study" in rows[0] else "image"
    return {row[name]: [float(row[f"probability {k}"]) for k in CLASSES] for row in rows}


def notes_of(capsys) -> list[str]:
    return [line.partition("WARNING: ")[2] for line in capsys.readouterr().err.splitlines() if "WARNING: " in line]


# ---- what it must equal


def test_predictions_of_studies_are_those_of_evaluation(data, run, tmp_path):
    """To the last digit that is written, as batches and their order are the same; a view that cannot be read too."""
    broken = shutil.copytree(data, tmp_path / "data")
    for name in ("03_LL.png", "00_PA.png"):
        (broken / name).write_bytes(b"\x89PNG")
    asked = ["--data", broken, "--split", "all", "--output", tmp_path / "scored", "--set", "DATA.max_bad_images=2"]
    assert call(run, *asked, "TRAIN.batch_size=4") == 0
    expected = chances(rows_of(tmp_path / "scored" / "predictions.csv"))
    asked = [broken / "labels.csv", "--table", broken / "clinical.csv", "--batch-size", 8]
    rows = ask(tmp_path / "out", run, *asked, code=3)
    failed = [row for row in rows if row["error"]]
    assert [row["study"] for row in failed] == ["s0"] and "00_PA.png" in failed[0]["error"]
    found = chances([row for row in rows if not row["error"]])
    assert found == expected and len(found) == STUDIES - 1
    assert np.ptp(list(found.values()), axis=0).min() > 0.1
    third = next(row for row in rows if row["study"] == "s3")
    assert (third["images"], third["missing"]) == ("03_PA.png|03_LL.png", "lateral")
    assert third["warnings"].startswith("left out: ") and "03_LL.png" in third["warnings"]
    assert (third["age"], third["sex"], third["patient_id"], third["view"]) == ("43", "M", "p1", "PA|LL")
    assert {row["study"]: row["missing"] for row in rows}["s10"] == "age|sex|lateral"
    content = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert content["counts"] == {"studies": STUDIES, "predicted": STUDIES - 1, "errors": 1, "warnings": 1}
    assert content["studies"][3]["images"] == ["03_PA.png", "03_LL.png"] and "image" not in content["studies"][3]


def test_wide_tables_and_json_say_the_same(data, run, tmp_path):
    """With their columns in them, and studies without a name of their own, of which a row is one."""
    clinical = {row["study_id"]: row for row in rows_of(data / "clinical.csv")}
    long = ask(tmp_path / "long", run, data / "labels.csv", "--table", data / "clinical.csv")
    listed = []
    for row in long:
        said = clinical.get(row["study"], {"age": "", "sex": ""})
        frontal, lateral = [*row["images"].split("|"), ""][:2]
        listed.append((row["study"], frontal, lateral, said["age"], said["sex"]))
    form = ("study_id", "image_frontal", "image_lateral", "Patient Age", "sex")
    wide = ask(tmp_path / "wide", run, write_rows(data / "wide.csv", form, *listed))
    assert chances(wide) == chances(long) and [r["missing"] for r in wide] == [r["missing"] for r in long]
    assert wide[1]["Patient Age"] == "41" and "age" not in wide[1]
    nameless = ask(
        tmp_path / "no", run, write_rows(data / "no.csv", form[1:], *(row[1:] for row in listed)), "--missing"
    )
    assert [row["study"] for row in nameless] == [f"line {n}" for n in range(2, 2 + STUDIES)]
    assert [*chances(nameless).values()] == [*chances(long).values()]
    objects = [
        {"study_id": s, "images": {"PA": f} | ({"LL": side} if side else {}), "age": age or None, "sex": sex}
        for s, f, side, age, sex in listed
    ]
    (data / "asked.json").write_text(json.dumps(objects), encoding="utf-8")
    assert chances(ask(tmp_path / "json", run, data / "asked.json")) == chances(long)


def test_folders_of_studies_whose_files_are_called_by_their_views(data, run, tmp_path, capsys):
    long = ask(tmp_path / "long", run, data / "labels.csv", "--table", data / "clinical.csv")
    for row in long:
        for name in row["images"].split("|"):
            copied = tmp_path / "asked" / row["study"] / {"PA.png": "frontal.png", "LL.png": "LL.png"}[name[3:]]
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / name, copied)
    capsys.readouterr()
    found = ask(tmp_path / "out", run, tmp_path / "asked", "--table", data / "clinical.csv")
    # Sorted by name, LL before frontal: the order of views changes sums by rounding.
    for study, expected in chances(long).items():
        assert chances(found)[study] == pytest.approx(expected, abs=1e-6)
    assert not [note for note in notes_of(capsys) if "without a table" in note]
    (one,) = ask(tmp_path / "one", run, tmp_path / "asked" / "s3", "--table", data / "clinical.csv")
    assert (one["study"], one["images"], one["missing"]) == ("s3", "LL.png|frontal.png", "")


def test_a_folder_of_images_is_of_studies_of_one_with_one_warning(data, run, tmp_path, capsys):
    rows = ask(tmp_path / "out", run, data)
    assert [row["study"] for row in rows] == sorted(path.name for path in data.glob("*.png"))
    assert {row["missing"] for row in rows} == {"age|sex|frontal|lateral"}
    (note,) = [note for note in notes_of(capsys) if "without a table" in note]
    assert note == (
        "21 images come without a table: 21 count as a study each, as nothing says which belong together; unknown for "
        "all: view, age, sex"
    )
    listed = write_rows(data / "list.csv", ("image",), *((row["images"],) for row in rows))
    capsys.readouterr()
    assert chances(ask(tmp_path / "two", run, listed, "--missing-columns")) == chances(rows)


# ---- DICOM


def test_dicom_studies_by_their_headers(data, run, tmp_path, capsys):
    """The model was trained on tables, with another name for studies; the headers say the same."""
    asked = tmp_path / "asked"
    who = {"PatientID": "p1", "PatientAge": "057Y", "PatientSex": "M"}
    write_dicom(asked / "a" / "1.dcm", "1.2.3", ViewPosition="PA", **who)
    write_dicom(asked / "b" / "2.dcm", "1.2.3", ViewPosition="LL", **who)
    write_dicom(asked / "3", "1.2.4", ViewPosition="AP", PatientID="p2", PatientAge="600Y")
    (asked / "cut.dcm").write_bytes((asked / "a" / "1.dcm").read_bytes()[:200])
    rows = {row["study"]: row for row in ask(tmp_path / "out", run, asked, code=3)}
    assert {name: row["images"] for name, row in rows.items()} == {
        "1.2.3": "a/1.dcm|b/2.dcm",
        "1.2.4": "3",
        "cut.dcm": "cut.dcm",
    }
    one, two, cut = rows["1.2.3"], rows["1.2.4"], rows["cut.dcm"]
    assert (one["age"], one["sex"], one["missing"], two["missing"]) == ("057Y", "M", "", "sex|lateral")
    assert cut["error"] and not one["error"] and "age 600 (training: 42 to 53)" in two["warnings"]
    table = write_rows(
        asked / "asked.csv",
        ("image", "study_id", "view", "age", "sex"),
        ("a/1.dcm", "x", "PA", "57", "M"),
        ("b/2.dcm", "x", "LL", "57", "M"),
        ("3", "y", "AP", "600", ""),
    )
    expected = chances(ask(tmp_path / "table", run, table))
    assert [expected["x"], expected["y"]] == [chances([one])["1.2.3"], chances([two])["1.2.4"]]
    # What a table leaves open, headers say: here all but the names of the files.
    bare = write_rows(asked / "bare.csv", ("image",), ("a/1.dcm",), ("b/2.dcm",))
    assert chances(ask(tmp_path / "bare", run, bare))["1.2.3"] == expected["x"]
    ages = write_rows(asked / "clinical.csv", ("study_id", "age"), ("1.2.3", "44"), ("1.2.4", ""))
    three = ask(tmp_path / "three", run, asked / "a", asked / "b", asked / "3", "--table", ages)
    assert [(r["study"], r["age"], r["sex"], r["missing"]) for r in three] == [
        ("1.2.3", "44", "M", ""),
        ("1.2.4", "", "", "age|sex|lateral"),
    ]


def test_headers_are_read_as_the_model_has_its_columns(data, tmp_path):
    """male and female for M and F; a column of numbers takes no words, and an age that is none is unknown."""
    people = rows_of(data / "clinical.csv")
    words = [(row["study_id"], row["age"], {"F": "female", "M": "male"}[row["sex"]]) for row in people]
    write_rows(data / "words_of_sex.csv", ("study_id", "age", "sex"), *words)
    named = write_study_run(tmp_path / "named", data, "DATA.table.file=words_of_sex.csv")
    codes = [(row["study_id"], row["age"], "FM".index(row["sex"])) for row in people]
    write_rows(data / "codes_of_sex.csv", ("study_id", "age", "sex"), *codes)
    columns = "DATA.table={file: codes_of_sex.csv, columns: {age: numeric, sex: numeric}}"
    coded = write_study_run(tmp_path / "coded", data, columns)
    write_dicom(tmp_path / "asked" / "1.dcm", "1.2.3", ViewPosition="PA", PatientAge="045Y", PatientSex="M")
    write_dicom(tmp_path / "asked" / "2.dcm", "1.2.4", ViewPosition="PA", PatientAge="ABC", PatientSex="F")
    one, two = ask(tmp_path / "out", named, tmp_path / "asked")
    assert (one["missing"], two["missing"], two["age"]) == ("lateral", "age|lateral", "ABC")
    assert "sex" not in one["warnings"] + two["warnings"]
    assert [row["missing"] for row in ask(tmp_path / "out", coded, tmp_path / "asked")] == [
        "sex|lateral",
        "age|sex|lateral",
    ]
    for name in ("words_of_sex.csv", "codes_of_sex.csv"):
        (data / name).unlink()


# ---- gaps and strange values


def test_values_unlike_training_are_told_with_column_study_and_count(data, run, tmp_path, capsys):
    table = write_rows(
        data / "strange.csv", ("study_id", "age", "sex"), ("s1", 999, "F"), ("s2", 50, "diverse"), ("s3", 45, "diverse")
    )
    rows = {row["study"]: row["warnings"] for row in ask(tmp_path, run, data / "labels.csv", "--table", table)}
    assert rows["s1"] == "age 999 (training: 42 to 53)"
    assert rows["s2"] == "sex 'diverse' (training: F, M)" and rows["s4"] == ""
    said = "\n".join(notes_of(capsys))
    assert "1 of 3 values of 'age' are far beyond training's 42 to 53" in said and "unit?; studies 's1'" in said
    assert "2 of 3 studies have categories of 'sex'" in said
    assert "'diverse' (2)" in said and "studies 's2', 's3'" in said
    (data / "strange.csv").unlink()


def test_nothing_readable_is_a_failure_and_a_table_alone_is_not(data, run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    listed = write_rows(
        tmp_path / "asked.csv",
        ("image", "study_id", "view", "age", "sex"),
        ("a.png", "bad", "PA", "", ""),
        ("gone.png", "table", "LL", "50", "F"),
    )
    bad, table = ask(tmp_path / "out", run, listed, "--tta", code=3)
    assert "a.png" in bad["error"] and bad["probability lesion"] == ""
    assert table["error"] == "" and table["probability lesion"] and table["missing"] == "frontal|lateral"
    assert "there is no such file" in table["warnings"]
    assert ask(tmp_path / "out", run, tmp_path / "a.png", code=2)[0]["error"]


# ---- heatmaps


def test_heatmaps_of_the_first_studies_with_a_finding(data, run, tmp_path, drawing):
    """All views in one figure, as `python -m explain` draws them; of an ensemble too."""
    asked = data / "labels.csv", "--table", data / "clinical.csv", "--threshold", "0.5"
    with drawing():
        rows = ask(tmp_path / "out", (run, run), *asked, "--heatmaps", "layer_cam:2")
    found = [number for number, row in enumerate(rows) if row["findings"]]
    assert len(found) > 2
    drawn = json.loads((tmp_path / "out" / "predictions.json").read_text("utf-8"))["studies"]
    assert [number for number, row in enumerate(drawn) if row["heatmaps"]] == found[:2]
    for row in (drawn[number] for number in found[:2]):
        assert len(row["heatmaps"]) == len(row["findings"])
        assert all((tmp_path / "out" / name).stat().st_size > 5000 for name in row["heatmaps"])
    assert len(list((tmp_path / "out" / "heatmaps").iterdir())) == sum(len(drawn[n]["heatmaps"]) for n in found[:2])


# ---- several models


def test_an_ensemble_of_studies_is_the_mean_and_each_has_its_own_table(data, run, tmp_path):
    other = write_study_run(
        tmp_path / "other", data, "DATA.table.columns={sex: categorical}", "DATA.image_size=40", seed=1
    )
    asked = data / "labels.csv", "--table", data / "clinical.csv", "--tta"
    both = chances(ask(tmp_path / "both", (run, other), *asked))
    one, two = (chances(ask(tmp_path / "single", single, *asked)) for single in (run, other))
    for study, found in both.items():
        assert found == pytest.approx(np.mean([one[study], two[study]], axis=0), abs=2e-9)
    assert one["s3"] != two["s3"]


# ---- the user's errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["labels.csv"], "has no column 'age', 'sex', which the model was trained with"),
        (["list.csv"], "has no column 'study_id' (of studies), 'view'"),
        (["labels.csv", "--table", "gone.csv"], "--table: there is no file"),
        (["labels.csv", "--table", "labels.csv"], "has no column 'age', 'sex'"),
        (["labels.csv", "--table", "clinical.csv", "--heatmaps", "0"], "a whole number above 0"),
        (["labels.csv", "--table", "clinical.csv", "--set", "DATA.max_views=1"], "DATA.max_views is 1: raise it"),
        (["labels.csv", "--table", "clinical.csv", "--set", "DATA.view_kinds={one: [PA]}"], "kinds of view"),
        (["labels.csv", "again.csv", "--table", "clinical.csv"], "study 's0' is in '"),
        (["words.csv"], "'forty' is no number"),
    ],
)
def test_errors_are_one_line(data, run, capsys, tmp_path, monkeypatch, arguments, words):
    write_rows(data / "list.csv", ("image", "age", "sex"), ("00_PA.png", "50", "F"))
    write_rows(data / "words.csv", ("image", "study_id", "view", "age", "sex"), ("00_PA.png", "s", "PA", "forty", "F"))
    shutil.copy(data / "labels.csv", data / "again.csv")
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, run, *(data / one if one.endswith(".csv") else one for one in arguments))


def test_models_that_do_not_go_together(data, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = data / "labels.csv", "--table", data / "clinical.csv"
    alone = ["DATA.study_column=null", "DATA.view_kinds=null", "DATA.table={file: null, columns: []}"]
    single = write_study_run(
        tmp_path / "single", data, *alone, "MODEL.views.aggregator=null", "MODEL.table.fusion=null"
    )
    assert "takes studies" in refused(capsys, (single, run), *asked)
    line = refused(capsys, single, *asked, "--missing-columns", "--set", "DATA.max_views=3")
    assert "--table, --missing-columns, --set DATA.max_views" in line and "takes single images" in line
    kinds = write_study_run(tmp_path / "kinds", data, "DATA.view_kinds={frontal: [PA], lateral: [LL, AP]}")
    assert "ask them one by one" in refused(capsys, (run, kinds), *asked)


def test_a_file_that_does_not_say_its_encoding(data, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = load_checkpoint(run / "best_model.pth")
    held.pop("table")
    save_checkpoint(held, tmp_path / "x.pth")
    assert "does not say how its table is encoded" in refused(capsys, tmp_path / "x.pth", data / "labels.csv")


def test_settings_of_studies_are_followed(data, run, tmp_path, monkeypatch):
    listed = write_rows(
        data / "words2.csv", ("image", "visit", "view", "age", "sex"), ("03_PA.png", "v", "a.p.", "50", "F")
    )
    settings = "DATA.study_column=visit", "DATA.view_kinds={frontal: [a.p.], lateral: [LL]}", "DATA.max_views=9"
    done: list[list[dict[str, str]]] = []
    read = settings_read(lambda: done.append(ask(tmp_path, run, listed, "--set", *settings)), monkeypatch)
    assert read >= set(OF_STUDIES) and (done[0][0]["study"], done[0][0]["missing"]) == ("v", "lateral")
