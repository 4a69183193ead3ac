"""A labels CSV: a row per image, its labels joined by '|' in one column, or one column per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.labels import NIH_FINDINGS, is_no_finding, nearest, parse_cell, split_findings
from data.readers.patient_ids import patient_identities
from data.readers.tables import Table, column_roles, parse_split, raise_problems, read_table, some
from data.sources.image_files import FileReader, ImageFiles, missing_files_error, missing_files_note
from data.sources.volume_files import VolumeReader, check_names
from data.study import IMAGE, DatasetIndex, Study
from utils.csv_cells import is_number

_MOST_CLASSES = 10_000


def open_csv(
    data_dir: Path,
    labels_file: Path,
    class_names: Sequence[str] | None = None,
    allow_missing: bool = False,
    volumes: bool = False,
    patient_ids: str = "stop",
) -> DatasetIndex:
    """The dataset index of a labels CSV.

    Columns: `image` (also 'Image Index', 'path', 'filename', 'file'), then either `labels` ('Mass|Nodule'; empty or
    'No Finding' for none), or one column per class with 1, 0, -1 (uncertain) and empty (unknown). Optional patient_id,
    split, view, age, sex; any further column is one of its studies' table. Where both forms are there, `labels` counts.
    Class columns are class_names, or else all whose values are 1, 0, -1 and empty; joined names without class_names
    are sorted, unless all are NIH's: then its 14 in NIH's order.
    Files are looked for in data_dir, data_dir/images and, if inside data_dir, the folder of the CSV. With volumes an
    image is a NIfTI file, a folder of DICOM slices or a multi-frame DICOM file.

    patient_ids: see `patient_identities`.

    Raises DataError, with lines and values: see read_table; malformed cells, names that class_names lacks, paths
    that leave data_dir, contradictory rows for one image, missing files (allow_missing: counted and left out).
    """
    table = read_table(labels_file)
    roles = column_roles(table)
    if "image" not in roles:
        raise DataError(f"'{table.path}' has no column 'image' (its columns: {', '.join(table.header)})")
    labels = read_labels(table, roles, class_names)
    check_names(labels_file, table.column(roles["image"]), volumes)
    files = ImageFiles(data_dir, _bases(data_dir, labels_file), folders=volumes)
    paths, file_notes = locate(table, roles["image"], files, allow_missing)
    studies, row_notes = build_studies(table, roles, labels, paths, patient_ids)
    reader = (VolumeReader if volumes else FileReader)(files.root, tuple(study.file for study in studies))
    return DatasetIndex(labels.names, studies, reader, notes=(*labels.notes, *file_notes, *row_notes))


@dataclass(frozen=True)
class TableLabels:
    """names: K classes; codes: float32 [rows, K] as in Study.labels; columns: those that hold classes; notes."""

    names: tuple[str, ...]
    codes: np.ndarray
    columns: frozenset[int]
    notes: tuple[str, ...] = ()


def read_labels(table: Table, roles: Mapping[str, int], class_names: Sequence[str] | None) -> TableLabels:
    """The labels of a table in either form (see open_csv); a 'label' of 0 and 1 is a class column, not a name."""
    column = roles.get("labels")
    if column is None or _is_class_column(table, column):
        taken = frozenset(index for role, index in roles.items() if role != "labels")
        return _column_labels(table, taken, class_names)
    return _joined_labels(table, column, class_names)


def locate(
    table: Table, column: int, files: ImageFiles, allow_missing: bool
) -> tuple[list[str | None], tuple[str, ...]]:
    """(path relative to data_dir or None for each row, notes); DataError for unsafe and for missing ones."""
    paths: list[str | None] = []
    problems: list[str] = []
    for line, cells in table.rows:
        try:
            paths.append(files.find(cells[column]))
        except ValueError as reason:
            problems.append(f"line {line}, image {cells[column]!r}: {reason}")
    raise_problems(table.path, problems)
    missing = [cells[column] for (_, cells), path in zip(table.rows, paths) if path is None]
    if missing and (not allow_missing or len(missing) == len(paths)):
        raise missing_files_error(table.path, files.root, missing, len(paths), files.bases)
    return paths, (missing_files_note(missing, len(paths)),) if missing else ()


def build_studies(
    table: Table,
    roles: Mapping[str, int],
    labels: TableLabels,
    paths: Sequence[str | None],
    patient_ids: str = "stop",
) -> tuple[tuple[Study, ...], tuple[str, ...]]:
    """(samples, notes): rows that have a file, repeated ones once; DataError where repetitions disagree."""
    keep = [index for index in range(len(table.header)) if index not in labels.columns and index not in _own(roles)]
    named = {index: role for role, index in roles.items() if role in ("view", "age", "sex")}
    further_columns = [(index, named.get(index, table.header[index])) for index in keep]
    splits = _splits(table, roles.get("split"))
    patients, patient_notes = _patients(table, roles.get("patient_id"), patient_ids)
    studies: dict[str, Study] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    repeated = 0
    for (line, cells), codes, path, split, patient in zip(table.rows, labels.codes, paths, splits, patients):
        if path is None:
            continue
        further = {name: cells[index] for index, name in further_columns}
        study = Study(path, {IMAGE: path}, codes, patient, split, further)
        if path not in studies:
            studies[path], lines[path] = study, line
            continue
        repeated += 1
        if not _agree(studies[path], study):
            problems.append(f"lines {lines[path]} and {line} name '{path}' with different labels, patient or split")
    raise_problems(table.path, problems)
    notes = [f"{repeated} rows repeat another row and are left out"] if repeated else []
    return tuple(studies.values()), (*notes, *patient_notes, *_patient_notes(tuple(studies.values())))


def multi_hot(
    table: Table, findings: Sequence[Sequence[str]], class_names: Sequence[str]
) -> tuple[np.ndarray, Counter[str]]:
    """(float32 [rows, K] of 1 and 0, names that class_names lacks with their counts)."""
    index = {name: position for position, name in enumerate(class_names)}
    codes = np.zeros((len(findings), len(class_names)), np.float32)
    unknown: Counter[str] = Counter()
    problems = []
    for row, names in enumerate(findings):
        if len(names) > 1 and any(map(is_no_finding, names)):
            problems.append(f"line {table.rows[row][0]}: {'|'.join(names)!r} names findings and 'No Finding'")
        for name in names:
            if name in index:
                codes[row, index[name]] = 1.0
            elif not is_no_finding(name):
                unknown[name] += 1
    raise_problems(table.path, problems)
    return codes, unknown


def _bases(data_dir: Path, labels_file: Path) -> tuple[str, ...]:
    root, folder = data_dir.resolve(), labels_file.resolve().parent
    own = (folder.relative_to(root).as_posix(),) if folder.is_relative_to(root) else ()
    return tuple(dict.fromkeys(("", "images", *(base for base in own if base != "."))))


def _joined_labels(table: Table, column: int, class_names: Sequence[str] | None) -> TableLabels:
    findings = [split_findings(cell) for cell in table.column(column)]
    names = tuple(class_names) if class_names else _names_found(table, findings)
    codes, unknown = multi_hot(table, findings, names)
    if unknown:
        raise _unknown_names_error(table, unknown, names)
    return TableLabels(names, codes, frozenset((column,)))


def _names_found(table: Table, findings: Sequence[Sequence[str]]) -> tuple[str, ...]:
    found = {name for names in findings for name in names if not is_no_finding(name)}
    if not found:
        raise DataError(f"'{table.path}' names no finding in any row: set DATA.class_names to train all the same")
    if len(found) > _MOST_CLASSES:
        raise DataError(f"'{table.path}' names {len(found):,} findings, at most {_MOST_CLASSES:,} are read: free text?")
    return NIH_FINDINGS if found <= set(NIH_FINDINGS) else tuple(sorted(found))


def _unknown_names_error(table: Table, unknown: Counter[str], names: Sequence[str]) -> DataError:
    listed = "\n  ".join(f"{name!r} ({count} rows){nearest(name, names)}" for name, count in unknown.most_common(20))
    return DataError(
        f"'{table.path}' has {len(unknown)} label names that the class list lacks:\n  {listed}\n"
        f"the classes are {', '.join(names)} (DATA.class_names)"
    )


def _column_labels(table: Table, taken: frozenset[int], class_names: Sequence[str] | None) -> TableLabels:
    columns = _named_columns(table, class_names) if class_names else _recognised_columns(table, taken)
    codes = np.empty((len(table.rows), len(columns)), np.float32)
    problems = []
    for row, (line, cells) in enumerate(table.rows):
        for position, column in enumerate(columns):
            try:
                codes[row, position] = parse_cell(cells[column])
            except ValueError as reason:
                problems.append(f"line {line}, column {table.header[column]!r}: {reason}")
    raise_problems(table.path, problems)
    notes = _column_notes(table, taken, columns, named=bool(class_names))
    return TableLabels(tuple(table.header[column] for column in columns), codes, frozenset(columns), notes)


def _column_notes(table: Table, taken: frozenset[int], columns: Sequence[int], named: bool) -> tuple[str, ...]:
    """How columns that are neither classes nor known by name were handled."""
    rest = [index for index in range(len(table.header)) if index not in taken and index not in columns]
    if named:
        unused = [table.header[index] for index in rest if _is_class_column(table, index)]
        return (f"columns that look like classes but are not in class_names: {', '.join(unused)}",) if unused else ()
    if not rest:
        return ()
    classes, others = (", ".join(table.header[index] for index in group) for group in (columns, rest))
    return (f"columns taken as classes: {classes}; not as classes: {others}",)


def _named_columns(table: Table, class_names: Sequence[str]) -> list[int]:
    lacking = [f"{name!r}{nearest(name, table.header)}" for name in class_names if name not in table.header]
    if lacking:
        raise DataError(
            f"'{table.path}' has no column 'labels', and none for {', '.join(lacking)} of DATA.class_names "
            f"(its columns: {', '.join(table.header)})"
        )
    return [table.header.index(name) for name in class_names]


def _recognised_columns(table: Table, taken: frozenset[int]) -> list[int]:
    """The columns of 1, 0, -1 and empty; DataError for one that has a few words among them, or where none is."""
    free = [index for index in range(len(table.header)) if index not in taken]
    for column in free:
        valid, words = _count_codes(table, column)
        if words and len(words) <= valid:
            raise_problems(table.path, [f"{word} (DATA.class_names says which columns are classes)" for word in words])
    columns = [column for column in free if _is_class_column(table, column)]
    if columns:
        return columns
    raise DataError(
        f"'{table.path}' has neither a column 'labels' nor one per class with 1, 0, -1 or empty "
        f"(its columns: {', '.join(table.header)})"
    )


def _is_class_column(table: Table, column: int) -> bool:
    """Whether all its cells are label codes, and not all are empty."""
    valid, _ = _count_codes(table, column)
    return valid > 0 and valid == sum(1 for cell in table.column(column) if cell)


def _count_codes(table: Table, column: int) -> tuple[int, list[str]]:
    """(cells that are label codes, a description of each that is a word); other numbers are neither."""
    valid, words = 0, []
    for line, cells in table.rows:
        cell = cells[column]
        if not cell:
            continue
        try:
            parse_cell(cell)
            valid += 1
        except ValueError as reason:
            if not is_number(cell):
                words.append(f"line {line}, column {table.header[column]!r}: {reason}")
    return valid, words


def _own(roles: Mapping[str, int]) -> set[int]:
    """Columns that become fields of a Study, not of its table."""
    return {index for role, index in roles.items() if role in ("image", "labels", "patient_id", "split")}


def _splits(table: Table, column: int | None) -> list[str | None]:
    if column is None:
        return [None] * len(table.rows)
    splits: list[str | None] = []
    problems = []
    for line, cells in table.rows:
        try:
            splits.append(parse_split(cells[column]))
        except ValueError as reason:
            problems.append(f"line {line}, column {table.header[column]!r}: {reason}")
    raise_problems(table.path, problems)
    return splits


def _patients(table: Table, column: int | None, patient_ids: str) -> tuple[list[str], list[str]]:
    """(whose image each row is, '' where it names nobody; notes); see `patient_identities`."""
    if column is None:
        return [""] * len(table.rows), []
    return patient_identities(table.path, [(line, cells[column]) for line, cells in table.rows], patient_ids)


def _agree(one: Study, other: Study) -> bool:
    same_labels = np.array_equal(one.labels, other.labels, equal_nan=True)
    return same_labels and (one.patient_id, one.split) == (other.patient_id, other.split)


def _patient_notes(studies: Sequence[Study]) -> tuple[str, ...]:
    nameless = [study.name for study in studies if not study.patient_id]
    if not nameless:
        return ()
    return (
        f"{len(nameless)} of {len(studies)} images name no patient ({some(nameless, 3)}): "
        "each counts as a patient of its own, so images of one person may fall into several splits",
    )
