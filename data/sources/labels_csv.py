"""A labels table: a row per image, its labels joined in one column, or one column per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.readers.patient_ids import patient_identities
from data.readers.tables import (
    NO_SETTINGS,
    Table,
    TableSettings,
    column_roles,
    parse_split,
    raise_problems,
    read_table,
    some,
)
from data.sources.class_columns import (
    HOW,
    Column,
    column_codes,
    is_no_class,
    named_columns,
    read_column,
    recognised_columns,
    word_notes,
)
from data.sources.image_files import (
    FileReader,
    ImageFiles,
    below_data_dir,
    missing_files_error,
    missing_files_note,
    rewritten_notes,
)
from data.sources.label_cells import read_cells
from data.sources.table_columns import check_columns, find_split, patient_notes
from data.sources.volume_files import VolumeReader, check_names
from data.sources.wide_table import row_per_image
from data.study import IMAGE, DatasetIndex, Study
from utils.words import name_key


def open_csv(
    data_dir: Path,
    labels_file: Path,
    class_names: Sequence[str] | None = None,
    allow_missing: bool = False,
    volumes: bool = False,
    settings: TableSettings = NO_SETTINGS,
) -> DatasetIndex:
    """The dataset index of a labels table, text or .xlsx.

    Columns: `image` (also 'Image Index', 'path', 'filename', 'file'), then either `labels` (see read_cells), or one
    column per class with 1, 0, -1 (uncertain) and empty (unknown), or a pair of words such as yes and no. Optional
    patient_id, split, view, age, sex; any further column is one of its studies' table. With settings.study_column, also
    a row per study, its images in columns image_frontal, image_lateral, …. Where both forms are there,
    `labels` counts. Class columns are class_names, or else all that hold such codes and are not named like something
    else ('fold'); joined names without class_names are those of the cells, sorted (NIH's in NIH's order).
    Files are looked for in data_dir, data_dir/images and, if inside data_dir, the folder of the table. With volumes an
    image is a NIfTI file, a folder of DICOM slices or a multi-frame DICOM file. settings: what the user says of tables.

    Raises DataError, with lines and values: see read_table; malformed cells, names that class_names lacks, paths
    that leave data_dir, contradictory rows for one image, missing files (allow_missing: counted and left out).
    """
    table = row_per_image(read_table(labels_file, settings), settings)
    roles = column_roles(table, settings.columns)
    files = ImageFiles(data_dir, _bases(data_dir, labels_file), folders=volumes)
    check_columns(table, roles, files)
    split_notes = find_split(table, roles, settings)
    labels = read_labels(table, roles, class_names, settings)
    check_names(labels_file, table.column(roles["image"]), volumes)
    paths, file_notes = locate(table, roles["image"], files, allow_missing)
    studies, row_notes = build_studies(table, roles, labels, paths, settings)
    reader = (VolumeReader if volumes else FileReader)(files.root, tuple(study.file for study in studies))
    known = patient_notes(table, roles, settings)
    notes = (*table.notes, *split_notes, *labels.notes, *file_notes, *row_notes, *known)
    return DatasetIndex(labels.names, studies, reader, notes=notes)


@dataclass(frozen=True)
class TableLabels:
    """names: K classes; codes: float32 [rows, K] as in Study.labels; columns: those that hold classes; notes."""

    names: tuple[str, ...]
    codes: np.ndarray
    columns: frozenset[int]
    notes: tuple[str, ...] = ()


def read_labels(
    table: Table,
    roles: Mapping[str, int],
    class_names: Sequence[str] | None,
    settings: TableSettings = NO_SETTINGS,
) -> TableLabels:
    """The labels of a table in either form (see open_csv); a 'label' of 0 and 1 is a class column, not a name."""
    column = roles.get("labels")
    if column is not None and _holds_names(table, column, class_names):
        return _joined_labels(table, column, class_names, roles, settings)
    taken = frozenset(index for role, index in roles.items() if role != "labels") | _study_column(table, settings)
    notes: tuple[str, ...]
    if class_names:
        columns = named_columns(table, class_names)
        notes = (*_unused_notes(table, taken, columns, settings), *word_notes(table, columns))
    else:
        columns, notes = recognised_columns(table, taken, settings.ignore_columns)
    names = tuple(class_names or (table.header[index] for index in columns))
    codes = column_codes(table, columns)
    return TableLabels(names, codes, frozenset(columns), (*notes, *_never_positive(names, codes)))


def locate(
    table: Table, column: int, files: ImageFiles, allow_missing: bool
) -> tuple[list[str | None], tuple[str, ...]]:
    """(path relative to data_dir or None for each row, notes); DataError for unsafe and for missing ones."""
    cells_of = table.column(column)
    names, notes = below_data_dir(cells_of, files)
    paths: list[str | None] = []
    problems: list[str] = []
    for (line, _), cell, name in zip(table.rows, cells_of, names):
        try:
            paths.append(files.find(name))
        except ValueError as reason:
            problems.append(f"line {line}, image {cell!r}: {reason}")
    raise_problems(table.path, problems)
    missing = [cell for cell, path in zip(cells_of, paths) if path is None]
    if missing and (not allow_missing or len(missing) == len(paths)):
        raise missing_files_error(table.path, files.root, missing, len(paths), files.bases)
    if missing:
        notes.append(missing_files_note(missing, len(paths)))
    return paths, (*notes, *rewritten_notes(files))


def build_studies(
    table: Table,
    roles: Mapping[str, int],
    labels: TableLabels,
    paths: Sequence[str | None],
    settings: TableSettings = NO_SETTINGS,
) -> tuple[tuple[Study, ...], tuple[str, ...]]:
    """(samples, notes): rows that have a file, repeated ones once; DataError where repetitions disagree."""
    keep = [index for index in range(len(table.header)) if index not in labels.columns and index not in _own(roles)]
    named = {index: role for role, index in roles.items() if role in ("view", "age", "sex")}
    further_columns = [(index, named.get(index, table.header[index])) for index in keep]
    splits = _splits(table, roles.get("split"))
    patients, patient_notes = _patients(table, roles.get("patient_id"), settings.patient_ids)
    of_study = tuple(table.header[index] for index in _study_column(table, settings))
    studies: dict[str, Study] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    repeated = 0
    for (line, cells), codes, path, split, patient in zip(table.rows, labels.codes, paths, splits, patients):
        if path is None:
            continue
        further = {name: cells[index] for index, name in further_columns}
        study = Study(path, {IMAGE: path}, codes, patient, split, further, line)
        if path not in studies:
            studies[path], lines[path] = study, line
            continue
        repeated += 1
        if not _agree(studies[path], study):
            problems.append(f"lines {lines[path]} and {line} name '{path}' with different labels, patient or split")
        elif any(studies[path].table[name] != further[name] for name in of_study):
            problems.append(f"lines {lines[path]} and {line} name '{path}' as an image of two studies")
    raise_problems(table.path, problems)
    notes = [f"{repeated} rows repeat another row and are left out"] if repeated else []
    return tuple(studies.values()), (*notes, *patient_notes, *_patient_notes(tuple(studies.values())))


def _bases(data_dir: Path, labels_file: Path) -> tuple[str, ...]:
    root, folder = data_dir.resolve(), labels_file.resolve().parent
    own = (folder.relative_to(root).as_posix(),) if folder.is_relative_to(root) else ()
    return tuple(dict.fromkeys(("", "images", *(base for base in own if base != "."))))


def _holds_names(table: Table, column: int, class_names: Sequence[str] | None) -> bool:
    """Whether the column called 'labels' names labels, rather than being a class of 1 and 0 itself."""
    read = read_column(table, column)
    if read.is_class:
        wanted = {name_key(name) for name in class_names or ()}
        return bool(wanted) and name_key(table.header[column]) not in wanted
    if read.mistyped and class_names is None and read.has_both:
        how = "write it otherwise, or name the classes in DATA.class_names where all of these are labels"
        raise_problems(table.path, [f"{odd}: {how}" for odd in read.odd])
    return True


def _joined_labels(
    table: Table,
    column: int,
    class_names: Sequence[str] | None,
    roles: Mapping[str, int],
    settings: TableSettings,
) -> TableLabels:
    cells = read_cells(table, column, class_names)
    codes = cells.codes(table.column(column))
    taken = frozenset(roles.values())
    others = _class_columns(table, taken, settings)
    notes = cells.notes
    if others:
        listed = some([table.header[index] for index in others])
        notes = (
            *notes,
            f"column {table.header[column]!r} was read as the labels; columns of 1 and 0 beside it were not: {listed} "
            "(DATA.columns.labels: null takes those)",
        )
    return TableLabels(cells.names, codes, frozenset((column,)), (*notes, *_never_positive(cells.names, codes)))


def _class_columns(table: Table, taken: frozenset[int], settings: TableSettings) -> dict[int, Column]:
    """Columns that look like classes: codes, and a name that does not mean something else."""
    free = [index for index in range(len(table.header)) if index not in taken]
    free = [index for index in free if table.header[index] not in settings.ignore_columns]
    read = {index: read_column(table, index) for index in free if not is_no_class(table.header[index])}
    return {index: column for index, column in read.items() if column.is_class}


def _unused_notes(
    table: Table, taken: frozenset[int], columns: Mapping[int, Column], settings: TableSettings
) -> tuple[str, ...]:
    unused = [index for index in _class_columns(table, taken, settings) if index not in columns]
    names = ", ".join(table.header[index] for index in unused)
    return (f"columns that look like classes but are not in class_names: {names}",) if unused else ()


def _never_positive(names: Sequence[str], codes: np.ndarray) -> tuple[str, ...]:
    lacking = [name for name, positive in zip(names, (codes == 1).any(axis=0)) if not positive]
    return (f"classes that no image has: {some(lacking)} ({HOW})",) if lacking else ()


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


def _study_column(table: Table, settings: TableSettings) -> frozenset[int]:
    """The column of studies, where there is one."""
    if settings.study_column is None:
        return frozenset()
    key = name_key(settings.study_column)
    return frozenset(index for index, name in enumerate(table.header) if name_key(name) == key)


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
