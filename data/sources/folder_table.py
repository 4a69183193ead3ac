"""A table beside class folders: patients, splits, age and sex of images whose classes are their folders."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.errors import DataError
from data.readers.regular_files import refuse_link
from data.readers.tables import (
    NO_SETTINGS,
    TABLE_SUFFIXES,
    Table,
    TableSettings,
    column_roles,
    raise_problems,
    read_table,
    some,
)
from data.sources.class_columns import is_no_class, read_column
from data.sources.image_files import ImageFiles
from data.sources.labels_csv import TableLabels, build_studies
from data.sources.table_columns import check_columns, find_split
from data.study import DatasetIndex, Study

logger = logging.getLogger(__name__)

# Tables that lie beside data for another purpose.
_OTHERS = ("boxes", "bbox_list", "split", "predictions")


def find_table(root: Path, labels_file: Path | None, settings: TableSettings) -> tuple[Table, dict[str, int]] | None:
    """(the table that goes with the class folders of root, its roles): labels_file, or the one that names images there.

    Raises DataError where several do, and for a labels_file that does not.
    """
    if labels_file is not None:
        table = read_table(labels_file, settings)
        roles = column_roles(table, settings.columns)
        check_columns(table, roles, ImageFiles(root))
        return table, roles
    names = sorted(path for path in root.iterdir() if path.name.lower().endswith(TABLE_SUFFIXES) and path.is_file())
    found = []
    for path in names:
        if path.name.lower().startswith((".", "~$", *_OTHERS)):
            continue
        try:
            table = read_table(refuse_link(root, path), settings)
            roles = column_roles(table, settings.columns)
        except DataError as reason:
            logger.warning("a table beside the class folders is left out: %s", reason)
            continue
        if "image" in roles:
            found.append((table, roles))
    if len(found) > 1:
        raise DataError(
            f"'{root}' has class folders and the tables {some([table.path.name for table, _ in found])}, each with a "
            "column of images: name the one that goes with them by DATA.labels_file"
        )
    return found[0] if found else None


def has_no_labels(path: Path, settings: TableSettings) -> bool:
    """Whether a table names images and has neither a column of labels nor class columns."""
    table = read_table(path, settings)
    roles = column_roles(table, settings.columns)
    if "image" not in roles or "labels" in roles:
        return False
    free = [index for index in range(len(table.header)) if index not in roles.values()]
    return not any(read_column(table, index).is_class and not is_no_class(table.header[index]) for index in free)


def with_table(
    dataset_index: DatasetIndex,
    root: Path,
    found: tuple[Table, dict[str, int]] | None,
    settings: TableSettings = NO_SETTINGS,
) -> DatasetIndex:
    """The same images, with patient, split and further columns as a table's rows say; its labels are not read.

    A row names its image by the path below data_dir, or by the name that one image of all folders has. Raises
    DataError, naming lines, for a name that several have, rows that contradict each other, and a split that the folders
    contradict.
    """
    if found is None:
        return dataset_index
    table, roles = found
    split_notes = find_split(table, roles, TableSettings())
    studies = {study.name: study for study in dataset_index.studies}
    paths = _paths(table, roles["image"], root, list(studies))
    nothing = TableLabels((), next(iter(studies.values())).labels[None][[0] * len(table.rows)], frozenset())
    rows, notes = build_studies(table, {k: v for k, v in roles.items() if k != "labels"}, nothing, paths, settings)
    said = {row.name: row for row in rows}
    joined = tuple(_joined(study, said.get(study.name), table) for study in studies.values())
    kept = [note for note in dataset_index.notes if not note.startswith("folders name no patients")]
    return dataclasses.replace(
        dataset_index,
        studies=joined,
        notes=(*kept, *table.notes, *split_notes, *notes, *_coverage(table, paths, roles, joined, said)),
    )


def _paths(table: Table, column: int, root: Path, names: Sequence[str]) -> list[str | None]:
    """The image of each row, None where it is none of the class folders'."""
    known = set(names)
    folders = tuple(dict.fromkeys(name.rpartition("/")[0] for name in names))
    direct, within = ImageFiles(root), ImageFiles(root, folders)
    by_leaf: dict[str, list[str]] = {}
    for name in names:
        by_leaf.setdefault(name.rpartition("/")[2], []).append(name)
    paths: list[str | None] = []
    problems = []
    for line, cells in table.rows:
        name = cells[column]
        try:
            if len(by_leaf.get(name, ())) > 1:
                raise ValueError(f"several images have this name: {some(by_leaf[name])}; write the folder before it")
            path = direct.find(name) or within.find(name)
            paths.append(path if path in known else None)
        except ValueError as reason:
            problems.append(f"line {line}, image {name!r}: {reason}")
    raise_problems(table.path, problems)
    return paths


def _joined(study: Study, row: Study | None, table: Table) -> Study:
    if row is None:
        return study
    if row.split and study.split and row.split != study.split:
        raise DataError(f"'{table.path}' says that '{study.name}' is in {row.split}, its folder says {study.split}")
    return dataclasses.replace(study, patient_id=row.patient_id, split=study.split or row.split, table=row.table)


def _coverage(
    table: Table,
    paths: Sequence[str | None],
    roles: Mapping[str, int],
    studies: Sequence[Study],
    said: Mapping[str, Study],
) -> list[str]:
    """What the table gives, and which rows and images have no fellow."""
    fields = [role for role in roles if role not in ("image", "labels")]
    notes = [f"'{table.path.name}' gives {', '.join(fields) or 'further columns'} of {len(said)} images"]
    if "labels" in roles:
        notes.append(
            f"its column {table.header[roles['labels']]!r} is not read, the folders are the classes "
            "(DATA.format=csv takes the table's)"
        )
    strangers = [cells[roles["image"]] for (_, cells), path in zip(table.rows, paths) if path is None]
    if strangers:
        notes.append(f"{len(strangers)} of its rows name no image of the class folders: {some(strangers)}")
    lacking = [study.name for study in studies if study.name not in said]
    if lacking:
        notes.append(f"{len(lacking)} images have no row in it, and count as a patient each: {some(lacking)}")
    return notes
