"""Which columns of a labels table are classes and which are something else: told, and changed by settings."""

import numpy as np
import pytest

from configs.errors import DataError
from data.readers.tables import TableSettings
from data.sources.formats import open_source
from tests.data.sources.writers import image, opened, table

NAN = np.nan


def asked(**columns):
    return TableSettings(columns=columns)


def notes_of(found):
    return " / ".join(found.notes)


def test_one_error_asks_for_all_that_is_missing(three):
    """No column has a known name: the one with names of files is found, the others are guessed, all in one sentence."""
    text = "scan,diagnosis,subject_no\na.png,Mass,1\nb.png,,2\n"
    with pytest.raises(DataError) as error:
        opened(three, text)
    for part in (
        "no column 'image'",
        "none is called 'labels'",
        "'scan' holds names of files that are there",
        "DATA.columns",
    ):
        assert part in str(error.value)
    assert "{image: scan, labels: diagnosis, patient_id: subject_no}" in str(error.value)
    found = opened(three, text, settings=asked(image="scan", labels="diagnosis", patient_id="subject_no"))
    assert [study.patient_id for study in found.studies] == ["1", "2"] and found.class_names == ("Mass",)


def test_a_column_that_may_name_patients_is_told(three):
    text = "image,labels,subject_no\na.png,Mass,1\nb.png,,2\n"
    assert "column 'subject_no' may name the patients: DATA.columns.patient_id" in notes_of(opened(three, text))
    assert "may name the patients" not in notes_of(opened(three, text, settings=asked(patient_id="subject_no")))
    assert "may name the patients" not in notes_of(opened(three, text, settings=asked(patient_id=None)))


@pytest.mark.parametrize("name", ["subset", "set", "用途"])
def test_a_column_of_splits_under_another_name(three, name):
    text = f"image,labels,{name}\na.png,Mass,train\nb.png,,训练\nc.png,,val\n"
    found = opened(three, text)
    assert [study.split for study in found.studies] == ["train", "train", "val"]
    assert f"column '{name}' was read as the split" in notes_of(found)
    assert {study.split for study in opened(three, text, settings=asked(split=None)).studies} == {None}


def test_two_columns_of_splits_are_none(three):
    found = opened(three, "image,labels,one,two\na.png,Mass,train,train\nb.png,,train,val\nc.png,,val,train\n")
    assert {study.split for study in found.studies} == {None}


def test_labels_and_class_columns_at_once(three):
    text = "image,诊断,Mass,Edema\na.png,free text,1,0\nb.png,other text,0,1\nc.png,,0,0\n"
    found = opened(three, text)
    assert found.class_names == ("free text", "other text")
    assert "columns of 1 and 0 beside it were not: Mass, Edema (DATA.columns.labels: null takes those)" in notes_of(
        found
    )
    assert opened(three, text, settings=asked(labels=None)).class_names == ("Mass", "Edema")


def test_a_count_is_no_class(three):
    """Many other numbers are what a column holds, and no slips."""
    for number in range(20):
        image(three / f"{number}.png")
    rows = "".join(f"{n}.png,{n % 2},{n % 5}\n" for n in range(20))
    found = opened(three, "image,Mass,lesions\n" + rows)
    assert found.class_names == ("Mass",)
    assert "not as classes: lesions (line 4, column 'lesions': '2' is not 1, 0, -1 or empty)" in notes_of(found)


@pytest.mark.parametrize("names", [("Mass", "mass"), ("Pleural_Effusion", "Pleural Effusion"), ("É", "E\u0301")])
def test_two_columns_of_one_name(three, names):
    text = f"image,{names[0]},{names[1]}\na.png,1,0\nb.png,0,1\n"
    with pytest.raises(DataError, match=r"differ in case, blanks or Unicode form only.*DATA\.ignore_columns"):
        opened(three, text)
    found = opened(three, text, settings=TableSettings(ignore_columns=[names[1]]))
    assert found.class_names == (names[0],) and found.label_matrix().tolist() == [[1], [0]]


def test_class_names_find_columns_in_another_spelling(three):
    found = opened(three, "image,pleural effusion\na.png,1\nb.png,0\n", class_names=["Pleural_Effusion"])
    assert found.class_names == ("Pleural_Effusion",)
    with pytest.raises(DataError, match="'Mass' and 'mass' differ in case"):
        open_source(
            three, class_names=["Mass", "mass"], format="csv", labels_file=table(three, "image,Mass\na.png,1\n")
        )


def test_ignored_columns_must_be_there(three):
    with pytest.raises(DataError, match=r"DATA\.ignore_columns: 'foldd' is no column"):
        opened(three, "image,Mass\na.png,1\n", settings=TableSettings(ignore_columns=["foldd"]))


def test_nothing_but_a_column_that_is_no_finding(three):
    text = "image,smoker\na.png,1\nb.png,0\n"
    with pytest.raises(DataError, match=r"smoker would be no finding by its name: DATA\.class_names"):
        opened(three, text)
    assert opened(three, text, class_names=["smoker"]).label_matrix().tolist() == [[1], [0]]


def test_classes_that_no_image_has_are_told(three):
    found = opened(three, "image,Mass,Edema\na.png,1,0\nb.png,0,-1\nc.png,0,\n")
    assert found.class_names == ("Mass", "Edema") and "classes that no image has: Edema" in notes_of(found)
    found = opened(three, "image,labels\na.png,Mass\nb.png,\n", class_names=["Mass", "Edema"])
    assert "classes that no image has: Edema" in notes_of(found)


@pytest.mark.parametrize(
    "cells, right", [("yes no NA", [1, 0, NAN]), ("阳性 阴性 未知", [1, 0, NAN]), ("+ - ?", [1, 0, NAN])]
)
def test_a_label_column_of_two_words_is_one_class(three, cells, right):
    rows = "".join(f"{name}.png,{cell}\n" for name, cell in zip("abc", cells.split()))
    found = opened(three, f"image,label\n{rows}")
    assert found.class_names == ("label",)
    np.testing.assert_array_equal(found.label_matrix()[:, 0], right)
    named = opened(three, f"image,label\n{rows}", class_names=cells.split()[:2])
    np.testing.assert_array_equal(named.label_matrix()[:2], [[1, 0], [0, 1]])


def test_a_mistyped_cell_makes_no_third_class(three):
    """A column called 'label' of 0 and 1 is one class: a single 2 is an error, and a class if the user says so."""
    for number in range(20):
        image(three / f"{number}.png")
    rows = [f"{n}.png,{n % 2}\n" for n in range(19)]
    with pytest.raises(DataError, match=r"line 21, column 'label': '2' is not 1, 0, -1 or empty: .*DATA\.class_names"):
        opened(three, "image,label\n" + "".join([*rows, "19.png,2\n"]))
    found = opened(three, "image,label\n" + "".join([*rows, "19.png,2\n"]), class_names=["0", "1", "2"])
    assert found.label_matrix().sum(axis=0).tolist() == [10, 9, 1]
    codes = "".join(f"{n}.png,{n % 4}\n" for n in range(20))
    assert opened(three, "image,label\n" + codes).class_names == ("0", "1", "2", "3")


def test_slips_of_the_pen_in_names_are_told(three):
    for number in range(42):
        image(three / f"{number}.png")
    rows = "".join(f"{n}.png,{'Pneumonia' if n else 'Pnuemonia'}\n" for n in range(41))
    found = opened(three, f"image,labels\n{rows}41.png,\n")
    assert "'Pnuemonia' (1 rows) is a class of its own: is 'Pneumonia' meant?" in notes_of(found)


def test_rows_without_a_label_are_told_where_others_say_no_finding(three):
    found = opened(three, "image,labels\na.png,Mass\nb.png,No Finding\nc.png,\n")
    assert "1 rows have no label: read as 'no finding' (write 'NA' where it is not known)" in notes_of(found)


def test_the_other_table_of_the_same_name_is_told(three):
    table(three, "image\tlabels\na.png\tMass\n", "labels.tsv")
    table(three, "image,labels\na.png,Edema\n")
    found = open_source(three)
    assert found.class_names == ("Edema",) and "'labels.csv' was read, not labels.tsv beside it" in notes_of(found)
    assert open_source(three, "labels.tsv").class_names == ("Mass",)
