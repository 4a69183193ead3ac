"""The cells of a column that makes subgroups: one person's sex, age or view, however it was written."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from utils.text import folded, printable, told_apart, visible
from utils.words import has_no_value

Texts = NDArray[np.object_]
Floats = NDArray[np.float64]

# NIH's tables hold ages of up to 414 years, which are typing errors.
OLDEST = 120
UNITS_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
_UNIT_WORDS = {
    **dict.fromkeys(("y", "yr", "yrs", "year", "years", "yo", "y/o", "岁", "周岁", "年"), "Y"),
    **dict.fromkeys(("m", "mo", "month", "months", "月", "个月", "月龄"), "M"),
    **dict.fromkeys(("w", "wk", "week", "weeks", "周"), "W"),
    **dict.fromkeys(("d", "day", "days", "天", "日"), "D"),
}
_AGE = re.compile(r"[>≥]?\s*=?\s*(\d+(?:[.,]\d+)?)\s*([^\d\s+]*)\s*(?:old)?\s*\+?")
_BAND = re.compile(r"[<≤]?\s*=?\s*\d+\D{0,6}[-–—~〜至到]\s*\d+\D*|\d+\s*(?:to|bis|à)\s*\d+\D*|[<≤]\s*=?\s*\d+\D*")
# Words of one meaning, each line one group; in columns of that meaning only, as 'F' is 'false' elsewhere.
_SEX = (
    (
        "m",
        "male",
        "man",
        "boy",
        "masculine",
        "männlich",
        "maennlich",
        "homme",
        "masculin",
        "hombre",
        "masculino",
        "男",
        "男性",
    ),
    (
        "f",
        "female",
        "woman",
        "girl",
        "w",
        "feminine",
        "weiblich",
        "femme",
        "féminin",
        "mujer",
        "femenino",
        "女",
        "女性",
    ),
    ("o", "other", "diverse", "其他", "其它"),
)
_VIEW = (
    ("pa", "p.a.", "p/a", "posteroanterior", "postero anterior", "posterior anterior", "后前位", "後前位"),
    ("ap", "a.p.", "a/p", "anteroposterior", "antero posterior", "anterior posterior", "前后位", "前後位"),
    ("l", "lat", "lateral", "侧位", "側位"),
)
_SIDE = (("l", "left", "左", "左侧"), ("r", "right", "右", "右侧"), ("b", "both", "bilateral", "双侧"))
_TRUTH = (
    ("yes", "y", "true", "t", "是", "有", "ja", "oui", "si", "sí"),
    ("no", "n", "false", "f", "否", "无", "nein", "non"),
)
_COLUMNS = (
    (("sex", "gender", "性别", "性別"), _SEX),
    (("view", "projection", "position", "体位", "投照"), _VIEW),
    (("side", "laterality", "侧别"), _SIDE),
)


def joined_texts(column: str, values: Sequence[str]) -> tuple[Texts, list[str]]:
    """(the name of each value's group, '' where it is missing; what was joined, in words).

    Values that differ in case, blanks, '_', '-' or Unicode form only are one group, and so are words of one meaning in
    columns of sex, view and side (M, male, 男), and yes, true, 是. A group has its most frequent spelling for a name.
    """
    cells = Counter(values)
    keys = {cell: "" if has_no_value(cell) else folded(cell) for cell in cells}
    meanings = _meanings(column, set(keys.values()) - {""})
    groups: dict[str, Counter[str]] = {}
    for cell, count in cells.items():
        if keys[cell]:
            key = meanings.get(keys[cell], keys[cell])
            groups.setdefault(key, Counter())[visible(cell)] += count
    names = {key: max(one, key=lambda text: (one[text], text)) for key, one in groups.items()}
    texts = np.array([names.get(meanings.get(keys[cell], keys[cell]), "") for cell in values], dtype=object)
    joined = [sorted(one, key=lambda text: (-one[text], text)) for one in groups.values() if len(one) > 1]
    told = [
        f"{', '.join(map(repr, map(printable, one[:2])))} and {len(one) - 2} more" for one in joined if len(one) > 2
    ]
    told += [told_apart(one[0], one[1]) for one in joined if len(one) == 2]
    return texts, [f"taken for one group: {one}" for one in told]


def is_age_column(column: str) -> bool:
    """'age', 'Patient Age', 'PatientAge', 'age_years', '年龄', but not 'stage', 'dosage' or 'age group'."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", visible(column))
    lowered = {word.lower() for word in words}
    if lowered & {"group", "band", "bin", "category", "cat", "class", "range", "decade"}:
        return False
    return bool(lowered & {"age", "ages", "patientage"}) or any(word in column for word in ("年龄", "年齡"))


def read_ages(values: Sequence[str]) -> tuple[Floats, list[str]] | None:
    """(years of each value, nan where it is missing or none; what cannot be read, in words); None: they are bands.

    '45', '45.0', '045Y' and '006M' of DICOM, '45 years', '45岁', '6 months', '90+', '>89'.
    """
    texts = {cell: visible(cell) for cell in set(values)}
    if any(_BAND.fullmatch(text) for text in texts.values()):
        return None
    years = {cell: math.nan if has_no_value(cell) else _years(text) for cell, text in texts.items()}
    unread = Counter(cell for cell in values if math.isnan(years[cell]) and not has_no_value(cell))
    notes = []
    if unread:
        examples = ", ".join(f"'{printable(cell)}'" for cell, _ in unread.most_common(3))
        notes = [f"{sum(unread.values())} ages are none of 0 to {OLDEST} years and count as unknown: {examples}"]
    return np.array([years[cell] for cell in values], np.float64), notes


def read_numbers(texts: Sequence[str]) -> Floats | None:
    """All as numbers, nan where missing; None if one is none."""
    try:
        numbers = [math.nan if has_no_value(text) else _number(visible(text)) for text in texts]
    except ValueError:
        return None
    return None if any(map(math.isinf, numbers)) else np.array(numbers, np.float64)


def _meanings(column: str, keys: set[str]) -> Mapping[str, str]:
    """Key → the first word of its line, in the vocabulary of the column, or of truth where all are words of that."""
    named = folded(column)
    for words, vocabulary in _COLUMNS:
        if any(word in named for word in words):
            return _by_word(vocabulary)
    truth = _by_word(_TRUTH)
    return truth if keys <= truth.keys() else {}


def _by_word(vocabulary: Sequence[Sequence[str]]) -> dict[str, str]:
    return {folded(word): line[0] for line in vocabulary for word in line}


def _years(text: str) -> float:
    match = _AGE.fullmatch(text.casefold())
    unit = _UNIT_WORDS.get(match[2] or "y") if match else None
    years = _number(match[1]) / UNITS_PER_YEAR[unit] if match and unit else math.nan
    return years if years <= OLDEST else math.nan


def _number(text: str) -> float:
    """With a decimal comma too."""
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
