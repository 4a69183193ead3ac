"""NIH ChestX-ray14 as NIH ships it (Wang et al., CVPR 2017): Data_Entry CSV, images in folders, official lists."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from configs.errors import DataError
from data.labels import NIH_FINDINGS
from data.readers.regular_files import refuse_link
from data.readers.tables import NO_SETTINGS, Table, TableSettings, column_roles, read_list, read_table, some
from data.sources.image_files import FileReader, ImageFiles
from data.sources.labels_csv import build_studies, locate, read_labels
from data.study import DatasetIndex, Study

NIH_TABLES = tuple(
    f"{stem}.csv{suffix}" for stem in ("Data_Entry_2017_v2020", "Data_Entry_2017") for suffix in ("", ".gz")
)
_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
# The header writes 'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]' without quotes: two columns each.
_MENDED = {
    "OriginalImage[Width": "width",
    "Height]": "height",
    "OriginalImagePixelSpacing[x": "spacing_x",
    "y]": "spacing_y",
    "Follow-up #": "follow_up",
}


def open_nih(
    data_dir: Path,
    labels_file: Path | None = None,
    class_names: Sequence[str] | None = None,
    allow_missing: bool = False,
    settings: TableSettings = NO_SETTINGS,
) -> DatasetIndex:
    """The dataset index of ChestX-ray14; its classes are those that the table names, in NIH's order, or class_names.

    Looks in data_dir for Data_Entry_2017_v2020.csv or Data_Entry_2017.csv (or labels_file), images in data_dir,
    images/, images/images/ and images_001/ … images_012/, with or without images/ below, and the official lists
    train_val_list.txt and test_list.txt; tables and lists also as .gz.
    With the lists, images of test_list have split 'test' and all others None: assign_splits cuts 'val' from those
    by patient and leaves the official test list as it is. table['official_list'] is 'train_val', 'test' or ''.
    The table also has view, age, sex, follow_up, width, height (pixels of the original), spacing_x, spacing_y (mm).

    Raises DataError as open_csv does, and for a list file without its fellow or an image on both lists.
    """
    table = _mend_header(read_table(labels_file or find_nih_table(data_dir), settings))
    roles = column_roles(table, settings.columns)
    for role in ("image", "labels", "patient_id"):
        if role not in roles:
            raise DataError(f"'{table.path}' is not NIH's Data_Entry table: no column for {role!r}")
    labels = read_labels(table, roles, class_names, settings)
    files = ImageFiles(data_dir, image_folders(data_dir))
    paths, file_notes = locate(table, roles["image"], files, allow_missing)
    studies, row_notes = build_studies(table, roles, labels, paths, settings)
    studies, list_notes = _with_official_lists(studies, data_dir)
    reader = FileReader(files.root, tuple(study.file for study in studies))
    notes = (*table.notes, *labels.notes, *_class_notes(labels.names), *file_notes, *row_notes, *list_notes)
    return DatasetIndex(labels.names, studies, reader, notes=notes)


def _class_notes(names: Sequence[str]) -> tuple[str, ...]:
    lacking = [name for name in NIH_FINDINGS if name not in names]
    if not lacking:
        return ()
    count = len(NIH_FINDINGS)
    return (f"{count - len(lacking)} of NIH's {count} findings are classes, not {some(lacking)}: see DATA.class_names",)


def find_nih_table(data_dir: Path) -> Path:
    """The Data_Entry table of a folder; DataError where there is none."""
    for name in NIH_TABLES:
        if (data_dir / name).is_file():
            return refuse_link(data_dir, data_dir / name)
    raise DataError(f"no NIH table in '{data_dir}': looked for {', '.join(NIH_TABLES)}")


def image_folders(data_dir: Path) -> tuple[str, ...]:
    """Folders that may hold NIH's images, relative to data_dir, itself first."""
    with os.scandir(data_dir) as entries:
        found = [entry.name for entry in entries if re.fullmatch(r"images(_\d+)?", entry.name) and entry.is_dir()]
    return ("", *(folder for name in sorted(found) for folder in (name, f"{name}/images")))


def _mend_header(table: Table) -> Table:
    return dataclasses.replace(table, header=tuple(_MENDED.get(name, name) for name in table.header))


def _find_list(data_dir: Path, name: str) -> Path | None:
    found = next((path for path in (data_dir / name, data_dir / f"{name}.gz") if path.is_file()), None)
    return refuse_link(data_dir, found) if found else None


def _with_official_lists(studies: tuple[Study, ...], data_dir: Path) -> tuple[tuple[Study, ...], tuple[str, ...]]:
    """(studies with split and table['official_list'], notes); unchanged where there are no lists."""
    paths = {kind: _find_list(data_dir, name) for kind, name in _LISTS.items()}
    found = [path for path in paths.values() if path]
    if not found:
        return studies, ("no official lists (train_val_list.txt, test_list.txt): the split will be drawn by patient",)
    if len(found) == 1:
        raise DataError(f"'{found[0]}' stands alone: NIH's split needs both {' and '.join(_LISTS.values())}")
    listed = {kind: set(read_list(path)) for kind, path in paths.items() if path}
    both = sorted(listed["train_val"] & listed["test"])
    if both:
        raise DataError(f"{len(both)} images stand on both official lists: {some(both)}")
    return _mark(studies, listed)


def _mark(studies: tuple[Study, ...], listed: dict[str, set[str]]) -> tuple[tuple[Study, ...], tuple[str, ...]]:
    marked, unlisted = [], []
    for study in studies:
        name = study.file.rpartition("/")[2]
        kind = next((kind for kind, names in listed.items() if name in names), "")
        if not kind:
            unlisted.append(name)
        columns = {**study.table, "official_list": kind}
        marked.append(dataclasses.replace(study, split="test" if kind == "test" else None, table=columns))
    if not unlisted:
        return tuple(marked), ()
    return tuple(marked), (
        f"{len(unlisted)} images stand on neither official list, they join train_val: {some(unlisted)}",
    )
