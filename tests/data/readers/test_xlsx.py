"""Workbooks: what their cells show, sheets, merged cells, formulas, and files that are something else."""

import io
import re
import zipfile
from datetime import date, datetime, time
from itertools import product

import numpy as np
import openpyxl
import pandas as pd
import pytest

from configs.errors import DataError
from data.readers.tables import read_table
from data.sources.formats import open_source
from tests.data.sources.writers import images

HEADER = ("image", "labels", "patient_id")


def workbook(path, *rows, header=HEADER, change=None, name="labels.xlsx"):
    book = openpyxl.Workbook()
    for row in (header, *rows):
        book.active.append(row)
    if change:
        change(book)
    book.save(path / name)
    return path / name


def patched(path, part, change):
    """The same workbook with the XML of one part changed."""
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            text = old.read(entry)
            new.writestr(entry, change(text) if entry == part else text)
    return path


@pytest.mark.parametrize(
    "value, number_format, shown",
    [
        (7, "General", "7"),
        (7.0, "General", "7"),
        (7, "000", "007"),
        (1234, "000", "1234"),
        (0.1 + 0.2, "General", "0.3"),
        (-1.0, "0.00", "-1"),
        (True, "General", "TRUE"),
        (False, "General", "FALSE"),
        ("007", "@", "007"),
        ("  x\u200b ", "General", "x"),
        ("'=x", "General", "=x"),
        (datetime(2026, 11, 29), "yyyy-mm-dd", "2026-11-29"),
        (date(2026, 11, 29), "yyyy-mm-dd", "2026-11-29"),
        (datetime(2026, 11, 29, 8, 30), "yyyy-mm-dd", "2026-11-29 08:30:00"),
        (time(8, 30), "hh:mm", "08:30:00"),
        ("肺炎", "General", "肺炎"),
        ("#N/A", "General", "#N/A"),
        (123456789012345, "General", "123456789012345"),
        (None, "General", ""),
    ],
)
def test_a_cell_is_what_it_shows(tmp_path, value, number_format, shown):
    def change(book):
        book.active["B2"].number_format = number_format

    table = read_table(workbook(tmp_path, ["a.png", value, "p"], change=change))
    assert table.rows == ((2, ("a.png", shown, "p")),) and table.header == HEADER


@pytest.mark.parametrize("blank_rows, extra_columns, sheets", list(product([0, 3], [0, 2], [1, 2])))
def test_as_pandas_reads_it(tmp_path, blank_rows, extra_columns, sheets):
    """Empty rows, columns and sheets change nothing; line numbers are those of the sheet."""

    def change(book):
        if blank_rows:  # openpyxl takes 0 for one that overwrites
            book.active.insert_rows(3, blank_rows)
        for column in range(extra_columns):
            book.active.cell(2, 6 + column).number_format = "0.0"
        for _ in range(sheets - 1):
            book.create_sheet("empty", 0)

    rows = [(f"{n}.png", "Mass" if n % 2 else "Nodule", f"{n:03d}") for n in range(5)]
    path = workbook(tmp_path, *rows, change=change)
    right = pd.read_excel(path, sheet_name="Sheet", dtype=str, keep_default_na=False)
    right = right[right["image"] != ""][list(HEADER)]
    table = read_table(path)
    assert [list(cells) for _, cells in table.rows] == right.to_numpy().tolist() == [list(row) for row in rows]
    assert [line for line, _ in table.rows] == [2, *range(3 + blank_rows, 7 + blank_rows)]


def test_labels_in_a_workbook(tmp_path):
    images(tmp_path, "a.png b.png c.png")
    workbook(
        tmp_path,
        ["a.png", "肺炎", 7],
        ["b.png", "肺炎、结节", 7],
        ["c.png", None, 8],
        header=("图像", "标签", "患者编号"),
    )
    found = open_source(tmp_path)
    assert found.class_names == ("结节", "肺炎") or found.class_names == ("肺炎", "结节")
    np.testing.assert_array_equal(found.label_matrix()[:, found.class_names.index("肺炎")], [1, 1, 0])
    assert [study.patient_id for study in found.studies] == ["7", "7", "8"]


def test_class_columns_in_a_workbook(tmp_path):
    images(tmp_path, "a.png b.png c.png")
    header = ("image", "A", "B")
    workbook(tmp_path, ["a.png", 1, True], ["b.png", 0, False], ["c.png", 1.0, None], header=header)
    np.testing.assert_array_equal(open_source(tmp_path).label_matrix(), [[1, 1], [0, 0], [1, np.nan]])
    workbook(tmp_path, ["a.png", 1, True], ["b.png", 0.9, False], ["c.png", 0, None], header=header)
    with pytest.raises(DataError, match=r"line 3, column 'A': '0\.9' is not 1, 0, -1"):
        open_source(tmp_path)


def test_merged_cells_count_for_each_row(tmp_path):
    rows = [["a.png", "Mass", 7], ["b.png", "Mass", None], ["c.png", "", None], ["d.png", "", 9]]
    table = read_table(workbook(tmp_path, *rows, change=lambda book: book.active.merge_cells("C2:C4")))
    assert table.column(2) == ["7", "7", "7", "9"]
    assert any("merged over several rows" in note for note in table.notes)
    for cells, says in (("B2:C2", "line 2: 'Mass' is merged over several columns"), ("A1:A2", "header is merged")):
        with pytest.raises(DataError, match=says):
            read_table(workbook(tmp_path, *rows, change=lambda book, cells=cells: book.active.merge_cells(cells)))


def test_formulas_have_the_value_they_were_saved_with(tmp_path):
    path = workbook(tmp_path, ["a.png", '=IF(1,"Mass","")', 7])
    with pytest.raises(DataError, match=r"line 2: the formula in B2 has no value in the file"):
        read_table(path)

    def with_value(xml):
        return re.sub(rb'<c r="B2"[^>]*><f>(.*?)</f><v ?/>', rb'<c r="B2" t="str"><f>\1</f><v>Mass</v>', xml)

    assert read_table(patched(path, "xl/worksheets/sheet1.xml", with_value)).rows[0][1] == ("a.png", "Mass", "7")


def test_several_sheets(tmp_path):
    def second(header):
        def change(book):
            book.create_sheet("notes").append(header)
            book["notes"].append(["x", "y"])

        return change

    table = read_table(workbook(tmp_path, ["a.png", "Mass", 7], change=second(["remark", "who"])))
    assert table.rows[0][1][0] == "a.png" and "'Sheet'" in table.notes[0]
    with pytest.raises(DataError, match=r"labels\.xlsx' has the sheets 'Sheet', 'notes', and several of them"):
        read_table(workbook(tmp_path, ["a.png", "Mass", 7], change=second(["image", "who"])))
    with pytest.raises(DataError, match="none of them names"):
        read_table(workbook(tmp_path, ["a.png", "Mass", 7], header=("x", "y", "z"), change=second(["remark", "who"])))


def test_long_numbers_are_told(tmp_path):
    table = read_table(workbook(tmp_path, ["a.png", "Mass", 1234567890123456789]))
    assert any("Sheet!C2" in note and "more than 15 digits" in note for note in table.notes)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), r"\(\.xls\): save it as \.xlsx"),
        (b"PK\x03\x04 cut off", "damaged"),
        (b"<html><table><tr><td>image</td></tr></table>", "web page"),
        (b"", "is empty"),
    ],
)
def test_other_files_are_refused(tmp_path, content, says):
    for name in ("labels.xlsx", "labels.csv"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"'.*{name}'.*{says}"):
            read_table(tmp_path / name)


def test_a_packed_file_that_is_no_workbook(tmp_path):
    with zipfile.ZipFile(tmp_path / "labels.xlsx", "w") as archive:
        archive.writestr("content.xml", "<x/>")
    with pytest.raises(DataError, match="packed file, not a table"):
        read_table(tmp_path / "labels.xlsx")
    path = patched(workbook(tmp_path, ["a.png", "Mass", 7]), "xl/workbook.xml", lambda xml: xml[:-30])
    with pytest.raises(DataError, match=r"cannot be read as an \.xlsx file"):
        read_table(path)


def test_the_content_counts_not_the_name(tmp_path):
    path = workbook(tmp_path, ["a.png", "Mass", 7], name="labels.csv")
    assert read_table(path).rows[0][1] == ("a.png", "Mass", "7")
    (tmp_path / "labels.xlsx").write_text("image\tlabels\na.png\tMass\n", "utf-8")
    assert read_table(tmp_path / "labels.xlsx").rows[0][1] == ("a.png", "Mass")


def test_a_bomb_is_not_unpacked(tmp_path):
    path = workbook(tmp_path, ["a.png", "Mass", 7])
    path = patched(path, "xl/worksheets/sheet1.xml", lambda xml: xml + b" " * 80_000_000)
    with pytest.raises(DataError, match="decompression bomb"):
        read_table(path)
