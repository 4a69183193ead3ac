"""Which column of a table is which, where its name does not say it: told, or one error that asks for all at once."""

from __future__ import annotations

from collections.abc import Mapping

from configs.errors import DataError
from data.readers.tables import SPLIT_NAMES, Table, TableSettings
from data.sources.image_files import ImageFiles
from utils.words import is_missing, plain

_TRIED_ROWS = 20
_MAY_BE_LABELS = (
    "diagnosis",
    "class",
    "classes",
    "category",
    "finding",
    "disease",
    "target",
    "诊断",
    "结论",
    "疾病",
    "分类",
)
_MAY_BE_PATIENTS = ("patient", "subject", "患者", "病人", "mrn", "participant", "person", "住院", "检查号", "case")


def check_columns(table: Table, roles: Mapping[str, int], files: ImageFiles) -> None:
    """DataError where no column is known to name the images; it asks for the labels too, where these lack as well."""
    if "image" in roles:
        return
    said = {"image": _names_of_files(table, files)}
    if "labels" not in roles:
        said["labels"] = _called(table, _MAY_BE_LABELS, said["image"])
    if "patient_id" not in roles:
        said["patient_id"] = _called(table, _MAY_BE_PATIENTS, said["image"])
    labels = "" if "labels" in roles else ", and none is called 'labels' (class columns of 1 and 0 do as well)"
    raise _error(table, said, labels)


def no_images_error(table: Table, files: ImageFiles) -> DataError:
    """The error where a list of images to predict has no column that is known to name them."""
    return _error(table, {"image": _names_of_files(table, files)}, "")


def _error(table: Table, said: Mapping[str, str], labels: str) -> DataError:
    example = ", ".join(f"{role}: {name or '…'}" for role, name in said.items() if name or role == "image")
    found = f"; {said['image']!r} holds names of files that are there" if said["image"] else ""
    if len(table.header) == 1:
        found += ", which looks like a title: the first row must have the names of the columns, delete those above it"
    return DataError(
        f"'{table.path}' has no column 'image'{labels} (its columns: {', '.join(table.header)}){found}. "
        f"Say which is which by DATA.columns, as in --set 'DATA.columns={{{example}}}', or rename them"
    )


def _names_of_files(table: Table, files: ImageFiles) -> str:
    """The column whose first cells are all names of files that are there, '' where none is."""
    for index, name in enumerate(table.header):
        cells = table.column(index)[:_TRIED_ROWS]
        try:
            if all(files.find(cell) for cell in cells):
                return name
        except ValueError:
            continue
    return ""


def _called(table: Table, words: tuple[str, ...], other: str) -> str:
    names = [name for name in table.header if name != other]
    return next((name for name in names if any(word in plain(name) for word in words)), "")


def find_split(table: Table, roles: dict[str, int], settings: TableSettings) -> tuple[str, ...]:
    """Take the one column that holds nothing but train, val and test for the split, where none is called so; notes."""
    if "split" in roles or "split" in settings.columns:
        return ()
    taken = set(roles.values())
    found = [index for index in range(len(table.header)) if index not in taken and _holds_splits(table.column(index))]
    if len(found) != 1:
        return ()
    roles["split"] = found[0]
    name = table.header[found[0]]
    return (f"column {name!r} was read as the split (DATA.columns.split: null says that it is none)",)


def _holds_splits(cells: list[str]) -> bool:
    words = {plain(cell) for cell in cells if not is_missing(cell)}
    return words <= SPLIT_NAMES.keys() and "train" in {SPLIT_NAMES[word] for word in words}


def patient_notes(table: Table, roles: Mapping[str, int], settings: TableSettings) -> tuple[str, ...]:
    """Which column may name the patients, where none is known to."""
    if "patient_id" in roles or "patient_id" in settings.columns:
        return ()
    name = _called(table, _MAY_BE_PATIENTS, "")
    return (f"column {name!r} may name the patients: DATA.columns.patient_id says so",) if name else ()
