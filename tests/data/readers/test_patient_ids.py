"""A patient is one patient, however a number was mangled on its way through a spreadsheet."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.readers.patient_ids import keys_of, patient_identities, patient_keys
from data.readers.tables import TableSettings
from data.sources.formats import open_source
from data.splits.assignment import assign_splits, patient_overlap, read_split, saved_hash, write_split
from data.splits.saved_split import saved_split

TABLE = Path("labels.csv")


def identities(cells, spellings="stop"):
    return patient_identities(TABLE, list(enumerate(cells, 2)), spellings)


MISSING = [
    "",
    " ",
    "nan",
    "NaN",
    "None",
    "NULL",
    "NA",
    "N/A",
    "#N/A",
    "<NA>",
    "NaT",
    "-",
    "--",
    "?",
    "unknown",
    "Missing",
]
MISSING += ["未知", "不详", "无", "匿名", "Anonymous", "\u00a0", "\u200b", "ｎａｎ", "-1"]


@pytest.mark.parametrize("spellings", ["stop", "join", "exact"])
@pytest.mark.parametrize("word", MISSING)
def test_a_word_for_missing_is_nobody(word, spellings):
    patients, notes = identities([word, "7", word, "8"], spellings)
    assert patients == ["", "7", "", "8"]
    if word.strip("\u200b \u00a0"):
        assert "name nobody" in notes[0] and "(2 rows)" in notes[0]


# How one id is written on different ways, and what did it.
CERTAIN = [
    ("7", "7 ", "blank at the end"),
    ("7", "\u00a07", "no-break blank of a web page"),
    ("7", "7\u200b", "zero-width blank"),
    ("7", "\ufeff7", "byte order mark within a file"),
    ("17", "１７", "full-width digits of an input method"),
    ("7", "'7", "apostrophe that says: text"),
    ("007", '="007"', "formula that says: text"),
    ("é1", "e\u03011", "Unicode form of macOS"),
]


@pytest.mark.parametrize(("one", "other", "why"), CERTAIN)
def test_what_is_surely_one_id_is_one_patient(one, other, why):
    patients, notes = identities([one, other, "9"])
    assert patients[0] == patients[1] != patients[2]
    assert any("are one" in note for note in notes)


POSSIBLE = [
    ("007", "7", "a number loses its zeros"),
    ("7.0", "7", "a column with an empty cell becomes floats in pandas"),
    ("7,0", "7", "the same with a decimal comma"),
    ("1.5E1", "15", "an exponent"),
    ("1E5", "100000", "a well of a plate or an exponent"),
    ("123,456", "123456", "separator of thousands"),
    ("123.456", "123456", "the German one"),
    ("123 456", "123456", "the French one"),
    ("123'456", "123456", "the Swiss one"),
    ("1,234,567", "1.234.567", "two of them"),
    ("1,234.00", "1234", "with decimals"),
    ("p01", "P01", "case"),
    ("P1", "P01", "zeros after a letter"),
    ("P 01", "P01", "blank"),
    ("P-01", "P_01", "separators"),
    ("Ｐ01", "p01", "full width and case"),
    ("1.10", "1.1", "a number loses its zeros at the end"),
]


@pytest.mark.parametrize(("one", "other", "why"), POSSIBLE)
def test_what_may_be_one_patient_stops_or_is_joined_or_not_as_told(one, other, why):
    cells = ["9", one, other, "x"]
    with pytest.raises(DataError) as caught:
        identities(cells)
    message = str(caught.value)
    assert "lines 3 and 4" in message and "DATA.patient_ids=join" in message and "DATA.patient_ids=exact" in message
    joined, notes = identities(cells, "join")
    assert joined[1] == joined[2] and len(set(joined)) == 3 and any("joined" in note for note in notes)
    assert identities(cells, "exact")[0] == cells


def test_joining_goes_on_through_a_third_and_depends_on_no_order():
    cells = ["1.234", "1234", "1,234.0", "01234", "5"]
    results = []
    for order in itertools.permutations(cells):
        patients, _ = identities(order, "join")
        results.append({cell: patient for cell, patient in zip(order, patients)})
    assert all(one == results[0] for one in results) and set(results[0].values()) == {"1234", "5"}


DIFFERENT = [
    ["1-10", "11-0", "110"],
    ["1.2.3", "1.2.30", "12.3"],
    ["P1", "P10", "Q1"],
    ["-2", "2"],
    ["A1B", "AB1"],
    ["12", "1-2"],
    ["3E12", "3E13", "3F12"],
    [f"{number}" for number in range(300)],
    ["1234567890123456789012345678901234567890", "1234567890123456789012345678901234567891"],
]


@pytest.mark.parametrize("cells", DIFFERENT)
def test_different_patients_stay_different(cells):
    patients, notes = identities(cells)
    assert patients == cells and notes == []


def test_a_column_of_floats_alone_is_as_good_as_one_of_integers():
    assert identities(["7.0", "8.0", "7.0"]) == (["7.0", "8.0", "7.0"], [])


ROUNDED = [
    ["1.23E+05", "5"],  # as Excel shows it: 123,000 or 123,499
    ["1.23457E+11", "A5"],
    ["1.2345678901234567e+18", "5"],  # as pandas writes a float
    ["1234567890123456768.0", "5"],
    # A float has 53 bits: of 19 digits every 128th number is one. So are these, whose last digits differed once.
    [str(int(float(number))) for number in (1234567890123456789, 1234567890123459999)],
    ["123456789012345000", "987654321098765000"],  # Excel keeps 15 digits
]


@pytest.mark.parametrize("cells", ROUNDED)
def test_ids_that_lost_digits_are_refused_as_several_may_have_become_one(cells):
    for spellings in ("stop", "join"):
        with pytest.raises(DataError, match=r"rounded.*line 2.*DATA.patient_ids=exact"):
            identities(cells, spellings)
    patients, notes = identities(cells, "exact")
    assert patients == cells and "may have become one" in notes[0]


def test_long_ids_that_are_whole_are_taken():
    rng = np.random.default_rng(0)
    cells = [str(number) for number in rng.integers(10**18, 9 * 10**18, 50).tolist()]
    cells += ["20230000000000012", "1.23456E+05", "1.25"]
    assert identities(cells) == (cells, [])


def test_one_id_for_many_and_dates_are_told():
    _, notes = identities(["0"] * 6 + ["5", "5", "6"])
    assert "patient '0' has 6 images" in notes[0]
    assert identities(["5"] * 6 + ["6"])[1] == []
    assert "dates" in identities(["2-Jan", "Mar-01", "7"])[1][0]


def test_a_hundred_thousand_ids_are_quick():
    patients, _ = identities([f"P{number // 2:06d}" for number in range(100_000)])
    assert len(set(patients)) == 50_000


def test_hostile_ids_reach_no_message():
    with pytest.raises(DataError) as caught:
        identities(["a\x1b[2J\u202e1", "A\x1b[2J\u202e1"])
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)


# ---- tables and splits


def table(folder: Path, patients, splits=None) -> Path:
    folder.mkdir(exist_ok=True)
    rows = ["image,patient_id,Mass" + (",split" if splits else "")]
    for number, patient in enumerate(patients):
        (folder / f"{number:03d}.png").write_bytes(b"")
        cell = f'"{patient}"'
        rows.append(f"{number:03d}.png,{cell},{number % 2}" + (f",{splits[number]}" if splits else ""))
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_a_split_never_tears_spellings_apart(tmp_path):
    patients = [text for number in range(1, 41) for text in (f"{number:03d}", f"{number}", f"{number}.0")]
    folder = table(tmp_path, patients)
    with pytest.raises(DataError, match=r"40 patient ids written in several ways"):
        open_source(folder)
    index = open_source(folder, settings=TableSettings(patient_ids="join"))
    assert len({study.group for study in index.studies}) == 40
    assignment = assign_splits(index, seed=3).reshape(40, 3)
    assert (assignment == assignment[:, :1]).all() and len(set(assignment[:, 0])) == 3


def test_images_without_a_patient_are_each_their_own(tmp_path):
    index = open_source(table(tmp_path, ["nan", "nan", "未知", "3", "3"]))
    assert len({study.group for study in index.studies}) == 4
    assert any("name no patient" in note and "3 of 5" in note for note in index.notes)


def test_a_given_split_is_compared_by_people(tmp_path):
    folder = table(tmp_path, ["007", "8", "7", "9"], ["train", "train", "test", "val"])
    index = open_source(folder, settings=TableSettings(patient_ids="join"))
    assert patient_overlap(index, np.array(["train", "train", "test", "val"])) == {("train", "test"): ["7"]}
    with pytest.raises(DataError, match="more than one split"):
        assign_splits(index)
    assign_splits(open_source(folder, settings=TableSettings(patient_ids="exact")))


def test_a_table_that_was_saved_by_a_spreadsheet_has_its_split_still(tmp_path):
    numbers = [f"{number:03d}" for number in range(1, 21)]
    index = open_source(table(tmp_path / "data", numbers))
    saved = tmp_path / "split.csv"
    digest = write_split(saved, index, assign_splits(index))
    assert saved_hash(saved) == digest
    again = open_source(table(tmp_path / "data", [str(int(number)) for number in numbers]))
    np.testing.assert_array_equal(read_split(saved, again), read_split(saved, index))
    assert saved_split(again, saved, digest, own_data=True).own
    other = open_source(table(tmp_path / "data", [str(int(number) + 1) for number in numbers]))
    with pytest.raises(DataError, match=r"another patient for 20 images.*'001' and '2'"):
        read_split(saved, other)


def test_patients_of_other_data_are_known_by_other_spellings(tmp_path):
    index = open_source(table(tmp_path / "data", [f"{number:03d}" for number in range(1, 21)]))
    saved = tmp_path / "split.csv"
    assignment = assign_splits(index)
    write_split(saved, index, assignment)
    (tmp_path / "other").mkdir()
    for name in "abc":
        (tmp_path / "other" / f"{name}.png").write_bytes(b"")
    trained = int(np.flatnonzero(assignment == "train")[0]) + 1
    text = f"image,patient_id,Mass\na.png,{trained},1\nb.png,{trained}.0,0\nc.png,77,0\n"
    (tmp_path / "other" / "labels.csv").write_text(text)
    other = open_source(tmp_path / "other", settings=TableSettings(patient_ids="join"))
    (concern,) = saved_split(other, saved, None, own_data=False).concerns("all")
    assert concern.startswith("2 of these")


def test_keys_are_none_for_nobody():
    assert keys_of(["", "7"]) == patient_keys("007") and keys_of([""]) == frozenset()
