"""The formats a data source may have: recognise one, and open it as a dataset index."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.errors import DataError
from data.labels import nearest
from data.readers.regular_files import refuse_link
from data.readers.tables import NO_SETTINGS, TABLE_SUFFIXES, TableSettings, some
from data.sources.folder_table import find_table, has_no_labels, with_table
from data.sources.folders import has_class_folders, open_folders
from data.sources.identical_files import user_cache_folder, with_identical
from data.sources.labels_csv import open_csv
from data.sources.medmnist import open_medmnist
from data.sources.nih import NIH_TABLES, open_nih
from data.study import DatasetIndex
from utils.words import name_key

__all__ = ["FORMATS", "open_csv", "open_folders", "open_medmnist", "open_nih", "open_source", "recognise"]

FORMATS = ("csv", "nih", "folders", "medmnist")
VOLUME_FORMATS = ("csv", "folders")
LABELS_FILES = tuple(f"labels{suffix}" for suffix in TABLE_SUFFIXES)


def open_source(
    data_dir: str | Path,
    labels_file: str | Path | None = None,
    format: str = "auto",
    class_names: Sequence[str] | None = None,
    allow_missing: bool = False,
    volumes: bool = False,
    check_duplicates: bool = True,
    settings: TableSettings = NO_SETTINGS,
) -> DatasetIndex:
    """The dataset index of a data source.

    data_dir: a folder, or MedMNIST's .npz itself. labels_file: CSV or .npz, relative to data_dir or to where we are;
    None: labels.csv, NIH's Data_Entry table or the folder's one .npz. format: csv, nih, folders, medmnist, or auto.
    class_names: the classes, in order; None: taken from the data. allow_missing: continue without missing files.
    volumes: the source holds volumes (csv and folders only). check_duplicates: note images of the same content.
    settings: what the user says of tables.
    Raises DataError: see open_csv, open_nih, open_folders, open_medmnist and recognise.
    """
    try:
        found = _open(Path(data_dir).expanduser(), labels_file, format, class_names, allow_missing, volumes, settings)
        return with_identical(found, user_cache_folder()) if check_duplicates else found
    except OSError as reason:
        raise DataError(f"cannot read DATA.data_dir '{data_dir}': {reason}") from reason


def _open(
    data_dir: Path,
    labels_file: str | Path | None,
    format: str,
    class_names: Sequence[str] | None,
    allow_missing: bool,
    volumes: bool,
    settings: TableSettings,
) -> DatasetIndex:
    root = _existing(data_dir)
    kind = recognise(root, labels_file, settings) if format == "auto" else format
    if kind not in FORMATS:
        raise DataError(f"unknown format {format!r}{nearest(format, FORMATS)} (allowed: auto, {', '.join(FORMATS)})")
    if class_names is not None:
        _check_class_names(class_names)
    if volumes and kind not in VOLUME_FORMATS:
        raise DataError(
            f"format {kind} holds images, but DATA.image_size is one of volumes ({' and '.join(VOLUME_FORMATS)} may "
            "hold them): set DATA.image_size=[height, width]"
        )
    if kind == "medmnist":
        return open_medmnist(_find_npz(root, labels_file), class_names)
    if root.is_file():
        raise DataError(f"DATA.data_dir '{root}' is a file; format {kind} needs a folder")
    if kind == "folders":
        beside = find_table(root, _find_labels(root, labels_file) if labels_file is not None else None, settings)
        return with_table(open_folders(root, class_names, volumes), root, beside, settings)
    table = _find_labels(root, labels_file) if labels_file is not None or kind == "csv" else None
    if table is None or kind == "nih":
        return open_nih(root, table, class_names, allow_missing, settings)
    return _with_note(open_csv(root, table, class_names, allow_missing, volumes, settings), root, labels_file, table)


def _with_note(dataset_index: DatasetIndex, root: Path, labels_file: str | Path | None, table: Path) -> DatasetIndex:
    """With a word on other tables of the same name, where the user named none."""
    others = [name for name in LABELS_FILES if name != table.name and (root / name).is_file()]
    if labels_file is not None or not others:
        return dataset_index
    note = f"'{table.name}' was read, not {some(others)} beside it (DATA.labels_file)"
    return replace(dataset_index, notes=(*dataset_index.notes, note))


def recognise(
    data_dir: str | Path, labels_file: str | Path | None = None, settings: TableSettings = NO_SETTINGS
) -> str:
    """Which of FORMATS a source has: by labels_file if given, else by what lies in data_dir.

    A labels_file that is given and missing is an error, never a reason to look for something else. Class folders count
    before a table that names images and no labels.
    Raises DataError, saying what was looked for and what is there, if nothing fits or data_dir is missing.
    """
    root = _existing(Path(data_dir).expanduser())
    if root.is_file():
        if root.suffix.lower() == ".npz":
            return "medmnist"
        raise DataError(f"DATA.data_dir '{root}' is a file: name its folder, and the file as DATA.labels_file")
    if labels_file is not None:
        found = _find_labels(root, labels_file)
        return "folders" if _is_beside_folders(root, found, settings) else _kind_of_file(found)
    if any((root / name).is_file() for name in LABELS_FILES):
        return "folders" if _is_beside_folders(root, _find_labels(root, None), settings) else "csv"
    if any((root / name).is_file() for name in NIH_TABLES):
        return "nih"
    if len(list(root.glob("*.npz"))) == 1:
        return "medmnist"
    if has_class_folders(root):
        return "folders"
    raise DataError(
        f"no known format in '{root}': looked for labels.csv, NIH's Data_Entry_2017.csv, one .npz, and two or more "
        f"folders of images or volumes. {_tables_there(root)}{_data_below(root)}"
    )


def _data_below(root: Path) -> str:
    """'. … looks like data', where that is so of one folder, as of a zip's that was unpacked into one of its name."""
    below = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    fitting = [path for path in below[:20] if (path / LABELS_FILES[0]).is_file() or has_class_folders(path)]
    return f". '{fitting[0]}' looks like data: name it as DATA.data_dir" if len(fitting) == 1 else ""


def _is_beside_folders(root: Path, table: Path, settings: TableSettings) -> bool:
    """Whether a table goes with class folders: it names images, and has no labels of its own."""
    is_table = table.name.lower().endswith(TABLE_SUFFIXES) and table.name not in NIH_TABLES
    return is_table and has_no_labels(table, settings) and has_class_folders(root)


def _kind_of_file(path: Path) -> str:
    if path.suffix.lower() == ".npz":
        return "medmnist"
    return "nih" if path.name in NIH_TABLES else "csv"


def _existing(path: Path) -> Path:
    """The path itself; DataError naming the nearest that does exist, where it does not."""
    if path.exists():
        return path
    parent = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    child = path.absolute().relative_to(parent).parts[0]
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(child, names, n=1, cutoff=0.6)
    hint = f"did you mean '{parent / close[0]}'?" if close else f"'{parent}' holds {some(names) or 'nothing'}"
    raise DataError(f"DATA.data_dir '{path}' does not exist: {hint}")


def _find_labels(root: Path, labels_file: str | Path | None) -> Path:
    """The labels file; DataError naming where it was looked for and the tables that are there."""
    names = LABELS_FILES if labels_file is None else (Path(labels_file).expanduser(),)
    candidates = [root / name for name in names]
    if labels_file is not None and not Path(labels_file).expanduser().is_absolute():
        candidates.append(Path(labels_file).expanduser())
    for candidate in candidates:
        if candidate.is_file():
            return refuse_link(root, candidate) if labels_file is None else candidate
    looked = " and ".join(f"'{candidate}'" for candidate in candidates)
    raise DataError(f"no labels file: looked for {looked}. {_tables_there(root, names[-1])}")


def _tables_there(root: Path, wanted: str | Path = "") -> str:
    tables = sorted(path.name for path in root.iterdir() if path.name.lower().endswith(TABLE_SUFFIXES))
    if not tables:
        return (
            f"There is no CSV file in '{root}'. Training needs labels: write labels.csv there, a row an image, with "
            "the columns image (its path from there), labels and patient_id; or sort the images into a folder per class"
        )
    if len(tables) == 1 and not str(wanted):
        return f"There is the table '{tables[0]}': set DATA.labels_file={tables[0]}"
    return f"CSV files there: {some(tables, 10)}; set DATA.labels_file{nearest(Path(wanted).name, tables)}"


def _find_npz(root: Path, labels_file: str | Path | None) -> Path:
    if root.is_file():
        return root
    if labels_file is not None:
        return _find_labels(root, labels_file)
    found = sorted(root.glob("*.npz"))
    if len(found) != 1:
        names = some([path.name for path in found], 10) or "none"
        raise DataError(f"'{root}' must hold one .npz (it holds {names}): set DATA.labels_file to the one to use")
    return refuse_link(root, found[0])


def _check_class_names(class_names: Sequence[str]) -> None:
    twice = sorted({name for name in class_names if list(class_names).count(name) > 1})
    if twice or not class_names or not all(isinstance(name, str) and name.strip() for name in class_names):
        raise DataError(f"DATA.class_names must be names, each once: {list(class_names)}")
    keys: dict[str, str] = {}
    for name in class_names:
        if (other := keys.setdefault(name_key(name), name)) != name:
            raise DataError(f"DATA.class_names: {other!r} and {name!r} differ in case, blanks or Unicode form only")
