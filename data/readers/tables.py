"""Tables and lists as people have them, text or .xlsx, with the line numbers that error messages need."""

from __future__ import annotations

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from configs.errors import DataError
from data.readers.delimited import Record, read_records
from data.readers.json_table import read_json_records
from data.readers.regular_files import check_expansion, read_head
from data.readers.text_encoding import decode
from data.readers.xlsx import is_workbook, read_workbook
from utils.text import visible
from utils.words import is_missing, name_key, plain

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".xlsx")

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    **dict.fromkeys(("训练", "训练集", "訓練", "訓練集"), "train"),
    **dict.fromkeys(("验证", "验证集", "驗證", "驗證集"), "val"),
    **dict.fromkeys(("测试", "测试集", "測試", "測試集"), "test"),
}

# What a column is for, by its name without case, blanks, '_', '-' and '.'.
_ROLES = {
    "image": (
        *("image", "imageindex", "path", "filename", "file", "imagepath", "filepath", "imagename", "imagefile"),
        *(
            "imagefilename",
            "图像",
            "图片",
            "影像",
            "图像名",
            "图像名称",
            "图片名",
            "图片名称",
            "影像名称",
            "文件名",
            "文件名称",
        ),
        *(
            "图像文件",
            "图像文件名",
            "图片文件名",
            "影像文件",
            "影像文件名",
            "图像路径",
            "图片路径",
            "影像路径",
            "文件路径",
            "文件",
            "路径",
        ),
        *(
            "圖像",
            "圖片",
            "圖像名稱",
            "圖片名稱",
            "檔名",
            "檔案名稱",
            "影像檔名",
            "影像檔",
            "圖像路徑",
            "檔案路徑",
            "路徑",
        ),
    ),
    "labels": (
        *(
            "labels",
            "label",
            "findinglabels",
            "findings",
            "标签",
            "标签名",
            "标签名称",
            "标注",
            "诊断",
            "诊断结果",
            "类别",
        ),
        *("征象", "標籤", "標籤名稱", "標註", "診斷", "診斷結果", "類別", "徵象"),
    ),
    "patient_id": (
        *(
            "patientid",
            "patient",
            "subjectid",
            "subject",
            "mrn",
            "patientno",
            "patientnumber",
            "患者编号",
            "患者id",
            "患者",
        ),
        *(
            "患者号",
            "病人编号",
            "病人id",
            "病人",
            "病人号",
            "病历号",
            "病案号",
            "受试者编号",
            "受试者",
            "患者編號",
            "病人編號",
        ),
        *("病歷號", "病案號", "受試者編號"),
    ),
    "split": ("split", "划分", "数据划分", "数据集划分", "劃分", "資料劃分"),
    "view": ("view", "viewposition", "体位", "投照体位", "體位"),
    "age": ("age", "patientage", "年龄", "患者年龄", "年齡"),
    "sex": ("sex", "gender", "patientsex", "patientgender", "性别", "患者性别", "性別"),
}
ROLES = tuple(_ROLES)
_MAX_DISPLAYED = 5
MAX_TEXT_BYTES = 2**28  # 2.6 million rows of 100 characters
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class TableSettings:
    """What the user says of tables. encoding: DATA.encoding, None: what is certain. columns: DATA.columns, role → the
    column's name, None: there is none. ignore_columns: DATA.ignore_columns, those that are no classes.
    patient_ids: DATA.patient_ids, see `patient_identities`. study_column: DATA.study_column, None: images stand alone.
    """

    encoding: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    ignore_columns: Sequence[str] = ()
    patient_ids: str = "stop"
    study_column: str | None = None


NO_SETTINGS = TableSettings()


@dataclass(frozen=True)
class Table:
    """A table in memory: header without unnamed columns, and (line number, cells) a row, cells as the header.

    notes: what was understood that may surprise. decimal_comma: whether numbers may be written '0,5'.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    notes: tuple[str, ...] = ()
    decimal_comma: bool = False

    def column(self, index: int) -> list[str]:
        """The cells of one column, top to bottom."""
        return [cells[index] for _, cells in self.rows]

    def line_of(self, index: int, cell: str) -> int:
        """The line of the first row that has this cell in a column."""
        return next(line for line, cells in self.rows if cells[index] == cell)


def read_text(path: Path, encoding: str | None = None) -> str:
    """A text file, .gz or not, BOM dropped; DataError naming the file where its encoding is not certain, it cannot be
    read, or is beyond 256 MiB.
    """
    return _decoded(path, _read_bytes(path), encoding)[0]


def _decoded(path: Path, raw: bytes, encoding: str | None) -> tuple[str, str]:
    try:
        return decode(raw, encoding)
    except DataError as reason:
        raise DataError(f"'{path}' {reason}") from None


def _read_bytes(path: Path) -> bytes:
    try:
        packed = read_head(path)[:2] == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            return _read_all(file, path.stat().st_size)
    except DataError as reason:
        raise DataError(f"cannot read '{path}': {reason}") from None
    except (OSError, EOFError, zlib.error) as reason:
        raise DataError(f"cannot read '{path}': {reason}") from reason


def _read_all(file: IO[bytes] | gzip.GzipFile, stored: int) -> bytes:
    whole = io.BytesIO()  # one growing block; a list of pieces, once joined, may stay with the process as holes
    while piece := file.read(_PIECE_BYTES):
        whole.write(piece)
        check_expansion(stored, whole.tell())
        if whole.tell() > MAX_TEXT_BYTES:
            raise DataError(f"it has more than {MAX_TEXT_BYTES:,} bytes, which no table of labels needs")
    return whole.getvalue()


def read_table(path: Path, settings: TableSettings = NO_SETTINGS) -> Table:
    """Read a table with a header: text separated by commas, semicolons or tabs, or an .xlsx file, by its content; of
    a .json file a list of studies, see `read_json_records`, whose objects count as lines.

    Empty lines are skipped, surrounding blanks of cells dropped, as are columns without a name (a pandas index, the
    comma at the end of NIH's 2017 header); at the end of a row they may be missing, as in NIH's list of boxes. Raises
    DataError naming the file, and the line where there is one: no rows, a row of another length, a column named twice,
    broken quoting, a delimiter or an encoding that is not certain, a file that is no table.
    """
    raw = _read_bytes(path)
    try:
        if is_workbook(raw):
            records, notes = read_workbook(raw, lambda header: _has_image(header, settings))
            return _build(path, iter(records), tuple(f"'{path.name}': {note}" for note in notes), False)
        _check_is_text(raw)
        text, guessed = _decoded(path, raw, settings.encoding)
        del raw  # what is now text: a large table need not be in memory twice
        if path.name.lower().endswith((".json", ".json.gz")):
            return _build(path, read_json_records(text), (), False)
        lines, delimiter = read_records(text, lambda header: _has_image(header, settings))
        notes = [f"is not UTF-8, it was read as {guessed} (DATA.encoding says otherwise)"] if guessed else []
        return _build(path, lines, tuple(f"'{path.name}' {note}" for note in notes), delimiter in ";\t")
    except DataError as reason:
        raise reason if f"'{path}'" in str(reason) else DataError(f"'{path}' {reason}") from None


def _check_is_text(raw: bytes) -> None:
    if raw.startswith(b"\xd0\xcf\x11\xe0"):
        raise DataError("is an Excel file of the old format (.xls): save it as .xlsx or CSV")
    if raw.startswith(b"PK\x03\x04"):
        raise DataError("is a packed file, not a table: save it as .xlsx or CSV")
    if raw.lstrip()[:1] == b"<":
        raise DataError("is a web page or XML, not a table: save it as .xlsx or CSV")


def _build(path: Path, records: Iterable[Record], notes: tuple[str, ...], decimal_comma: bool) -> Table:
    lines = iter(records)
    try:
        line, header = next(lines)
    except StopIteration:
        raise DataError(f"'{path}' is empty: it needs a header and a row per image") from None
    kept = [index for index, name in enumerate(header) if name and not name.startswith("Unnamed: ")]
    names = tuple(header[index] for index in kept)
    least = 1 + max(kept, default=-1)
    _check_header(path, names)
    rows = []
    for line, cells in lines:
        if not least <= len(cells) <= len(header) and (len(cells) < least or any(cells[len(header) :])):
            hint = ": a cell with a delimiter in it needs quotes" if len(cells) > len(header) else ""
            if hint and len(header) == 1:
                hint += "; if the first row is a title, delete the rows above the names of the columns"
            raise DataError(f"'{path}' line {line} has {len(cells)} cells, the header has {len(header)}{hint}")
        rows.append((line, tuple(cells[index] for index in kept)))
    if not rows:
        raise DataError(f"'{path}' holds a header and no rows")
    return Table(path, names, tuple(rows), notes, decimal_comma)


def read_list(path: Path) -> list[str]:
    """The names in a text file of one name a line."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def column_roles(table: Table, columns: Mapping[str, str | None] | None = None) -> dict[str, int]:
    """Which column is 'image', 'labels', 'patient_id', 'split', 'view', 'age', 'sex', by its name in any case.

    columns: DATA.columns, which count before that. Of several candidates the first in the order of aliases counts
    ('image' before 'path'); DataError where two differ in case or separators only, and for columns that are not there.
    """
    roles: dict[str, int] = {}
    given = columns or {}
    named = {role: find_column(table, name, f"DATA.columns.{role}") for role, name in given.items() if name}
    plain_names = [_column_key(name) for name in table.header]
    for role, aliases in _ROLES.items():
        if role in given:
            roles |= {role: named[role]} if role in named else {}
            continue
        alias = next((alias for alias in aliases if alias in plain_names), None)
        if alias is None or plain_names.index(alias) in named.values():
            continue
        if plain_names.count(alias) > 1:
            raise DataError(
                f"'{table.path}' has two columns that mean {role!r}: rename one, or say which by DATA.columns.{role}"
            )
        roles[role] = plain_names.index(alias)
    return roles


def find_column(table: Table, name: str, setting: str) -> int:
    """The column of this name, or the one whose name differs in case, blanks or Unicode form only; else DataError."""
    if name in table.header:
        return table.header.index(name)
    found = [index for index, column in enumerate(table.header) if name_key(column) == name_key(name)]
    if len(found) != 1:
        why = "is the name of several columns" if found else "is no column"
        raise DataError(f"{setting}: {name!r} {why} of '{table.path}' (its columns: {', '.join(table.header)})")
    return found[0]


def _column_key(name: str) -> str:
    return "".join(plain(name).split()).translate(str.maketrans("", "", "_-."))


def _has_image(header: Sequence[str], settings: TableSettings) -> bool:
    """Whether a header names the images."""
    if named := settings.columns.get("image"):
        return named in header
    if settings.study_column is not None and any(view_of_column(name) for name in header):
        return True
    return any(_column_key(name) in _ROLES["image"] for name in header)


def view_of_column(name: str) -> str:
    """'frontal' of 'image_frontal', a column that names each study's image of that view; '' of others."""
    prefix, _, view = visible(name).replace("-", "_").partition("_")
    return view.strip() if prefix.casefold() == "image" else ""


def role_of(name: str) -> str | None:
    """What a column of this name is for, None where its name does not say."""
    return next((role for role, aliases in _ROLES.items() if _column_key(name) in aliases), None)


def parse_split(text: str) -> str | None:
    """'train', 'Valid', 'validation', 'TEST', '训练集', … to 'train', 'val' or 'test'; words for missing to None.

    Raises ValueError for others.
    """
    if is_missing(text):
        return None
    if plain(text) not in SPLIT_NAMES:
        raise ValueError(f"{text!r} is not train, val (valid, validation) or test")
    return SPLIT_NAMES[plain(text)]


def some(items: Sequence[object], limit: int = _MAX_DISPLAYED) -> str:
    """The first few of many, for a message: 'a, b, c and 12 more'."""
    head = ", ".join(str(item) for item in items[:limit])
    return head if len(items) <= limit else f"{head} and {len(items) - limit} more"


def raise_problems(path: Path, problems: Sequence[str]) -> None:
    """DataError that lists the first few problems of a file and counts the rest; nothing where there are none."""
    if problems:
        head = "\n  ".join(problems[:_MAX_DISPLAYED])
        more = f"\n  and {len(problems) - _MAX_DISPLAYED} more" if len(problems) > _MAX_DISPLAYED else ""
        raise DataError(f"'{path}':\n  {head}{more}")


def _check_header(path: Path, names: tuple[str, ...]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"'{path}' names column {', '.join(map(repr, twice))} more than once")
    if len(names) == 1 and any(separator in names[0] for separator in ";\t，；"):
        raise DataError(f"'{path}' is not separated by commas; its header is {names[0]!r}")
    lost = [name for name in names if "\ufffd" in name]
    if lost:
        raise DataError(f"'{path}': column {lost[0]!r} has lost characters in an earlier conversion: save it again")
