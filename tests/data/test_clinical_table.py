"""Cells of clinical columns: numbers, words and gaps; what is neither is an error with its line."""

import numpy as np
import pytest

from data.clinical_table import CategoricalColumn, ClinicalTable, NumericColumn, equal_to_labels, read_column


def cells(*texts: str) -> list[tuple[str, str]]:
    return [(f"line {line}", text) for line, text in enumerate(texts, start=2)]


def numbers(*texts: str, kind="numeric", decimal_comma=False) -> list[float]:
    column, problems = read_column("x", cells(*texts), kind, decimal_comma)
    assert isinstance(column, NumericColumn) and problems == []
    return column.values.tolist()


def test_numbers_are_read_as_people_write_them():
    assert numbers("1", " 2.50 ", "-3e2", "+.5", "１２", "−4") == [1, 2.5, -300, 0.5, 12, -4]
    assert numbers("1,5", "2", decimal_comma=True) == [1.5, 2]
    assert numbers("057Y", "006M") == [57, 0.5]  # DICOM PS3.5, value representation AS


@pytest.mark.parametrize("gap", ["", "NA", "n/a", "nan", "NaN", "?", "-", "None", "NULL", "unknown", "未知", "#DIV/0!"])
def test_words_for_missing_are_gaps_in_both_kinds(gap):
    assert np.isnan(numbers("1", gap)[1])
    if gap not in ("None", "#DIV/0!"):  # 'none' may be an answer: 'smoking: none, former, current'
        column, _ = read_column("x", cells("a", gap), "categorical")
        assert column.known.tolist() == [True, False]


@pytest.mark.parametrize(
    "text", ["37.5 C", "1,000", "1_000", "inf", "1e999", "0x10", "12;3", "high", "<5", "1.2.3", "5 mg/l", "nan5"]
)
def test_what_is_no_number_is_an_error_with_line_and_value(text):
    _, problems = read_column("crp", cells("1", text, "2", text), "numeric")
    (problem,) = problems  # once, however often
    assert "line 3" in problem and "'crp'" in problem and f"'{text}'" in problem


def test_a_column_whose_kind_is_open_is_what_most_cells_are():
    assert isinstance(read_column("x", cells("1", "2", "", "?"), None)[0], NumericColumn)
    assert isinstance(read_column("x", cells("F", "M", "1"), None)[0], CategoricalColumn)
    column, problems = read_column("x", cells("1", "2", "3", "4 mg"), None)
    assert isinstance(column, NumericColumn) and "'4 mg'" in problems[0]


def test_a_column_that_is_a_label_under_another_name_is_told():
    labels = np.array([[1, 0]] * 15 + [[0, 1]] * 15, np.float32)
    labels[3, 0] = np.nan
    rng = np.random.default_rng(0)
    table = ClinicalTable(
        (
            CategoricalColumn("icu", tuple("no" if row < 15 else "yes" for row in range(30))),
            NumericColumn("age", rng.normal(size=30)),
            NumericColumn("coin", rng.integers(0, 2, 30).astype(float)),
        ),
        np.ones(30, bool),
    )
    notes = equal_to_labels(table, labels, ("A", "B"))
    assert len(notes) == 2 and all("'icu'" in note for note in notes) and "'A'" in notes[0] and "'B'" in notes[1]
    flipped = labels.copy()
    flipped[:2] = 1 - flipped[:2]
    assert equal_to_labels(table, flipped, ("A", "B")) == []
