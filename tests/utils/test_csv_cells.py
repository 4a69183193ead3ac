"""Tables that spreadsheet programs open: cells that they would run, marks that Excel needs, digits that count."""

import csv
import io

import numpy as np
import pytest

from utils.csv_cells import csv_text, original_cell, probability_text, safe_cell

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "-1+1|x", "＝1+1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_texts(text):
    assert safe_cell(text) == "'" + text
    assert original_cell(safe_cell(text)) == text


@pytest.mark.parametrize(
    "text", ["", "PA", "a=b", "-1", "+1.5", "-1e-3", "0.25", " -7", "it's", "p-1", "'a'", "心影增大"]
)
def test_other_texts_and_numbers_stay(text):
    assert safe_cell(text) == original_cell(text) == text


@pytest.mark.parametrize("text", ["'=1", "''=1", "' =1", "'-1+2", "'-5", "'", "''"])
def test_apostrophes_that_were_there_come_back(text):
    assert original_cell(safe_cell(text)) == text
    assert not safe_cell(text).startswith(("=", "-", "+", "@"))


def test_every_cell_comes_back_from_a_table():
    rows = [["name", "a,b", 'say "x"'], [*FORMULAS[:3]], ["'=x", "two\nlines", "心影"]]
    text = csv_text(rows)
    assert text.startswith("\ufeff"), "Excel takes UTF-8 without its mark for the local code page"
    read = [[original_cell(cell) for cell in row] for row in csv.reader(io.StringIO(text[1:], newline=""))]
    assert read == rows


def test_a_table_of_ascii_has_no_mark():
    assert csv_text([["a", "b"], ["1", "2"]]) == "a,b\n1,2\n"


def test_logits_of_float32_keep_their_order():
    """Neighbouring float32 logits from -30 to 30 have different probabilities in float64 while sigmoid has them."""
    start = np.linspace(-30, 30, 400, dtype=np.float32)
    logits = np.concatenate([start, np.nextafter(start, np.float32(99))]).astype(np.float64)
    p = np.sort(1 / (1 + np.exp(-logits)))
    read = np.array([float(probability_text(value)) for value in p.tolist()])
    assert (np.diff(read) >= 0).all()
    np.testing.assert_allclose(read, p, rtol=5e-9)
    np.testing.assert_allclose(1 - read, 1 - p, rtol=1e-8, atol=2e-17)
    far = np.diff(p) > 0
    assert ((np.diff(read) > 0) | ~far).mean() > 0.97


@pytest.mark.parametrize(
    "value, text", [(0.1 + 0.2, "0.3"), (0.0, "0.0"), (1.0, "1.0"), (0.25, "0.25"), (2 / 3, "0.666666667")]
)
def test_digits(value, text):
    assert probability_text(value) == text


def test_a_rounded_probability_stays_on_its_side_of_a_threshold():
    rng = np.random.default_rng(0)
    for value in rng.random(500).tolist():
        for limit in (value, float(np.nextafter(value, 1)), float(np.nextafter(value, 0))):
            text = probability_text(value, [limit])
            assert (float(text) >= limit) == (value >= limit)
            assert len(probability_text(value).lstrip("0.9")) <= 10
