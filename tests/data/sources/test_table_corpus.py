"""Some 700 tables by rules: each is read as it was meant, or refused by an error that names line, column or setting.

What is right is known before a table is written: who has which finding. Its cells are compared with pandas too, which
is told the encoding and the delimiter that ours has to find.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs.errors import DataError
from data.readers.tables import TableSettings, read_table
from data.sources.formats import open_source
from data.study import DatasetIndex
from tests.data.sources.writers import images

ROWS = 8
# Findings by row: one, the other, both, none, in turn.
HAS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 2, np.float32)
PATIENTS = [f"{number:03d}" for number in (1, 1, 2, 3, 4, 5, 6, 7)]
SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
SEXES = ["F", "F", "M", "M", "F", "M", "F", "M"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    images(root, " ".join(f"{row}.png" for row in range(ROWS)))
    return root


@dataclass(frozen=True)
class Language:
    """Words of a language: column names, two findings, and none of them."""

    header: tuple[str, str, str, str, str]
    findings: tuple[str, str]
    nothing: str
    splits: dict[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, str]:
        return dict(zip(("image", "labels", "patient_id", "split", "sex"), self.header))


LANGUAGES = {
    "en": Language(("image", "labels", "patient_id", "split", "sex"), ("Mass", "Nodule"), "No Finding"),
    "nih": Language(("Image Index", "Finding Labels", "Patient ID", "Split", "Patient Gender"), ("Mass", "Edema"), ""),
    "zh": Language(
        ("图像", "标签", "患者编号", "划分", "性别"),
        ("肺炎", "结节"),
        "未见异常",
        {"train": "训练集", "val": "验证集", "test": "测试集"},
    ),
    "zh_tw": Language(
        ("圖像", "標籤", "患者編號", "劃分", "性別"),
        ("肺炎", "結節"),
        "未見異常",
        {"train": "訓練集", "val": "驗證集", "test": "測試集"},
    ),
    "de": Language(("Bild", "Befund", "Patient", "Menge", "Geschlecht"), ("Ödem", "Tumorgröße"), ""),
    "ru": Language(("снимок", "находка", "пациент", "выборка", "пол"), ("пневмония", "узел"), ""),
    "ja": Language(("画像名", "所見", "患者番号", "区分", "性別欄"), ("肺炎像", "結節影"), ""),
    "ko": Language(("영상", "소견", "환자번호", "구분", "성별"), ("폐렴", "결절"), ""),
    "fr": Language(("fichier", "résultat", "personne", "partie", "sexe"), ("épanchement à gauche", "œdème"), ""),
}
KNOWN = ("en", "nih", "zh", "zh_tw")  # whose headers need no settings


def joined(language: Language, separator: str = "|", empty: str | None = None) -> list[str]:
    """The cells of a labels column."""
    nothing = language.nothing if empty is None else empty
    return [separator.join(name for name, has in zip(language.findings, row) if has) or nothing for row in HAS]


def table_rows(language: Language, labels: Sequence[str]) -> list[list[str]]:
    splits = [language.splits.get(split, split) for split in SPLITS]
    names = [f"{row}.png" for row in range(ROWS)]
    return [list(language.header), *map(list, zip(names, labels, PATIENTS, splits, SEXES))]


def as_text(rows: Sequence[Sequence[str]], delimiter: str, end: str = "\n", quote: bool = False) -> str:
    special = (delimiter, '"', "\n", "\r")

    def cell(text: str) -> str:
        needs = quote or any(mark in text for mark in special)
        return '"' + text.replace('"', '""') + '"' if needs else text

    return "".join(delimiter.join(map(cell, row)) + end for row in rows)


def check(found: DatasetIndex, language: Language, codes: np.ndarray = HAS) -> None:
    """Classes, labels, patients, splits and sexes are those that were meant."""
    assert set(found.class_names) == set(language.findings)
    order = [language.findings.index(name) for name in found.class_names]
    np.testing.assert_array_equal(found.label_matrix(), codes[:, order])
    assert [study.name for study in found.studies] == [f"{row}.png" for row in range(ROWS)]
    assert [study.patient_id for study in found.studies] == PATIENTS
    assert [study.split for study in found.studies] == SPLITS
    assert [study.table["sex"] for study in found.studies] == SEXES


# ---- encodings, delimiters, line ends, languages

ENCODINGS = {
    "utf-8": tuple(LANGUAGES),
    "utf-8-sig": tuple(LANGUAGES),
    "utf-16": tuple(LANGUAGES),
    "utf-16-le": ("en", "zh", "ru"),
    "utf-16-be": ("en", "zh", "ru"),
    "utf-32": ("zh",),
    "gbk": ("zh",),
    "gb18030": ("zh",),
    "big5": ("zh_tw",),
    "cp1252": ("de", "fr"),
    "cp1250": ("de",),
    "iso8859-15": ("de", "fr"),
    "mac_roman": ("de", "fr"),
    "cp850": ("de",),
    "cp1251": ("ru",),
    "koi8-r": ("ru",),
    "shift_jis": ("ja",),
    "euc_jp": ("ja",),
    "euc_kr": ("ko",),
}
# Whatever is certain must be read without a setting; the others may be refused, but not read as something else.
CERTAIN = {"utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gbk", "gb18030", "big5"}
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "sep_line": ";"}
ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def text_tables() -> Iterator[tuple[str, str, str, str]]:
    for encoding, languages in ENCODINGS.items():
        for language, delimiter, end in product(languages, DELIMITERS, ENDS):
            if end == "lf" or (delimiter in ("comma", "semicolon") and language in ("en", "zh")):
                yield encoding, language, delimiter, end


@pytest.mark.parametrize("encoding, language, delimiter, end", list(text_tables()))
def test_text(folder, encoding, language, delimiter, end):
    words = LANGUAGES[language]
    rows = table_rows(
        words, joined(words, "、" if delimiter == "bar" and language == "zh" else ";" if delimiter == "bar" else "|")
    )
    first = "sep=;" + ENDS[end] if delimiter == "sep_line" else ""
    raw = (first + as_text(rows, DELIMITERS[delimiter], ENDS[end])).encode(encoding)
    (folder / "labels.csv").write_bytes(raw)
    columns = {} if language in KNOWN else words.columns()
    right = pd.read_csv(
        io.BytesIO(raw),
        encoding=encoding,
        sep=DELIMITERS[delimiter],
        dtype=str,
        keep_default_na=False,
        skiprows=1 if first else 0,
        lineterminator="\r" if end == "cr" else None,
    )
    assert right.to_numpy().tolist() == rows[1:], "pandas reads what was written"
    try:
        table = read_table(folder / "labels.csv", TableSettings(columns=columns))
    except DataError as reason:
        assert encoding not in CERTAIN and "DATA.encoding" in str(reason) and "labels.csv" in str(reason)
    else:
        assert [list(cells) for _, cells in table.rows] == right.to_numpy().tolist()
        assert list(table.header) == list(right.columns)
        assert encoding.startswith("utf") or any("DATA.encoding" in note for note in table.notes)
    settings = TableSettings(encoding=encoding, columns=columns)
    check(open_source(folder, settings=settings), words)


# ---- what stands in a labels cell

CERTAIN_SEPARATORS = ("|", ";", "；", "、", "\n", " | ", "||", ",", ", ", "，", "/", "／", " + ", "&", " and ", " And ")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("separator", [*CERTAIN_SEPARATORS, "和", "与", "及", "list", "list with quotes"])
@pytest.mark.parametrize("delimiter", ["comma", "tab"])
def test_separators(folder, language, separator, delimiter):
    """Both findings stand alone too, so that it is certain what separates them."""
    words = LANGUAGES[language]
    labels = joined(words, "|")
    if separator.startswith("list"):
        quote = '"' if "quotes" in separator else "'"
        labels = [
            "[" + ", ".join(f"{quote}{one}{quote}" for one in cell.split("|")) + "]" for cell in joined(words, "|")
        ]
    else:
        labels = [cell.replace("|", separator) for cell in labels]
    (folder / "labels.csv").write_text(as_text(table_rows(words, labels), DELIMITERS[delimiter]), "utf-8", newline="")
    check(open_source(folder), words)


MISSING = [
    *(
        "nan",
        "NaN",
        "NAN",
        "-nan",
        "NA",
        "na",
        "N/A",
        "n/a",
        "#N/A",
        "#NA",
        "<NA>",
        "null",
        "NULL",
        "NaT",
        "?",
        "-",
        "--",
    ),
    *(
        "—",
        "unknown",
        "Unknown",
        "missing",
        "未知",
        "空",
        "缺失",
        "不详",
        "ＮＡ",
        " NA ",
        "1.#IND",
        "n.a.",
        "undefined",
    ),
]
NOTHING = [
    "",
    " ",
    "\u3000",
    "\u200b",
    "None",
    "none",
    "无",
    "無",
    "no finding",
    "No_Finding",
    "NO FINDING",
    "No-Finding",
]
NOTHING += ["未见异常", "No findings", "nil", "[]"]


@pytest.mark.parametrize("word", MISSING)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_words_for_missing_in_labels(folder, word, language):
    """Nothing is known of these rows: they are no class of their own, and no negatives."""
    words = LANGUAGES[language]
    (folder / "labels.csv").write_text(as_text(table_rows(words, joined(words, "|", word)), ","), "utf-8")
    found = open_source(folder)
    right = HAS.copy()
    right[HAS.sum(axis=1) == 0] = np.nan
    check(found, words, right)
    assert any("unknown" in note and "(2 rows)" in note for note in found.notes)


@pytest.mark.parametrize("word", NOTHING)
def test_words_for_nothing_in_labels(folder, word):
    words = LANGUAGES["en"]
    (folder / "labels.csv").write_text(as_text(table_rows(words, joined(words, "|", word)), ","), "utf-8")
    check(open_source(folder), words)


SPELLINGS = ("MASS", "mass", " Mass", "Ｍａｓｓ", "Mass\u200b", "Ma\u00adss", "_Mass")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_name_are_one_class(folder, spelling):
    words = LANGUAGES["en"]
    labels = joined(words)
    labels[4] = spelling
    (folder / "labels.csv").write_text(as_text(table_rows(words, labels), ","), "utf-8")
    found = open_source(folder)
    assert set(found.class_names) == {"Mass", "Nodule"}
    check(found, words)
    assert spelling.strip(" \u200b") == "Mass" or any("counted as 'Mass'" in note for note in found.notes)


@pytest.mark.parametrize("one, other", [("Pleural_Effusion", "Pleural Effusion"), ("X-Ray", "X Ray"), ("é", "e\u0301")])
@pytest.mark.parametrize("given", [False, True])
def test_spellings_of_long_names(folder, one, other, given):
    words = Language(LANGUAGES["en"].header, (one, "Nodule"), "")
    labels = [*joined(words)[:4], *(cell.replace(one, other) for cell in joined(words)[4:])]
    (folder / "labels.csv").write_text(as_text(table_rows(words, labels), ","), "utf-8")
    found = open_source(folder, class_names=[one, "Nodule"] if given else None)
    assert {one, other} & set(found.class_names) and len(found.class_names) == 2
    assert found.label_matrix()[:, list(found.class_names).index("Nodule")].tolist() == HAS[:, 1].tolist()
    np.testing.assert_array_equal(np.sort(found.label_matrix().sum(axis=0)), [4, 4])
    assert any(repr(other) in note or repr(one) in note for note in found.notes)


REFUSED_LABELS = [
    ("Mass,Tumour", "DATA.class_names"),
    ("Mass and Tumour", "DATA.class_names"),
    ("Mass/Tumour", "DATA.class_names"),
    ("Mass Nodule", "DATA.class_names"),
    ("Mass|No Finding", "No Finding"),
    ("Mass|None", "None"),
    ("#REF!", "#REF!"),
    ("#VALUE!", "#VALUE!"),
    ("M\ufffdss", "lost characters"),
]


@pytest.mark.parametrize("cell, says", REFUSED_LABELS)
def test_cells_that_may_mean_several_things(folder, cell, says):
    words = LANGUAGES["en"]
    labels = joined(words)
    labels[4] = cell
    (folder / "labels.csv").write_text(as_text(table_rows(words, labels), ","), "utf-8")
    with pytest.raises(DataError) as error:
        open_source(folder)
    assert "line 6" in str(error.value) and says in str(error.value)


@pytest.mark.parametrize("separator", [", ", " and ", "/", " "])
def test_class_names_say_what_separates(folder, separator):
    words = LANGUAGES["en"]
    labels = [cell if "|" in cell or not cell else f"{cell}|{cell}" for cell in joined(words, "|", "")]
    labels = [cell.replace("|", separator) for cell in labels]
    (folder / "labels.csv").write_text(as_text(table_rows(words, labels), ","), "utf-8")
    check(open_source(folder, class_names=["Mass", "Nodule"]), words)
    whole = [f"Mass{separator}Nodule", f"Mass{separator}Mass", f"Nodule{separator}Nodule"]
    assert open_source(folder, class_names=whole).label_matrix().sum() == 6


# ---- class columns

PAIRS = [
    *(("1", "0"), ("1.0", "0.0"), ("TRUE", "FALSE"), ("true", "false"), ("T", "F"), ("yes", "no"), ("Yes", "No")),
    *(("Y", "N"), ("positive", "negative"), ("pos", "neg"), ("present", "absent"), ("+", "-"), ("是", "否")),
    *(("有", "无"), ("阳性", "阴性"), ("１", "０")),
]


def class_rows(pair: tuple[str, str], unknown: str = "") -> tuple[list[list[str]], np.ndarray]:
    """Two class columns; the last row of the second is unknown."""
    cells = [[pair[0] if has else pair[1] for has in row] for row in HAS]
    cells[-1][1] = unknown
    names = [f"{row}.png" for row in range(ROWS)]
    right = HAS.copy()
    right[-1, 1] = np.nan
    header = ["image", "Mass", "Nodule", "patient_id", "split", "sex"]
    rows = [[name, *pair, *rest] for name, pair, *rest in zip(names, cells, PATIENTS, SPLITS, SEXES)]
    return [header, *rows], right


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("unknown", ["", "nan", "NA", "#N/A", "?", "未知", "None"])
def test_class_columns(folder, pair, unknown):
    rows, right = class_rows(pair, unknown)
    if unknown == "None":
        rows[-1][2] = "null"
    (folder / "labels.csv").write_text(as_text(rows, ","), "utf-8")
    for names in (None, ["Mass", "Nodule"]):
        check(open_source(folder, class_names=names), LANGUAGES["en"], right)


ODD = ("2", "11", "0.9", "maybe", "O", "l", "-2", "1;0")


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("given", [False, True])
def test_one_odd_cell(folder, pair, odd, given):
    """It is named with its line and column, whether the classes are given or taken from the data."""
    rows, _ = class_rows(pair)
    rows[5][1] = odd
    (folder / "labels.csv").write_text(as_text(rows, ","), "utf-8")
    with pytest.raises(DataError) as error:
        open_source(folder, class_names=["Mass", "Nodule"] if given else None)
    assert f"line 6, column 'Mass': '{odd}'" in str(error.value)


@pytest.mark.parametrize("pair", PAIRS[1:])
def test_a_word_of_another_pair_is_odd(folder, pair):
    rows, _ = class_rows(pair)
    rows[5][1] = "是" if pair[0] != "是" else "yes"
    (folder / "labels.csv").write_text(as_text(rows, ","), "utf-8")
    with pytest.raises(DataError, match="line 6, column 'Mass'"):
        open_source(folder)


NO_CLASSES = [
    "fold",
    "Smoker",
    "age_group",
    "index",
    "Unnamed: 0",
    "is_train",
    "gender2",
    "吸烟",
    "序号",
    "width",
    "kfold",
]


@pytest.mark.parametrize("name", NO_CLASSES)
def test_columns_that_are_no_findings(folder, name):
    rows, right = class_rows(("1", "0"))
    rows = [[*row, name if number == 0 else str(number % 2)] for number, row in enumerate(rows)]
    (folder / "labels.csv").write_text(as_text(rows, ","), "utf-8")
    found = open_source(folder)
    check(found, LANGUAGES["en"], right)
    assert any("columns taken as classes: Mass, Nodule" in note for note in found.notes)
    assert name.startswith("Unnamed") or any(name in note for note in found.notes)
    settings = TableSettings(ignore_columns=["Nodule"])
    assert open_source(folder, settings=settings).class_names == ("Mass",)
    if not name.startswith("Unnamed"):
        assert open_source(folder, class_names=[name]).class_names == (name,)


@pytest.mark.parametrize("delimiter", ["semicolon", "tab"])
def test_decimal_commas(folder, delimiter):
    rows, right = class_rows(("1,0", "0,0"))
    (folder / "labels.csv").write_text(as_text(rows, DELIMITERS[delimiter]), "utf-8")
    check(open_source(folder), LANGUAGES["en"], right)
