"""Who is who: the patient ids of a table as people, however spreadsheets have written them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path

from configs.errors import DataError
from utils.text import printable, told_apart, visible
from utils.words import has_no_value

# DATA.patient_ids: spellings that may be one person stop the run, are one person, or are different people.
SPELLINGS = ("stop", "join", "exact")

# What names nobody beside the words for a missing cell, in small letters.
_NOBODY = frozenset(
    (
        "anonymous",
        "anonymized",
        "anonymised",
        "anon",
        "deidentified",
        "de-identified",
        "no id",
        "no patient id",
        "-1",
        "匿名",
    )
)
# What often stands for somebody unknown, and may be a patient's number all the same.
_PLACEHOLDER = re.compile(r"0+|99+|(x{2,})|(test)", re.IGNORECASE)
# 53 bits of a 64-bit float, and the 15 digits that Excel keeps of a number.
_FLOAT_BITS, _EXCEL_DIGITS = 53, 15
_SCIENTIFIC = re.compile(r"[+-]?(\d+)(?:[.,](\d*))?e([+-]?)(\d{1,3})", re.IGNORECASE)
_DECIMAL = re.compile(r"[+-]?\d+[.,]\d*")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:([ .,'’_])\d{3})(?:\1\d{3})*(?:[.,]0+)?")
_DATE = re.compile(r"\d{1,2}-[a-z]{3}(-\d{2,4})?|[a-z]{3}-\d{2}", re.IGNORECASE)
_PART = re.compile(r"\d+|[^\W\d_]+|[^\w\s-]")
_SHOWN = 5


def patient_identities(path: Path, rows: Sequence[tuple[int, str]], spellings: str) -> tuple[list[str], list[str]]:
    """(the patient of each row, '' where none is named; notes) from all cells of a table's column.

    rows: (line, cell). spellings: one of SPELLINGS. Words for 'missing' name nobody. Blanks at the ends and of other
    kinds, characters that are not drawn, full-width digits, other Unicode forms and the apostrophe that keeps a
    spreadsheet from reading a number are no difference. Ids that differ in leading zeros, decimals, exponents,
    separators, case or blanks only (007 and 7, 7.0, P01 and p1) may be one person, and so may others: 'stop' raises
    DataError naming them with their lines, 'join' makes each set of them one patient, 'exact' takes every cell as it
    is written.
    Ids that were rounded (1.23E+05, 64-bit numbers through a float) may be several people: DataError, but for 'exact'.
    """
    lines: dict[str, int] = {}
    for line, cell in rows:
        lines.setdefault(cell, line)
    nobody = {cell for cell in lines if names_nobody(cell)}
    meant = {cell: cell if spellings == "exact" else cleaned(cell) for cell in lines if cell not in nobody}
    firsts: dict[str, int] = {}
    for cell, identity in meant.items():
        firsts.setdefault(identity, lines[cell])
    notes = [*_nobody_notes(rows, nobody), *_rounded(path, firsts, spellings)]
    if spellings != "exact":
        sets = _may_be_one(list(firsts))
        if sets and spellings == "stop":
            raise _ambiguous_error(path, sets, firsts)
        joined = {spelling: _shortest(one) for one in sets for spelling in one}
        notes += [*_spelling_notes(meant), *_join_notes(sets)]
        meant = {cell: joined.get(identity, identity) for cell, identity in meant.items()}
    patients = [meant.get(cell, "") for _, cell in rows]
    return patients, [*notes, *_suspicious_notes(patients)]


def cleaned(cell: str) -> str:
    """An id without what is not part of it: see `patient_identities`."""
    text = visible(cell)
    formula = re.fullmatch(r'="(.*)"', text)
    return (formula[1] if formula else text.lstrip("'’‘`")).strip()


def patient_keys(identity: str) -> frozenset[str]:
    """What an id has in common with other spellings of it: two ids that share a key may be one person."""
    text = cleaned(identity).casefold()
    if text.isdecimal():
        return frozenset((_without_zeros(text),))
    return frozenset((_parts(text), *_numbers(text)))


def keys_of(identities: Iterable[str]) -> frozenset[str]:
    """`patient_keys` of all; none for ''."""
    return frozenset().union(*(patient_keys(one) for one in identities if one))


def names_nobody(cell: str) -> bool:
    """Whether an id says that the patient is not known: '', 'anonymous', '-1', …"""
    return has_no_value(cell) or has_no_value(cleaned(cell)) or cleaned(cell).casefold() in _NOBODY


def _parts(text: str) -> str:
    """'p 01-02' → 'p1-2': letters and numbers without zeros before them, blanks, '_' and '-' between numbers only."""
    sign = "-" if re.fullmatch(r"-[\d.,]+", text) else ""
    parts = [_without_zeros(part) if part.isdecimal() else part for part in _PART.findall(text)]
    separators = ["-" if one[-1].isdecimal() and other[0].isdecimal() else "" for one, other in pairwise(parts)]
    return sign + "".join(part + separator for part, separator in zip(parts, [*separators, ""]))


def _without_zeros(digits: str) -> str:
    """'007' → '7', digits of any script."""
    plain = digits if digits.isascii() else "".join(str(unicodedata.decimal(digit)) for digit in digits)
    return plain.lstrip("0") or "0"


def _numbers(text: str) -> set[str]:
    """The numbers that a text may mean, written alike: '1.234' is a decimal or 1234 with a separator."""
    found = set()
    if _DECIMAL.fullmatch(text) or _SCIENTIFIC.fullmatch(text):
        found.add(text.replace(",", "."))
    if _THOUSANDS.fullmatch(text):
        whole = re.sub(r"[.,]0+$", "", text) if re.search(r"[.,]0{1,2}$", text) else text
        found.add(re.sub(r"[ .,'’_]", "", whole))
    return {plain for plain in map(_plain_number, found) if plain}


def _plain_number(text: str) -> str:
    try:
        return format(Decimal(text).normalize(), "f")
    except InvalidOperation:
        return ""


def _may_be_one(identities: Sequence[str]) -> list[list[str]]:
    """The sets of two and more ids that share a key, directly or by others; in the order of their first."""
    parent = list(range(len(identities)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    owner: dict[str, int] = {}
    for index, identity in enumerate(identities):
        for key in patient_keys(identity):
            parent[root(index)] = root(owner.setdefault(key, index))
    sets: dict[int, list[str]] = {}
    for index, identity in enumerate(identities):
        sets.setdefault(root(index), []).append(identity)
    return [one for one in sets.values() if len(one) > 1]


def _shortest(spellings: Sequence[str]) -> str:
    """The one that names a patient of several spellings: the same in whichever order they come."""
    return min(spellings, key=lambda text: (len(text), text))


def _ambiguous_error(path: Path, sets: Sequence[Sequence[str]], lines: Mapping[str, int]) -> DataError:
    examples = [
        f"{told_apart(one[0], one[1])}, lines {lines[one[0]]} and {lines[one[1]]}"
        + (f", and {len(one) - 2} more spellings" if len(one) > 2 else "")
        for one in sets[:_SHOWN]
    ]
    more = f"\n  and {len(sets) - _SHOWN} more" if len(sets) > _SHOWN else ""
    listed = "\n  ".join(examples)
    return DataError(
        f"'{path}': {_ids(len(sets))} written in several ways, which may be of one person:\n  {listed}{more}\n"
        "set DATA.patient_ids=join if they are one person, or DATA.patient_ids=exact if they are different people"
    )


def _rounded(path: Path, lines: Mapping[str, int], spellings: str) -> list[str]:
    """A note or DataError for ids that have lost digits, so that several patients may have one."""
    lossy = [identity for identity in lines if _has_lost_digits(identity)] or _rounded_integers(list(lines))
    if not lossy:
        return []
    examples = ", ".join(f"'{printable(identity)}' (line {lines[identity]})" for identity in lossy[:_SHOWN])
    text = (
        f"{_ids(len(lossy))} rounded by a spreadsheet or as floating-point numbers, so that several patients "
        f"may have become one: {examples}"
    )
    if spellings == "exact":
        return [text]
    raise DataError(
        f"'{path}': {text}. Export the column as text, or set DATA.patient_ids=exact to take the ids as they are"
    )


def _has_lost_digits(identity: str) -> bool:
    """Whether a number is written so that digits before the point are missing, or has more than a float holds."""
    text = identity.casefold()
    found = _SCIENTIFIC.fullmatch(text)
    if found and (found[3] or found[2] is not None) and found[3] != "-":
        return len(found[2] or "") < int(found[4]) or _beyond_float(text)
    return bool(_DECIMAL.fullmatch(text)) and _beyond_float(text) and not text.partition(".")[2].strip("0")


def _beyond_float(text: str) -> bool:
    number = _plain_number(text.replace(",", "."))
    return bool(number) and abs(Decimal(number)) > 2**_FLOAT_BITS


def _rounded_integers(identities: Sequence[str]) -> list[str]:
    """Integers that are too long for a float or for Excel, where all of them happen to fit: that is no chance.

    A number of 19 digits is a float's once in 128; one of 18 digits ends in three zeros once in 1,000.
    """
    integers = [text for text in identities if text.isascii() and text.isdecimal() and _EXCEL_DIGITS < len(text) < 40]
    spare_digits = [len(text) - _EXCEL_DIGITS for text in integers]
    if sum(spare_digits) >= 3 and all(text.endswith("0" * spare) for text, spare in zip(integers, spare_digits)):
        return integers
    long = [text for text in integers if int(text) > 2**_FLOAT_BITS]
    spare_bits = [int(text).bit_length() - _FLOAT_BITS for text in long]
    if sum(spare_bits) >= 12 and all(int(text) % 2**spare == 0 for text, spare in zip(long, spare_bits)):
        return long
    return []


def _ids(count: int) -> str:
    return f"{count:,} patient id{'' if count == 1 else 's'}"


def _nobody_notes(rows: Sequence[tuple[int, str]], nobody: set[str]) -> list[str]:
    words = Counter(cell for _, cell in rows if cell in nobody and visible(cell))
    if not words:
        return []
    listed = ", ".join(f"'{printable(word)}' ({count} rows)" for word, count in words.most_common(_SHOWN))
    return [f"patient ids that name nobody are taken as missing: {listed}"]


def _spelling_notes(meant: Mapping[str, str]) -> list[str]:
    """Cells that differ in what is no difference."""
    cells: dict[str, list[str]] = {}
    for cell, identity in meant.items():
        cells.setdefault(identity, []).append(cell)
    several = [one for one in cells.values() if len(one) > 1]
    if not several:
        return []
    examples = "; ".join(told_apart(one[0], one[1]) for one in several[:2])
    return [f"{_ids(len(several))} written with other blanks or in another Unicode form are one: {examples}"]


def _join_notes(sets: Sequence[Sequence[str]]) -> list[str]:
    if not sets:
        return []
    examples = "; ".join(told_apart(one[0], one[1]) for one in sets[:2])
    return [f"DATA.patient_ids=join: {_ids(len(sets))} written in several ways joined: {examples}"]


def _suspicious_notes(patients: Sequence[str]) -> list[str]:
    """Ids that may stand for 'unknown', and those that a spreadsheet has made dates of."""
    counts = Counter(patient for patient in patients if patient)
    notes = []
    if len(counts) > 1:
        (name, count), (_, next_count) = counts.most_common(2)
        if _PLACEHOLDER.fullmatch(name) and count >= max(5, 2 * next_count):
            notes.append(
                f"patient '{printable(name)}' has {count} images, the next {next_count}: if it stands for 'unknown', "
                "empty those cells, so that different people are not taken for one"
            )
    dates = [name for name in counts if _DATE.fullmatch(name)]
    if dates and len(dates) < len(counts):
        notes.append(
            f"{_ids(len(dates))} like dates that a spreadsheet made of them, so that different patients may "
            f"have become one: {', '.join(map(printable, dates[:_SHOWN]))}"
        )
    return notes
