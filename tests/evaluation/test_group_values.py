"""Cells that make subgroups: one sex, age or view however it was written, and missing ones one group."""

import json

import numpy as np
import pytest

from evaluation.group_values import is_age_column, read_ages
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from evaluation.subgroups import group_rows, subgroup_figures


def groups(column, values):
    return {name: "".join("x" if row else "." for row in rows) for name, rows in group_rows(column, values).items()}


MALE = ["M", "m", "male", "Male ", "MALE", " m", "Ｍ", "male\u200b", "man", "männlich", "男", "男性"]
FEMALE = ["F", "f", "female", "Female", "woman", "weiblich", "w", "女", "女性", "ｆｅｍａｌｅ"]


@pytest.mark.parametrize("column", ["sex", "Sex", "gender", "Patient Sex", "PatientSex", "patient_gender", "性别"])
def test_every_spelling_of_a_sex_is_one_group(column):
    found = groups(column, [*MALE, *FEMALE, "Other", "o", ""])
    assert list(found.values()).count("x" * 12 + "." * 13) == 1
    assert list(found.values()).count("." * 12 + "x" * 10 + "...") == 1
    assert found["unknown"].endswith("..x") and len(found) == 4


def test_a_group_is_called_as_it_is_written_most():
    assert list(groups("sex", ["male", "M", "male", "F"])) == ["F", "male"]
    assert list(groups("sex", ["男", "M", "男", "女"])) == ["女", "男"]


MISSING = ["", " ", "nan", "NaN", "None", "NULL", "N/A", "#N/A", "<NA>", "-", "?", "unknown", "Unknown", "未知", "不详"]


@pytest.mark.parametrize("column", ["sex", "age", "site", "kvp", "view"])
def test_missing_words_are_one_group(column):
    values = [*MISSING, "7", "7"]
    found = groups(column, values)
    assert len(found) == 2 and found["unknown"] == "x" * len(MISSING) + ".."


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [
        (
            "view",
            ["PA", "pa", "P.A.", "postero-anterior", "Posteroanterior", "后前位"],
            ["AP", "ap", "antero posterior"],
        ),
        ("ViewPosition", ["L", "LAT", "lateral", "侧位"], ["LL"]),
        ("laterality", ["L", "left", "左"], ["R", "right", "Right "]),
        ("smoker", ["yes", "Y", "TRUE", "是"], ["no", "N", "false", "否"]),
        ("site", ["Ward A", "ward_a", "WARD-A", "Ward\u00a0A"], ["Ward B"]),
        ("site", ["é", "e\u0301", "É"], ["e"]),
        ("code", ["1", "1.0", "01", "１"], ["2", "2,0"]),
    ],
)
def test_spellings_of_a_value_are_one_group(column, one, other):
    assert sorted(groups(column, [*one, *other]).values()) == sorted(
        ["x" * len(one) + "." * len(other), "." * len(one) + "x" * len(other)]
    )


def test_letters_mean_what_the_column_says():
    """'F' is a sex in one column and a word for no in another, 'm' a month in a third."""
    assert len(groups("sex", ["F", "female", "T", "M"])) == 3
    assert len(groups("smoker", ["F", "false", "T", "True"])) == 2
    assert len(groups("site", ["M", "male", "F"])) == 3
    assert len(groups("type", ["ER-", "ER", "ER+"])) == 3


AGES = {
    45.0: [
        "45",
        "45.0",
        "45,0",
        "045Y",
        "45Y",
        "45 y",
        "45 years",
        "45 yrs old",
        "45岁",
        "45 周岁",
        "４５",
        " 45 ",
        "45yo",
    ],
    0.5: ["006M", "6 months", "6个月", "6 mo"],
    90.0: ["90+", ">90", "≥90", "> = 90", "90 +"],
    4 / 52.18: ["4w", "4 weeks", "004W"],
}


@pytest.mark.parametrize(("years", "values"), AGES.items())
def test_ages_as_they_are_written(years, values):
    found, notes = read_ages(values)
    np.testing.assert_allclose(found, years)
    assert notes == []


def test_ages_that_are_none_are_told():
    found, notes = read_ages(["45", "414", "old", "-3", "1970-01-01", "nan", ""])
    assert np.isnan(found[1:]).all()
    assert len(notes) == 1 and notes[0].startswith("4 ages are none of 0 to 120 years") and "'414'" in notes[0]


@pytest.mark.parametrize("values", [["18-39", "40–64", "<18", "65+"], ["0 - 17", "18至39"], ["20-29岁", "30~39"]])
def test_bands_of_ages_stay_as_they_are(values):
    assert read_ages(values) is None
    assert set(groups("age", values)) == set(values)


def test_which_columns_are_ages():
    ages = [
        "age",
        "Age",
        "AGE",
        "patient age",
        "Patient Age",
        "PatientAge",
        "patientage",
        "age_years",
        "AgeAtScan",
        "年龄",
    ]
    assert all(map(is_age_column, ages))
    others = ["stage", "dosage", "usage", "language", "image", "age_group", "Age Band", "sex"]
    assert not any(map(is_age_column, others))
    assert set(groups("stage", ["I", "II", "IIIa"])) == {"I", "II", "IIIa"}


def test_what_was_joined_is_said_in_results_and_report():
    rng = np.random.default_rng(0)
    targets = (rng.random((40, 2)) < 0.5).astype(float)
    scored = ScoredSplit(rng.random((40, 2)), targets, np.ones((40, 2), bool), [str(i) for i in range(40)], ("x", "y"))
    settings = BootstrapSettings(draws=10, threads=1)
    found = subgroup_figures(scored, np.full(2, 0.5), "sex", ["M", "Male ", "F", "\x1b女"] * 10, settings)
    json.dumps(found, allow_nan=False)
    assert [one["images"] for one in found["groups"]] == [20, 20]
    assert "'M' and 'Male'" in " ".join(found["spellings"]) and "\x1b" not in " ".join(found["spellings"])
    assert subgroup_figures(scored, np.full(2, 0.5), "sex", ["M", "F"] * 20, settings)["spellings"] == []
