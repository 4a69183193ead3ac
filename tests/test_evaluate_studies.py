"""evaluate.py on models of studies: inputs that are withheld, and the studies of another hospital."""

import re
from pathlib import Path

import pytest

from tests.evaluation_runs import call, metrics_of, write_images, write_run
from tests.study_runs import rows_of_studies, write_rows, write_studies, write_study_run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_studies(tmp_path_factory.mktemp("studies") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    return write_study_run(tmp_path_factory.mktemp("runs") / "run", data)


def auroc_of(folder: Path) -> float:
    return metrics_of(folder)["mean"]["figures"]["auroc"]["value"]


def elsewhere(run: Path, other: Path, tmp_path: Path, *more: object) -> int:
    return call(run, "--data", other, "--split", "all", "--no-save", "--output", tmp_path / "out", *more)


def error_of(capsys) -> str:
    """The one error; it may have further lines."""
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and "Traceback" not in err, err
    return err[err.index("error: ") :]


def test_what_is_withheld_is_a_gap_like_any_other(run, data, tmp_path, capsys):
    assert call(run, "--split", "all", "--no-save", "--without", "table", "lateral", "age", "images") == 0
    results = metrics_of(run / "evaluation-all")
    found = {one["input"]: one for one in results["without"]}
    assert list(found) == ["table", "lateral", "age", "images"]
    images, table = rows_of_studies()
    others = {
        "lateral": ([row for row in images if row["view"] != "LL"], table),
        "age": (images, [row | {"age": ""} for row in table]),
        "table": (images, []),
    }
    for name, (own_images, own_table) in others.items():
        other = write_studies(tmp_path / name, own_images, own_table)
        for row in own_images:  # the same pixels under the same names
            (other / row["image"]).write_bytes((data / row["image"]).read_bytes())
        more = ["--without", "table"] if name == "table" else []
        assert (
            call(run, "--data", other, "--split", "all", "--no-save", "--output", tmp_path / f"of {name}", *more) == 0
        )
        mean = found[name]["comparison"]["mean"]
        assert mean["other_auroc"] == pytest.approx(auroc_of(tmp_path / f"of {name}"), abs=1e-9)
        assert mean["auroc"] == pytest.approx(auroc_of(run / "evaluation-all"), abs=1e-9)
        assert mean["auroc"] != mean["other_auroc"]
        assert mean["difference"]["value"] == pytest.approx(mean["auroc"] - mean["other_auroc"], abs=1e-9)
        assert mean["difference"]["low"] < mean["difference"]["value"] < mean["difference"]["high"]
    counts = {name: (one["studies"], one["studies_with_it"], one["left_out"]) for name, one in found.items()}
    ages = sum(bool(row["age"]) for row in table)
    assert counts == {"table": (40, 32, 0), "lateral": (40, 20, 0), "age": (40, ages, 0), "images": (32, 32, 8)}
    shown = capsys.readouterr().out
    assert "what each input brings" in shown and re.search(r"lateral\s+[+-]0\.\d{3} \[.*20 of 40", shown)
    page = (run / "evaluation-all" / "report.html").read_text(encoding="utf-8")
    assert "What each input brings" in page and "8 studies have nothing but &#39;images&#39;" in page


def test_groups_of_views_and_of_the_table_come_by_themselves(run):
    assert call(run, "--split", "all", "--no-save", "--subgroups", "sex") == 0
    found = {one["column"]: one["groups"] for one in metrics_of(run / "evaluation-all")["subgroups"]}
    assert list(found) == ["sex", "views", "table"]
    groups = {column: {group["name"]: group["images"] for group in found[column]} for column in ("views", "table")}
    assert groups["views"] == {"frontal only": 20, "frontal + lateral": 20}
    with_age = sum(bool(row["age"]) for row in rows_of_studies()[1])
    assert groups["table"] == {"complete": with_age, "gaps": 32 - with_age, "no table": 8}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("laterl", "did you mean 'lateral'?"),
        ("weight", "(it has table, images, frontal, lateral, other, age, sex)"),
    ],
)
def test_what_is_no_input_is_an_error_with_what_there_is(name, words, run, capsys):
    assert call(run, "--without", name) == 2
    assert f"--without: '{name}' is no input of this model" in (error := error_of(capsys)) and words in error


def test_a_model_of_single_images_has_nothing_to_withhold(tmp_path, capsys):
    run = write_run(tmp_path / "run", write_images(tmp_path / "data"))
    assert call(run, "--without", "table") == 2
    assert "nothing can be withheld" in error_of(capsys)
    assert call(run, "--split", "all", "--no-save") == 0
    assert metrics_of(run / "evaluation-all")["subgroups"] == []


def test_single_images_with_a_table_can_do_without_either(data, tmp_path, capsys):
    images, table = rows_of_studies()
    ages = {row["study_id"]: row for row in table}
    frontal = [row | ages.get(row["study_id"], {"age": "", "sex": ""}) for row in images if row["view"] == "PA"]
    alone = write_studies(tmp_path / "data", [without_key("study_id")(row) for row in frontal], [])
    settings = ["DATA.study_column=null", "DATA.view_kinds=null", "DATA.table.file=null", "MODEL.views.aggregator=null"]
    run = write_study_run(tmp_path / "run", alone, *settings)
    assert call(run, "--split", "all", "--no-save", "--without", "images", "table") == 0
    found = metrics_of(run / "evaluation-all")["without"]
    assert [(one["input"], one["studies"], one["left_out"]) for one in found] == [("images", 32, 8), ("table", 40, 0)]
    assert all(one["means"]["brier"]["value"] != one["means"]["brier"]["other_value"] for one in found)
    assert call(run, "--without", "frontal") == 2
    assert "(it has table, images, age, sex)" in error_of(capsys)


def changed(tmp_path: Path, images=None, table=None) -> Path:
    """Another hospital's studies: rows of both files as these functions change them; table 'none': no such file."""
    own_images, own_table = rows_of_studies()
    rows = [new for row in own_images for new in ([images(row)] if images else [row]) if new is not None]
    cells = [] if table == "none" else [table(row) if table else row for row in own_table]
    return write_studies(tmp_path / "other", rows, cells)


def without_key(name: str):
    return lambda row: {key: value for key, value in row.items() if key != name}


def renamed(old: str, new: str):
    return lambda row: {new if key == old else key: value for key, value in row.items()}


def test_data_without_the_table_are_refused_until_that_is_said(run, tmp_path, capsys):
    other = changed(tmp_path, table="none")
    assert elsewhere(run, other, tmp_path) == 2
    error = error_of(capsys)
    assert "there is no" in error and "clinical.csv" in error and "--without table" in error
    assert elsewhere(run, other, tmp_path, "--without", "age") == 2  # sex is not there either
    assert "--without table" in error_of(capsys)
    assert elsewhere(run, other, tmp_path, "--without", "table") == 0
    results = metrics_of(tmp_path / "out")
    (one,) = results["without"]
    assert (one["studies_with_it"], one["comparison"]) == (0, None)
    assert "'table' is missing for all studies: every figure is without it." in results["notes"]
    write_rows(other / "patients.csv", rows_of_studies()[1])
    assert elsewhere(run, other, tmp_path, "--set", "DATA.table.file=patients.csv", "--without", "table") == 0
    assert metrics_of(tmp_path / "out")["without"][0]["studies_with_it"] == 32


def test_a_column_that_is_not_there_is_refused_until_that_is_said(run, tmp_path, capsys):
    other = changed(tmp_path, table=renamed("age", "agee"))
    assert elsewhere(run, other, tmp_path) == 2
    error = error_of(capsys)
    assert "'age' is no column" in error and "did you mean 'agee'?" in error and "--without COLUMN" in error
    assert elsewhere(run, other, tmp_path, "--without", "age", "sex") == 0
    assert [one["studies_with_it"] for one in metrics_of(tmp_path / "out")["without"]] == [0, 32]


def test_a_column_whose_cells_cannot_be_read_is_refused_or_left_out(run, tmp_path, capsys):
    other = changed(tmp_path, table=lambda row: row | {"age": f"{row['age']} years"})
    assert elsewhere(run, other, tmp_path) == 2
    assert "line 2, column 'age': '41 years' is no number" in error_of(capsys)
    assert elsewhere(run, other, tmp_path, "--without", "age") == 0
    text = capsys.readouterr().err
    assert "column 'age' counts as unknown for all studies" in text


def test_values_in_another_unit_are_told_with_their_range_and_count(run, tmp_path, capsys):
    other = changed(tmp_path, table=lambda row: row | {"age": row["age"] and str(12 * int(row["age"]))})
    assert elsewhere(run, other, tmp_path) == 0
    text = capsys.readouterr().err
    told = re.search(
        r"the data: (\d+) of (\d+) values of 'age' are far beyond training's \d+ to \d+, from (\d+) to (\d+)",
        text,
    )
    ages = [12 * int(row["age"]) for row in rows_of_studies()[1] if row["age"]]
    assert told and [int(text) for text in told.groups()] == [len(ages), len(ages), min(ages), max(ages)]
    assert any("are they in another unit?" in note for note in metrics_of(tmp_path / "out")["notes"])


def test_categories_that_training_never_met_are_told(run, tmp_path, capsys):
    other = changed(tmp_path, table=lambda row: row | {"sex": {"F": "f", "M": "männlich"}[row["sex"]]})
    assert elsewhere(run, other, tmp_path) == 0
    text = capsys.readouterr().err
    assert "categories of 'sex' that are not in 2 training studies and count as 'other': 'männlich'" in text


def test_decimal_commas_are_numbers_where_the_file_says_so(run, tmp_path):
    other = changed(tmp_path)
    cells = [row | {"age": row["age"] and f"{row['age']},0"} for row in rows_of_studies()[1]]
    assert elsewhere(run, other, tmp_path, "--without", "age") == 0
    before = metrics_of(tmp_path / "out")
    write_rows(other / "clinical.csv", cells, ";")
    assert elsewhere(run, other, tmp_path, "--without", "age") == 0
    assert metrics_of(tmp_path / "out")["mean"] == before["mean"]


def test_views_under_other_names_are_told_or_said(run, tmp_path, capsys):
    other = changed(tmp_path, images=lambda row: row | {"view": {"PA": "front", "LL": "LL"}[row["view"]]})
    assert elsewhere(run, other, tmp_path) == 0
    text = capsys.readouterr().err
    assert "40 images are of the kind 'other'" in text and "'front' (40)" in text
    kinds = "DATA.view_kinds={frontal: [front], lateral: [LL]}"
    assert any("40 images are of the kind 'other'" in note for note in metrics_of(tmp_path / "out")["notes"])
    assert elsewhere(run, other, tmp_path, "--set", kinds) == 0
    assert metrics_of(tmp_path / "out")["subgroups"][0]["groups"][0]["name"] == "frontal + lateral"
    assert elsewhere(run, other, tmp_path, "--set", "DATA.view_kinds={front: [front], side: [LL]}") == 2
    assert "trained with the kinds of view frontal, lateral, other" in error_of(capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row | {"view": row["view"] + "?"}, "'PA?' (40), 'LL?' (20)"),
        (without_key("view"), "'(none)' (60)"),
    ],
)
def test_data_without_a_kind_of_view_that_is_known_are_refused(change, words, run, tmp_path, capsys):
    assert elsewhere(run, changed(tmp_path, images=change), tmp_path) == 2
    error = error_of(capsys)
    assert (
        "no image is of a kind of view that the model was trained with (frontal, lateral)" in error and words in error
    )


def test_more_views_than_training_had_are_told(run, tmp_path, capsys):
    images, table = rows_of_studies()
    more = [images[0] | {"image": f"more{number}.png"} for number in range(5)]
    other = write_studies(tmp_path / "other", [*images, *more], table)
    assert elsewhere(run, other, tmp_path) == 0
    assert "1 studies have up to 6 images, training's had at most 2." in metrics_of(tmp_path / "out")["notes"]


def test_a_column_that_is_not_one_of_studies_is_refused(run, tmp_path, capsys):
    other = changed(tmp_path, images=lambda row: row | {"study_id": "s1", "patient_id": "p", "lesion": "1"})
    assert elsewhere(run, other, tmp_path) == 2
    assert "study 's1' has 60 images" in (error := error_of(capsys)) and "is 'study_id' the column of studies?" in error


def test_images_without_a_study_and_files_that_are_missing(run, tmp_path, capsys):
    other = changed(tmp_path, images=lambda row: row | {"study_id": "" if row["study_id"] == "s2" else row["study_id"]})
    assert elsewhere(run, other, tmp_path) == 0
    text = capsys.readouterr().err
    assert "1 images name no study and are one each: 02_PA.png" in text
    (other / "03_LL.png").unlink()
    assert elsewhere(run, other, tmp_path) == 2
    assert "03_LL.png" in (error := error_of(capsys)) and "DATA.allow_missing_images" in error
    assert elsewhere(run, other, tmp_path, "--set", "DATA.allow_missing_images=true") == 0


def test_data_without_the_column_of_studies_are_refused(run, tmp_path, capsys):
    other = changed(tmp_path, images=renamed("study_id", "examination"))
    assert elsewhere(run, other, tmp_path) == 2
    assert "DATA.study_column: 'study_id' is no column of" in error_of(capsys)
    assert elsewhere(run, other, tmp_path, "--set", "DATA.study_column=examination", "--without", "table") == 0


def test_patients_that_the_model_was_trained_on_are_told(run, data, tmp_path):
    assert elsewhere(run, data, tmp_path) == 0
    other = write_studies(
        tmp_path / "other", [row | {"study_id": f"x{row['study_id']}"} for row in rows_of_studies()[0]], []
    )
    assert elsewhere(run, other, tmp_path, "--without", "table") == 0
    assert any(
        "their patients have names that the model was trained on" in text
        for text in metrics_of(tmp_path / "out")["warnings"]
    )
