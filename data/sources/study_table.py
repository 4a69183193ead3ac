"""The clinical table of studies: a file with a row a study or a patient, or further columns of the labels table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.errors import DataError, LackingTableError
from data.clinical_table import ClinicalTable, Kind, equal_to_labels, is_gap, read_column
from data.labels import nearest
from data.readers.regular_files import refuse_link
from data.readers.tables import Table, TableSettings, column_roles, raise_problems, read_table, role_of, some
from data.study import DatasetIndex, Study
from utils.text import printable, visible
from utils.words import is_missing, name_key, plain

_NO_INPUTS = ("image", "labels", "patient_id", "split")
_NOT_THERE = "column '{}' is not there: its value is unknown for all studies"


class _Cells(NamedTuple):
    """Of N studies: column → (where, text) of each. has_row: bool [N]. path, decimal_comma: of the file."""

    columns: dict[str, list[tuple[str, str]]]
    has_row: np.ndarray
    path: Path
    decimal_comma: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Wanted:
    """Columns that are to be given to the network, with their kinds, None where these are open."""

    kinds: Mapping[str, Kind | None]
    class_names: Sequence[str]

    def check(self, path: Path) -> None:
        """DataError for classes among them."""
        classes = {name_key(name): name for name in self.class_names}
        leaks = [name for name in self.kinds if name_key(name) in classes]
        if leaks:
            raise DataError(
                f"'{path}': DATA.table.columns names {some(leaks)}, which is a class: the network would be given what "
                "it is to predict. Take it out there, or name it in DATA.ignore_columns, so that it is no class"
            )


def with_clinical_table(
    dataset_index: DatasetIndex,
    root: Path,
    study_column: str | None,
    file: str | None,
    columns: Mapping[str, Kind] | Sequence[str],
    roles: Mapping[str, str | None] | None = None,
    encoding: str | None = None,
    may_lack: Collection[str] = (),
    labels: str = "the labels table",
    tolerant: bool = False,
) -> DatasetIndex:
    """The same studies with `table`, and each column of the file in Study.table; itself where no columns are named.

    file: relative to root or to where we are; its rows are found by the study column, or by patient or image where it
    has none of that; None: the columns are the labels table's. roles: DATA.columns. may_lack: columns which, where they
    are not there or their cells cannot be read, are unknown for all studies, and noted. labels: the labels table, for
    messages. tolerant: the file may be anywhere, and columns that it lacks are the labels table's.

    Raises LackingTableError for a file, rows or columns that are not there; DataError, with lines and values: for a
    class among the columns, a study twice, a study whose images have two values of a column, cells that are no numbers.
    """
    kinds: Mapping[str, Kind | None] = columns if isinstance(columns, Mapping) else dict.fromkeys(columns)
    if not kinds:
        return dataset_index
    wanted = _Wanted(kinds, dataset_index.class_names)
    if file is None:
        wanted.check(Path(labels))
        cells = _of_labels_table(dataset_index, kinds, roles or {}, may_lack, Path(labels))
    else:
        try:
            path = _find_file(root, file, tolerant)
            wanted.check(path)
            settings = TableSettings(encoding, {"image": study_column} if study_column else {})
            table = read_table(path, settings)
            there = set(map(name_key, table.header))
            further = {name: kind for name, kind in kinds.items() if tolerant and name_key(name) not in there}
            more = _of_labels_table(dataset_index, further, roles or {}, may_lack, Path(labels))
            of_file = {name: kind for name, kind in kinds.items() if name not in further}
            dataset_index, cells = _of_file(dataset_index, table, study_column, of_file, may_lack)
            cells = _joined(cells, more)
        except LackingTableError as reason:
            if not {*kinds} <= {*may_lack}:
                raise
            cells = _of_nobody(len(dataset_index.studies), kinds, root / file, reason)
    clinical, notes = _read(cells, kinds, may_lack)
    equal = equal_to_labels(clinical, dataset_index.label_matrix(), dataset_index.class_names)
    return replace(dataset_index, table=clinical, notes=(*dataset_index.notes, *cells.notes, *notes, *equal))


def _read(
    cells: _Cells, kinds: Mapping[str, Kind | None], may_lack: Collection[str]
) -> tuple[ClinicalTable, list[str]]:
    """(the table, notes). Raises DataError for cells that are no numbers, of columns that may not lack."""
    read, problems, notes = {}, [], []
    for name, kind in kinds.items():
        column, wrong = read_column(name, cells.columns[name], kind, cells.decimal_comma)
        if wrong and name in may_lack:
            column, _ = read_column(name, [("", "")] * len(cells.has_row), kind)
            notes.append(f"column {name!r} counts as unknown for all studies: {wrong[0]}")
            wrong = []
        read[name] = column
        problems += wrong
    raise_problems(cells.path, problems)
    return ClinicalTable(tuple(read.values()), cells.has_row), notes


def _of_nobody(studies: int, kinds: Mapping[str, Kind | None], path: Path, reason: LackingTableError) -> _Cells:
    """Of a table that is not there, or of none of these studies."""
    note = f"the table counts as unknown for all {studies} studies: {reason}"
    return _Cells({name: [("", "")] * studies for name in kinds}, np.zeros(studies, bool), path, notes=(note,))


def _joined(cells: _Cells, more: _Cells) -> _Cells:
    """The columns of both; a study with a value in either has a row."""
    if not more.columns:
        return cells
    known = np.array([[not is_gap(text) for _, text in texts] for texts in more.columns.values()], bool)
    columns, notes = {**cells.columns, **more.columns}, (*cells.notes, *more.notes)
    return cells._replace(columns=columns, has_row=cells.has_row | known.any(axis=0), notes=notes)


def _find_file(root: Path, file: str, named: bool) -> Path:
    """named: by the command line, which may name any file."""
    given = Path(file).expanduser()
    for path in (root / given, given):
        if path.is_file():
            return path if named or path != root / given or given.is_absolute() else refuse_link(root, path)
    tables = sorted(path.name for path in root.iterdir() if path.is_file() and path.name != given.name)
    raise LackingTableError(f"DATA.table.file: there is no '{root / given}'{nearest(given.name, tables)}")


def _of_labels_table(
    dataset_index: DatasetIndex,
    kinds: Mapping[str, Kind | None],
    roles: Mapping[str, str | None],
    may_lack: Collection[str],
    path: Path,
) -> _Cells:
    """Further columns of the labels table; images of a study must say the same, or nothing."""
    there = sorted({column for study in dataset_index.studies for column in study.table})
    found, notes = {}, []
    for name in kinds:
        try:
            found[name] = column_of(name, there, roles)
        except DataError:
            if name not in may_lack:
                raise
            found[name] = name
            notes.append(_NOT_THERE.format(name))
    columns: dict[str, list[tuple[str, str]]] = {}
    problems = []
    for name, column in found.items():
        columns[name] = []
        for row, study in enumerate(dataset_index.studies):
            images = [dataset_index.image_index.studies[image] for image in dataset_index.image_rows([row])]
            known = [image for image in images if not is_missing(image.table.get(column, ""))]
            values = dict.fromkeys(visible(image.table[column]) for image in known)
            if len(values) > 1:
                lines = some([image.line for image in known])
                problems.append(
                    f"lines {lines}, column {name!r}: study '{study.name}' has {' and '.join(map(repr, values))}"
                )
            line = known[0].line if known else study.line
            columns[name].append((f"line {line}" if line else f"'{study.name}'", next(iter(values), "")))
    raise_problems(path, problems)
    return _Cells(columns, np.ones(len(dataset_index.studies), bool), path)


def column_of(name: str, there: Sequence[str], roles: Mapping[str, str | None]) -> str:
    """What a column of the labels table is called in Study.table: view, age and sex by these names."""
    said = next(
        (role for role, column in roles.items() if column and name_key(column) == name_key(name)), role_of(name)
    )
    if name in there:
        return name
    alike = [column for column in there if name_key(column) == name_key(name)]
    if len(alike) == 1:
        return alike[0]
    if said is not None and said in there:
        return said
    what = f"the column of the {said}" if said in _NO_INPUTS else "no column of the labels table"
    raise LackingTableError(
        f"DATA.table.columns: {name!r} is {what}{nearest(name, there)} (it has {', '.join(there) or 'none'}; "
        "DATA.table.file names another table)"
    )


def _of_file(
    dataset_index: DatasetIndex,
    table: Table,
    study_column: str | None,
    kinds: Mapping[str, Kind | None],
    may_lack: Collection[str],
) -> tuple[DatasetIndex, _Cells]:
    """(the studies with the columns of the file, its cells)."""
    roles = column_roles(table)
    key, keys_of = _key_column(dataset_index, table, roles, study_column)
    header = {name: index for name in kinds if (index := _header_column(table, name, may_lack)) is not None}
    reserved = {index: role for role, index in roles.items() if role in _NO_INPUTS} | {key: "key of the table"}
    problems = [f"DATA.table.columns: {name!r} is the {reserved[i]}" for name, i in header.items() if i in reserved]
    raise_problems(table.path, problems)
    by_key = _rows_by_key(table, key)
    otherwise = _written_otherwise(by_key, keys_of)
    found = [by_key.get(otherwise.get(text, text)) for text in keys_of]
    has_row = np.array([row is not None for row in found], bool)
    if not has_row.any():
        theirs, wanted = (some([f"'{printable(text)}'" for text in texts], 2) for texts in (list(by_key), keys_of))
        raise LackingTableError(
            f"'{table.path}' has no row for any of {len(found)} studies: its column {table.header[key]!r} has "
            f"{theirs}, the data {wanted}"
        )
    columns = {
        name: [
            ("", "") if row is None or name not in header else (f"line {row[0]}", row[1][header[name]]) for row in found
        ]
        for name in kinds
    }
    further = {index: name for index, name in enumerate(table.header) if index not in reserved}
    studies = tuple(
        _with_columns(s, row and {n: row[1][i] for i, n in further.items()})
        for s, row in zip(dataset_index.studies, found)
    )
    notes = [*table.notes, *(_NOT_THERE.format(name) for name in kinds if name not in header)]
    if not has_row.all():
        lacking = [study.name for study, there in zip(dataset_index.studies, has_row) if not there]
        notes.append(f"{len(lacking)} of {len(found)} studies have no row in '{table.path.name}': {some(lacking, 3)}")
    if otherwise:
        shown = some([f"'{one}' as '{other}'" for one, other in otherwise.items()], 2)
        notes.append(f"{len(otherwise)} ids were found in '{table.path.name}' as they are written otherwise: {shown}")
    here = {*keys_of, *otherwise.values()}
    strangers = [text for text in by_key if text not in here]
    if strangers:
        notes.append(f"{len(strangers)} rows of '{table.path.name}' are of no study here: {some(strangers, 3)}")
    cells = _Cells(columns, has_row, table.path, table.decimal_comma, tuple(notes))
    return replace(dataset_index, studies=studies), cells


def _written_otherwise(by_key: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Wanted id → the one that means it, where it is not there itself: one number ('7', '007', '7.0'), or another case.

    Spreadsheets rewrite numbers so. Where several would do, none is taken.
    """
    lacking, free = {*wanted} - {*by_key} - {""}, {*by_key} - {*wanted}
    sides: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for side, texts in zip(sides, (lacking, free)):
        for text in sorted(texts):
            side.setdefault(_spelling(text), []).append(text)
    pairs = ((ones, sides[1].get(key, [])) for key, ones in sides[0].items())
    return {ones[0]: others[0] for ones, others in pairs if len(ones) == len(others) == 1}


def _spelling(text: str) -> str:
    try:
        return repr(float(text))
    except ValueError:
        return plain(text)


def _with_columns(study: Study, further: Mapping[str, str] | None) -> Study:
    return study if further is None else replace(study, table={**study.table, **further})


def _key_column(
    dataset_index: DatasetIndex, table: Table, roles: Mapping[str, int], study_column: str | None
) -> tuple[int, list[str]]:
    """(the column that says whose a row is, what each study is called there)."""
    studies = dataset_index.studies
    alike = [i for i, name in enumerate(table.header) if study_column and name_key(name) == name_key(study_column)]
    if alike:
        return alike[0], [study.name for study in studies]
    if study_column is None and "image" in roles:
        return roles["image"], [study.name for study in studies]
    if "patient_id" in roles:
        return roles["patient_id"], [study.patient_id for study in studies]
    needed = f"{study_column!r} (DATA.study_column) or " if study_column else "'image' or "
    raise LackingTableError(
        f"'{table.path}' has no column {needed}of patients, by which its rows would be found (its columns: "
        f"{', '.join(table.header)})"
    )


def _header_column(table: Table, name: str, may_lack: Collection[str]) -> int | None:
    """None for one that may lack, and does. Raises LackingTableError for others."""
    if name in table.header:
        return table.header.index(name)
    found = [index for index, column in enumerate(table.header) if name_key(column) == name_key(name)]
    if len(found) == 1:
        return found[0]
    if name in may_lack:
        return None
    raise LackingTableError(
        f"DATA.table.columns: {name!r} is no column of '{table.path}'{nearest(name, table.header)} (its columns: "
        f"{', '.join(table.header)})"
    )


def _rows_by_key(table: Table, key: int) -> dict[str, tuple[int, tuple[str, ...]]]:
    """DataError for one that is there twice, with both lines; rows without a key are nobody's."""
    found: dict[str, tuple[int, tuple[str, ...]]] = {}
    problems = []
    for line, cells in table.rows:
        text = visible(cells[key])
        if is_missing(text):
            continue
        if text in found:
            problems.append(f"lines {found[text][0]} and {line} both have '{printable(text)}' as {table.header[key]!r}")
        found.setdefault(text, (line, cells))
    raise_problems(table.path, problems)
    return found
