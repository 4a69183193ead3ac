"""Cells that spreadsheet programs would run."""

import pytest

from utils.csv_cells import safe_cell


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "  =1", "-1+1|x"])
def test_formulas_are_texts(text):
    assert safe_cell(text) == "'" + text


@pytest.mark.parametrize(
    "text", ["", "PA", "a=b", "-1", "+1.5", "-1e-3", "0.25", " -7", "it's", "p-1", "'=1", "心影增大"]
)
def test_other_texts_and_numbers_stay(text):
    assert safe_cell(text) == text
