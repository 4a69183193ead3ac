"""Images and volumes that a model is asked about: files, folders and tables without labels, as one dataset index."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.readers.dicom import looks_like_dicom
from data.readers.images import IMAGE_SUFFIXES, read_image, read_reduced
from data.readers.regular_files import leaves, read_head
from data.readers.tables import (
    NO_SETTINGS,
    TABLE_SUFFIXES,
    Table,
    TableSettings,
    column_roles,
    raise_problems,
    read_table,
)
from data.readers.volumes import Volume
from data.sources.folders import LeftOut, is_dicom_file, is_volume, visible_files
from data.sources.image_files import ImageFiles, below_data_dir, rewritten_notes
from data.sources.table_columns import no_images_error
from data.sources.volume_files import VOLUME_WORDS, read_volume
from data.sources.wide_table import row_per_image
from data.study import IMAGE, DatasetIndex, Reader, Study
from utils.text import has_controls
from utils.words import name_key

JSON_SUFFIXES = (".json", ".json.gz")
_SAID = ("view", "age", "sex", "patient_id")
_NO_LABELS = np.empty(0, np.float32)


@dataclass(frozen=True)
class Item:
    """One image or volume to be predicted.

    name: as it is called in results. path: where it is. root: a folder that slices may not leave by a link, or None.
    columns: what a table says of it, by the table's header. view: of these, or ''.
    error: why it is known before reading that it cannot be read, or ''.
    table, line: which table names it, None and 0: none does. roles: what that says by role (view, age, sex,
    patient_id), for those that it has. study: what it says of TableSettings.study_column; None: nothing.
    """

    name: str
    path: Path
    root: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    view: str = ""
    error: str = ""
    table: Path | None = None
    line: int = 0
    roles: Mapping[str, str] = field(default_factory=dict)
    study: str | None = None


@dataclass(frozen=True)
class FilesBelow:
    """Files of a folder that are asked about, and folders of slices, called by their paths below it."""

    folder: Path
    paths: tuple[Path, ...]


# What is asked about: files, folders and tables by their names, or some files of a folder.
AskedInputs = Sequence[str] | Sequence[Path] | FilesBelow


@dataclass(frozen=True)
class ItemReader(Reader):
    """DatasetIndex.read of items."""

    items: tuple[Item, ...]
    volumes: bool

    def __call__(self, index: int) -> np.ndarray | Volume:
        item = self.items[index]
        if item.error:
            raise DataError(item.error)
        return read_volume(item.path, item.root) if self.volumes else read_image(item.path)

    def reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """See `read_reduced`."""
        item = self.items[index]
        return None if item.error or self.volumes else read_reduced(item.path, least)

    def files(self, index: int) -> tuple[Path, ...]:
        """The item's file; none of a folder of slices, and of what is not to be opened."""
        item = self.items[index]
        return (item.path,) if not item.error and item.path.is_file() else ()


def open_unlabelled(
    inputs: AskedInputs, volumes: bool, settings: TableSettings = NO_SETTINGS
) -> tuple[DatasetIndex, tuple[Item, ...]]:
    """(a dataset index without classes, its items), in the order of the inputs.

    An input is a file; a folder, of which all images below are taken, sorted by path: those with one of
    IMAGE_SUFFIXES, files without one by their content; or a table with a column `image` (see data/readers/tables.py),
    whose names are relative to the table's folder or its folder images/, and whose other columns are kept; with
    settings.study_column also one with a row a study (see `row_per_image`), JSON too. With
    volumes: NIfTI files, multi-frame DICOM files, and folders of DICOM slices. Hidden files, DICOMDIR and folders that
    systems write are skipped. Names are relative to the input; of several inputs the input comes before. What is known
    to be unreadable (missing files, links out of the folder) is an item with an error. Notes count what was left out.

    Raises DataError for an input that is not there or holds no image, and for a table that names files outside its
    folder (absolute, by '..', by a link) or cannot be read. settings: what the user says of tables.
    """
    items: list[Item] = []
    notes: list[str] = []
    listed: Sequence[str] | Sequence[Path] = ()
    if isinstance(inputs, FilesBelow):
        items += [_below(inputs.folder, path) for path in inputs.paths]
    else:
        listed = inputs
    for name in listed:
        path = Path(name).expanduser()
        prefix = f"{name}/" if len(listed) > 1 else ""
        if not path.exists():
            raise DataError(f"there is no file or folder '{path}'")
        if path.is_file() and path.name.lower().endswith((*TABLE_SUFFIXES, *JSON_SUFFIXES)):
            items += _from_table(path, prefix, volumes, settings, notes)
        elif path.is_dir():
            items += _from_folder(path, prefix, volumes, notes)
        else:
            items.append(_named(Item(str(name) if prefix else path.name, path)))
    studies = tuple(
        Study(item.name, {IMAGE: str(item.path)}, _NO_LABELS, table={**item.columns, "view": item.view})
        for item in items
    )
    return DatasetIndex((), studies, ItemReader(tuple(items), volumes), notes=tuple(notes)), tuple(items)


def _from_folder(folder: Path, prefix: str, volumes: bool, notes: list[str]) -> list[Item]:
    left = LeftOut()
    locations = dict.fromkeys(_volume_locations(folder, left) if volumes else _image_locations(folder, left))
    if found := left.notes():
        notes.append(f"'{folder}': {'; '.join(found)}")
    if not locations:
        expected = f"volumes ({VOLUME_WORDS})" if volumes else f"images ({', '.join(IMAGE_SUFFIXES)})"
        raise DataError(f"the folder '{folder}' holds no {expected}")
    return [_below(folder, path, prefix) for path in locations]


def _below(folder: Path, path: Path, prefix: str = "") -> Item:
    root, inner = folder.resolve(), path.relative_to(folder).as_posix()
    name = prefix + (root.name if inner == "." else inner)
    error = f"'{name}' is a link that leaves the folder, to '{os.path.realpath(path)}'" if leaves(root, path) else ""
    return _named(Item(name, path, root, error=error))


def _image_locations(folder: Path, left: LeftOut) -> Iterator[Path]:
    root = folder.resolve()
    for path in visible_files(folder, left):
        # A link out of the folder is not opened, not even to see what it is.
        if leaves(root, path) or (path.is_file() and path.name.upper() != "DICOMDIR" and _is_image(path)):
            yield path
        else:
            left.kinds.append(path.relative_to(folder).as_posix())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or is_dicom_file(path)


def _volume_locations(folder: Path, left: LeftOut) -> Iterator[Path]:
    """NIfTI files; a DICOM file that is alone in its folder; else the folder of DICOM files, once a file of it."""
    root = folder.resolve()
    series: dict[Path, list[Path]] = {}
    locations: list[Path] = []
    for path in visible_files(folder, left):
        if leaves(root, path):
            locations.append(path)
        elif path.name.upper() == "DICOMDIR" or not path.is_file() or not is_volume(path):
            left.kinds.append(path.relative_to(folder).as_posix())
        elif is_dicom_file(path):
            series.setdefault(path.parent, []).append(path)
        else:
            locations.append(path)
    locations += [files[0] if len(files) == 1 else parent for parent, files in series.items()]
    yield from sorted(locations)


def _from_table(path: Path, prefix: str, volumes: bool, settings: TableSettings, notes: list[str]) -> list[Item]:
    as_read = read_table(path, settings)
    table = row_per_image(as_read, settings)
    roles = column_roles(table, settings.columns)
    files = ImageFiles(path.parent, ("", "images"), folders=volumes)
    if "image" not in roles:
        raise no_images_error(table, files)
    names, root_notes = below_data_dir(table.column(roles["image"]), files)
    kept = [index for index in range(len(table.header)) if index != roles["image"]]
    study_of = _studies_of(table, settings, table is not as_read)
    items, problems = [], list[str]()
    for (line, cells), name in zip(table.rows, names):
        try:
            found = files.find(name)
        except ValueError as reason:
            problems.append(f"line {line}, image {name!r}: {reason}")
            continue
        columns = {table.header[index]: cells[index] for index in kept}
        view = cells[roles["view"]] if "view" in roles else ""
        error = "" if found else f"line {line} of '{path}' names '{name}': there is no such file in '{files.root}'"
        location = files.root / (found or name)
        said = {role: cells[index] for role, index in roles.items() if role in _SAID}
        item = Item(prefix + (found or name), location, files.root, columns, view, error, path, line, said)
        items.append(replace(_named(item), study=study_of(line, cells)))
    raise_problems(path, problems)
    notes += [*table.notes, *root_notes, *rewritten_notes(files)]
    return items


def _studies_of(table: Table, settings: TableSettings, wide: bool) -> Callable[[int, tuple[str, ...]], str | None]:
    """(line, cells) → the study they are of; where no column says it, a row or a JSON object with several images is."""
    key = None if settings.study_column is None else name_key(settings.study_column)
    columns = [index for index, name in enumerate(table.header) if name_key(name) == key]
    if key is None or len(columns) > 1:
        return lambda line, cells: None
    if columns:
        return lambda line, cells: cells[columns[0]]
    lines = Counter(line for line, _ in table.rows)
    if wide or max(lines.values()) > 1:
        return lambda line, cells: f"line {line}"
    return lambda line, cells: None


def _named(item: Item) -> Item:
    """An item whose name can be written; surrogates stand for bytes that are not UTF-8."""
    if not has_controls(item.name):
        return item
    name = ascii(item.name)[1:-1]
    return replace(item, name=name, error="its name is not valid Unicode: rename it")


def dicom_view(path: Path) -> str:
    """ViewPosition (0018,5101) of a DICOM file, '' where it says none or the file is another."""
    try:
        if not path.is_file() or not looks_like_dicom(read_head(path)):
            return ""
        import pydicom

        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["ViewPosition"])
        return str(header.get("ViewPosition") or "")
    except Exception:  # whoever reads the image says what is wrong with the file
        return ""
