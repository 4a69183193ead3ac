"""Whose image a DICOM file is, and of what: the attributes by which a hospital knows it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data.readers.dicom import looks_like_dicom, read_dataset
from data.readers.regular_files import leaves, read_head
from utils.identifiers import IDENTIFIERS

if TYPE_CHECKING:
    from pydicom import FileDataset

# What else names a person or an examination, and must not be in results without identifiers.
_NAMING = ("PatientName", "PatientBirthDate", "AccessionNumber", "StudyID", "SeriesInstanceUID", "OtherPatientIDs")
MODALITY, BODY_PART = "Modality", "BodyPartExamined"
_SHORTEST = 3  # of what is told from other text


def is_dicom(path: Path, root: Path | None = None) -> bool:
    """Whether a file, or the first file of a folder of slices, is DICOM; False for what cannot be opened."""
    try:
        file = first_file(path, root)
        return file is not None and looks_like_dicom(read_head(file))
    except Exception:  # whoever reads the image says what is wrong with the file
        return False


def first_file(path: Path, root: Path | None = None) -> Path | None:
    """The file itself, or the first one of a folder; None where it is a link out of root, or there is none."""
    if not path.is_dir():
        return path
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return next((file for file in files[:1] if root is None or not leaves(root, file)), None)


def read_attributes(path: Path, root: Path | None = None) -> dict[str, str]:
    """Keyword → text of the attributes that a file's header has, of a folder of slices its first file's; {} for others.

    Of a folder SOPInstanceUID is left out: each slice has its own.
    """
    if not is_dicom(path, root):
        return {}
    file = first_file(path, root)
    assert file is not None, "it is DICOM"
    try:
        dataset = read_dataset(file, header_only=True)
    except Exception:  # whoever reads the image says what is wrong with the file
        return {}
    found = {}
    for keyword in (*IDENTIFIERS, *_NAMING, BODY_PART):
        try:
            value: object = dataset.get(keyword)
        except Exception:  # a value that its type does not allow
            continue
        text = "" if value is None else "\\".join(map(str, value)) if isinstance(value, list) else str(value)
        if text.strip("\0 "):
            found[keyword] = text.strip("\0 ")
    if path.is_dir():
        found.pop("SOPInstanceUID", None)
    return found


def read_headers(path: Path, root: Path | None = None) -> list[FileDataset]:
    """A DICOM file without its pixels, or each one of a folder of slices; what cannot be read is
    left out.
    """
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        if is_dicom(file) and not (root is not None and leaves(root, file)):
            try:
                found.append(read_dataset(file, header_only=True))
            except Exception:  # whoever reads the image says what is wrong with the file
                continue
    return found


def identifiers(of_images: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Of one image or of all of a study: the columns that they have, different values joined by '|'."""
    images = list(of_images)
    columns = {key: dict.fromkeys(one[key] for one in images if key in one) for key in IDENTIFIERS}
    return {key: "|".join(texts) for key, texts in columns.items() if texts}


def naming_texts(attributes: Mapping[str, str]) -> set[str]:
    """Texts of a header that say whose or which image it is, whole and in the parts of a name."""
    found = set()
    for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID", *_NAMING):
        text = attributes.get(keyword, "")
        parts = text.replace("=", "^").split("^") if keyword == "PatientName" else text.split("\\")
        found |= {part.strip() for part in (text, *parts) if len(part.strip()) >= _SHORTEST}
    return found
