"""Cells that name the findings of an image: 'Mass|Nodule', and how else people write that."""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from configs.errors import DataError
from data.labels import NIH_FINDINGS, is_no_finding, nearest
from data.readers.tables import Table, raise_problems, some
from utils.words import is_missing, is_nothing, is_spreadsheet_error, name_key, stripped

_MOST_CLASSES = 10_000
# Between labels, and in no name.
_SURE = re.compile(r"[|;；、\n\r]")
# Between labels, or part of one: 'Mass, Nodule' and 'Pneumonia, bacterial'; 'Mass and Nodule' and 'Hide and seek'.
_COMMA = re.compile(r"[,，]")
_WEAK = re.compile(r"[,，/／+＋&＆]|\s+(?:and|und|et|y)\s+|和|与|及", re.IGNORECASE)
_BLANK = re.compile(r"\s+")
_WHAT_TO_SAY = "DATA.class_names: [{names}] says which labels there are"


@dataclass(frozen=True)
class Cells:
    """The cells of a labels column, understood.

    names: the classes. rows: of each distinct cell the positions in names, None where nothing is known.
    """

    names: tuple[str, ...]
    rows: dict[str, tuple[int, ...] | None]
    notes: tuple[str, ...]

    def codes(self, cells: Iterable[str]) -> np.ndarray:
        """float32 [rows, K]: 1 and 0, NaN in rows of which nothing is known."""
        distinct = {cell: row for row, cell in enumerate(self.rows)}
        codes = np.zeros((len(distinct), len(self.names)), np.float32)
        for row, found in enumerate(self.rows.values()):
            codes[row, slice(None) if found is None else list(found)] = np.nan if found is None else 1.0
        return codes[np.array([distinct[cell] for cell in cells], np.intp)]


@dataclass
class _Understood:
    """What is told of the cells: counts of rows."""

    missing: Counter[str] = field(default_factory=Counter)
    nothing: Counter[str] = field(default_factory=Counter)
    split: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    empty: int = 0
    no_finding: int = 0


def read_cells(table: Table, column: int, class_names: Sequence[str] | None) -> Cells:
    """Understand a column of joined labels.

    '|', ';', '、' and line breaks separate labels, and so does a list ("['Mass', 'Nodule']"). ',', '/', '+', '&',
    'and', '和' do where all parts are labels on their own: in class_names, or without these in other rows. Names that
    differ in case, blanks, '_', '-' or Unicode form are one class. Empty cells, 'No Finding', 'None' and '无' mean that
    nothing was found; 'nan', 'NA', '?', '未知' and the like that nothing is known. class_names go before all that.

    Raises DataError naming the line: names that class_names lacks, 'No Finding' beside a finding, a cell that may be
    one label or several, a spreadsheet's error, no finding in any row.
    """
    counts = Counter(table.column(column))
    lines = _first_lines(table, column)
    told = _Understood()
    asked = {name_key(name): name for name in class_names or ()}
    pieces = {cell: _pieces(cell) for cell in counts}
    pieces = _split_weakly(table, pieces, counts, lines, asked, told)
    findings, problems = {}, list[str]()
    for cell, parts in pieces.items():
        try:
            findings[cell] = _findings(parts, counts[cell], asked, told)
        except ValueError as reason:
            problems.append(f"line {lines[cell]}: {reason}")
    raise_problems(table.path, problems)
    spellings = _spellings(findings, counts)
    names = tuple(class_names) if class_names else _names_found(table, spellings)
    key_of = {name_key(name): position for position, name in enumerate(names)}
    _check_known(table, spellings, key_of, names, lines)
    rows = {
        cell: None if parts is None else tuple(dict.fromkeys(key_of[name_key(name)] for name in parts))
        for cell, parts in findings.items()
    }
    return Cells(names, rows, (*_notes(told), *_spelling_notes(spellings, names)))


def _first_lines(table: Table, column: int) -> dict[str, int]:
    lines: dict[str, int] = {}
    for line, cells in table.rows:
        lines.setdefault(cells[column], line)
    return lines


def _pieces(cell: str) -> list[str]:
    """A cell's parts between separators that are in no name."""
    if cell[:1] == "[" and cell[-1:] == "]":
        try:
            items = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            items = None
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return [piece for item in items for piece in _pieces(stripped(item))]
    return [piece for piece in map(stripped, _SURE.split(cell)) if piece]


def _split_weakly(
    table: Table,
    pieces: dict[str, list[str]],
    counts: Counter[str],
    lines: dict[str, int],
    asked: dict[str, str],
    told: _Understood,
) -> dict[str, list[str]]:
    """Pieces cut at separators that may be part of a name, where all that comes of it are labels on their own."""
    lines_of: dict[str, int] = {}
    for cell, parts in pieces.items():
        for piece in parts:
            lines_of.setdefault(piece, lines[cell])
    weak = {p: _cut(p) for p in lines_of if not _is_word(p) and name_key(p) not in asked}
    weak = {piece: parts for piece, parts in weak.items() if len(parts) > 1}
    alone = set(asked) or {name_key(piece) for piece in lines_of if piece not in weak or _is_blank_cut(piece)}
    used = Counter(key for parts in weak.values() for key in {name_key(part) for part in parts})
    problems = []
    cuts: dict[str, list[str]] = {}
    for piece, parts in weak.items():
        known = [name_key(part) in alone or _is_word(part) for part in parts]
        if _is_blank_cut(piece):
            if all(known) and asked:
                cuts[piece] = parts
                told.split.setdefault(piece, " | ".join(parts))
            elif all(known):
                problems.append(_question(lines_of[piece], piece, parts, []))
        elif all(known):
            cuts[piece] = parts
            told.split.setdefault(piece, " | ".join(parts))
        elif asked:
            continue  # named among the labels that class_names lacks
        elif any(known) or _COMMA.search(piece) or any(used[name_key(part)] > 1 for part in parts):
            problems.append(_question(lines_of[piece], piece, parts, [p for p, k in zip(parts, known) if not k]))
        else:
            told.whole.setdefault(piece, piece)
    raise_problems(table.path, problems)
    return {cell: [part for piece in parts for part in cuts.get(piece, [piece])] for cell, parts in pieces.items()}


def _cut(piece: str) -> list[str]:
    separator = _WEAK if _WEAK.search(piece) else _BLANK
    return [part for part in map(stripped, separator.split(piece)) if part]


def _is_blank_cut(piece: str) -> bool:
    return not _WEAK.search(piece)


def _is_word(text: str) -> bool:
    """Whether a text has a meaning of its own, and is no finding."""
    return is_missing(text) or is_nothing(text) or is_no_finding(text) or is_spreadsheet_error(text)


def _question(line: int, piece: str, parts: Sequence[str], strangers: Sequence[str]) -> str:
    why = f" ({some(strangers)} never stands alone)" if strangers else ""
    say = _WHAT_TO_SAY.format(names=", ".join(parts))
    return f"line {line}: {piece!r} may be one label or {len(parts)}{why}: {say}, or write '|' between labels"


def _findings(parts: Sequence[str], count: int, asked: dict[str, str], told: _Understood) -> list[str] | None:
    """The findings that a cell's parts name, None where nothing is known; ValueError where they contradict another."""
    names, missing, nothing = [], list[str](), list[str]()
    for part in parts:
        if name_key(part) in asked:
            names.append(part)
        elif is_spreadsheet_error(part):
            raise ValueError(f"{part!r} is the error of a formula, not a label")
        elif is_missing(part):
            missing.append(part)
        elif is_nothing(part) or is_no_finding(part):
            nothing.append(part)
        elif "\ufffd" in part:
            raise ValueError(f"{part!r} has lost characters in an earlier conversion: save the table again")
        else:
            names.append(part)
    if nothing and (names or missing):
        raise ValueError(f"{'|'.join(parts)!r} names {'findings' if names else 'missing labels'} and {nothing[0]!r}")
    told.empty += count if not parts else 0
    told.missing.update(dict.fromkeys(missing, count))
    told.no_finding += count if any(map(is_no_finding, nothing)) else 0
    told.nothing.update(dict.fromkeys((word for word in nothing if not _is_plain_no_finding(word)), count))
    if missing and not names:
        return None
    if nothing:
        return [asked[key] for key in asked if is_no_finding(asked[key])]
    return names


def _is_plain_no_finding(word: str) -> bool:
    return name_key(word) == "nofinding"


def _spellings(findings: dict[str, list[str] | None], counts: Counter[str]) -> dict[str, Counter[str]]:
    """Key of a name → its spellings, with their rows."""
    found: dict[str, Counter[str]] = {}
    for cell, names in findings.items():
        for name in dict.fromkeys(names or ()):
            found.setdefault(name_key(name), Counter())[name] += counts[cell]
    return found


def _names_found(table: Table, spellings: dict[str, Counter[str]]) -> tuple[str, ...]:
    """The classes: each in its most frequent spelling; NIH's in its order where there are no others."""
    found = {one.most_common(1)[0][0] for one in spellings.values()}
    if not found:
        raise DataError(f"'{table.path}' names no finding in any row: set DATA.class_names to train all the same")
    if len(found) > _MOST_CLASSES:
        raise DataError(f"'{table.path}' names {len(found):,} findings, at most {_MOST_CLASSES:,} are read: free text?")
    if found <= set(NIH_FINDINGS):
        return tuple(name for name in NIH_FINDINGS if name in found)
    return tuple(sorted(found))


def _check_known(
    table: Table,
    spellings: dict[str, Counter[str]],
    key_of: dict[str, int],
    names: Sequence[str],
    lines: dict[str, int],
) -> None:
    unknown = Counter({one.most_common(1)[0][0]: one.total() for key, one in spellings.items() if key not in key_of})
    if not unknown:
        return
    listed = "\n  ".join(f"{name!r} ({count} rows){nearest(name, names)}" for name, count in unknown.most_common(20))
    raise DataError(
        f"'{table.path}' has {len(unknown)} label names that the class list lacks:\n  {listed}\n"
        f"the classes are {', '.join(names)} (DATA.class_names)"
    )


def _notes(told: _Understood) -> list[str]:
    notes = []
    if told.missing:
        notes.append(f"labels read as unknown, these images count for no class: {_listed(told.missing)}")
    if told.nothing:
        notes.append(f"labels read as 'no finding': {_listed(told.nothing)}")
    if told.empty and (told.missing or told.no_finding or told.nothing):
        notes.append(f"{told.empty} rows have no label: read as 'no finding' (write 'NA' where it is not known)")
    if told.split:
        whole, parts = next(iter(told.split.items()))
        notes.append(f"{len(told.split)} labels were read as several, such as {whole!r} as {parts!r}")
    if told.whole:
        notes.append(f"read as one label each: {some([repr(name) for name in told.whole])} (DATA.class_names says it)")
    return notes


def _listed(words: Counter[str]) -> str:
    return some([f"{word!r} ({count} rows)" for word, count in words.most_common()])


def _spelling_notes(spellings: dict[str, Counter[str]], names: Sequence[str]) -> list[str]:
    """Spellings that were joined, and names of a few rows that may be slips of the pen for others."""
    notes = []
    shown = {name_key(name): name for name in names}
    for key, one in spellings.items():
        others = [f"{name!r} ({count} rows)" for name, count in one.most_common() if name != shown[key]]
        if others:
            notes.append(f"{some(others)} counted as {shown[key]!r}")
    rows = {shown[key]: one.total() for key, one in spellings.items()}
    for name, count in rows.items():
        often = [other for other, more in rows.items() if more >= 20 * count and other != name]
        is_rare = count <= 2 and len(often) <= 500 and not re.search(r"\d", name)
        if is_rare and (close := difflib.get_close_matches(name, often, n=1, cutoff=0.85)):
            notes.append(f"{name!r} ({count} rows) is a class of its own: is {close[0]!r} meant?")
    return notes
