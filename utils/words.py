"""Words in the cells of tables: what two spellings of a name have in common, and what is written for 'missing'."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# What pandas reads as missing (pandas.read_csv, na_values), and what R, databases, spreadsheets and people write.
_MISSING = frozenset(
    ["", "nan", "-nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "na", "<na>", "n/a", "n.a.", "n.a", "#n/a", "#na"]
    + ["#n/a n/a", "nat", "null", "(null)", "<null>", "undefined", "missing", "unknown", "unk", "not available", "?"]
    + [
        "??",
        "-",
        "--",
        "---",
        "–",
        "—",
        "——",
        "/",
        "\\",
        ".",
        "未知",
        "不详",
        "不詳",
        "空",
        "空白",
        "空值",
        "缺失",
        "缺失值",
    ]
    + ["缺", "未标注", "未標註", "unlabeled", "unlabelled", "not labeled", "not labelled"]
    + ["<nan>", "unspecified", "not known", "not specified", "empty", "blank", "(empty)", "(blank)"]
    + ["―", "..", "...", "???", "*", "_", "不明", "未填", "未填写", "未提供", "未记录"]
)
_NOTHING = frozenset(["none", "nil", "no", "无", "無"])
# Of these what programs and people write for a value that is not there, where it is no answer.
_NO_VALUE = frozenset(["none", "nil", "无", "無", "没有", "#n/a!"])
# Formulas of a spreadsheet that have no value; '#N/A' is one that people write on purpose.
_ERRORS = frozenset(["#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!", "#spill!", "#calc!", "#getting_data"])
_BLANKS = re.compile(r"[\s_\-‐‑‒–—−]+")
# Characters that are not drawn, of category Cf and outside it; at the ends of a cell they are blanks.
UNDRAWN = "\u00ad\u034f\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"


def stripped(text: str) -> str:
    """A cell without blanks of any kind at its ends, and without characters there that are not drawn."""
    text = text.strip()
    return text if text.isascii() else text.strip(f"{UNDRAWN} \t\u00a0\u3000").strip()


@lru_cache(maxsize=65_536)
def plain(text: str) -> str:
    """In one case and one Unicode form (NFKC, so that full-width letters are letters), with plain single blanks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(mark for mark in folded if mark not in UNDRAWN).split())


@lru_cache(maxsize=65_536)
def name_key(name: str) -> str:
    """Equal for names that differ in case, Unicode form, blanks, '_' and hyphens only, and for one number's spellings.

    A sign in front of a name or behind it counts ('HER2-'), and so does a blank between two digits.
    """
    text = plain(name)
    try:
        return repr(float(text))
    except ValueError:
        pass
    text = text.strip("_ ")
    return _BLANKS.sub(lambda found: _join(text, found), text)


def _join(text: str, found: re.Match[str]) -> str:
    before, after = text[: found.start()][-1:], text[found.end() :][:1]
    if before.isdigit() and after.isdigit():
        return " "
    return "" if before.isalnum() and after.isalnum() else found[0].replace("_", "").strip()


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known: empty, 'nan', 'NA', '#N/A', '<NA>', 'null', '?', '未知', '缺失', …"""
    return plain(text) in _MISSING


def is_nothing(text: str) -> bool:
    """Whether a cell says that there is nothing ('none', 'nil', '无'), or, as pandas writes None, nothing known."""
    return plain(text) in _NOTHING


def has_no_value(text: str) -> bool:
    """Whether a cell of a column of values holds none: `is_missing`, 'None' as pandas writes it, a formula's error."""
    return is_missing(text) or plain(text) in _NO_VALUE or is_spreadsheet_error(text)


def is_spreadsheet_error(text: str) -> bool:
    """Whether a cell is a formula's error: '#REF!', '#VALUE!', …"""
    return plain(text) in _ERRORS
