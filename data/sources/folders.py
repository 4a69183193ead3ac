"""A folder per class, with or without train, val and test above."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.readers.dicom import DICOM_SUFFIXES, looks_like_dicom
from data.readers.images import IMAGE_SUFFIXES
from data.readers.nifti import is_nifti_name
from data.readers.regular_files import read_head, refuse_link
from data.readers.tables import SPLIT_NAMES, some
from data.sources.image_files import FileReader
from data.sources.volume_files import VOLUME_WORDS, VolumeReader, check_names
from data.study import IMAGE, DatasetIndex, Study

# A folder with one of these has its labels elsewhere: it is not a folder per class.
_NOT_CLASSES = ("images", "image", "masks", "labels", "annotations")


def open_folders(data_dir: Path, class_names: Sequence[str] | None = None, volumes: bool = False) -> DatasetIndex:
    """The dataset index of data_dir/<class>/**/<image>, or data_dir/<train|val|test>/<class>/**/<image>.

    volumes: NIfTI files, multi-frame DICOM files right in a class folder, and each folder below one with DICOM files
    right in it: a series. Where they are images, DICOM files are one each.

    Classes are exclusive, their names sorted (class_names may give another order). Splits are the folders above,
    if there is one called train; 'valid' and 'validation' are val. Patients are not known. Hidden files are skipped;
    empty class folders and files that are no images are notes.

    Raises DataError for classes that differ between splits or from class_names, fewer than two classes, folders
    beside the splits, links that leave data_dir.
    """
    root = data_dir.resolve()
    splits = _split_folders(root)
    names = _class_names(root, splits, class_names)
    studies: list[Study] = []
    notes = ["folders name no patients: each image counts as a patient of its own"]
    skipped: list[str] = []
    for split, folder in splits:
        for position, name in enumerate(names):
            images = _images(root, folder / name, skipped, volumes)
            if not images:
                notes.append(f"class folder '{(folder / name).relative_to(root).as_posix()}' is empty")
            label = np.eye(len(names), dtype=np.float32)[position]
            studies += [Study(image, {IMAGE: image}, label, split=split) for image in images]
    if skipped:
        what = "volumes" if volumes else "images"
        notes.append(f"{len(skipped)} files are no {what} and left out: {some(sorted(skipped))}")
    if not studies:
        check_names(data_dir, skipped, volumes)
        expected = f"volumes ({VOLUME_WORDS})" if volumes else f"images ({', '.join(IMAGE_SUFFIXES)})"
        raise DataError(f"the class folders of '{data_dir}' hold no {expected}")
    reader = (VolumeReader if volumes else FileReader)(root, tuple(study.file for study in studies))
    return DatasetIndex(names, tuple(studies), reader, exclusive=True, notes=tuple(notes))


def has_class_folders(data_dir: Path) -> bool:
    """Whether a folder looks like open_folders' layout: split folders, or two or more class folders with files."""
    folders = _subfolders(data_dir, data_dir)
    if any(folder.name.lower() in _NOT_CLASSES for folder in folders):
        return False
    if any(SPLIT_NAMES.get(folder.name.lower()) == "train" for folder in folders):
        return True
    return sum(1 for folder in folders if _holds_image(folder)) >= 2


def _split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """(split, folder) pairs, or [(None, root)] where there is no folder called train."""
    folders = _subfolders(root, root)
    splits = [(SPLIT_NAMES.get(folder.name.lower()), folder) for folder in folders]
    if not any(split == "train" for split, _ in splits):
        return [(None, root)]
    beside = [folder.name for split, folder in splits if split is None]
    if beside:
        raise DataError(f"'{root}' has split folders and, beside them, {some(beside)}: move those elsewhere")
    given = [split for split, _ in splits]
    if len(set(given)) < len(given):
        raise DataError(f"'{root}' has two folders for one split: {', '.join(folder.name for folder in folders)}")
    return list(splits)


def _class_names(
    root: Path, splits: Sequence[tuple[str | None, Path]], class_names: Sequence[str] | None
) -> tuple[str, ...]:
    found = {folder.name: {child.name for child in _subfolders(root, folder)} for _, folder in splits}
    everything = set().union(*found.values())
    lacking = [
        f"{split} lacks {some(sorted(everything - names))}" for split, names in found.items() if names < everything
    ]
    if lacking:
        raise DataError(f"the class folders of '{root}' differ between its splits: {'; '.join(lacking)}")
    if len(everything) < 2:
        raise DataError(f"'{root}' has {len(everything)} class folders; two or more are needed")
    if class_names and set(class_names) != everything:
        raise DataError(f"DATA.class_names are {some(class_names, 20)}, the folders {some(sorted(everything), 20)}")
    return tuple(class_names or sorted(everything))


def _subfolders(root: Path, folder: Path) -> list[Path]:
    visible = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    return [refuse_link(root, child) for child in visible if child.is_dir()]


def _images(root: Path, folder: Path, skipped: list[str], volumes: bool = False) -> list[str]:
    """Sorted paths, relative to root, of the images or volumes below a class folder; other files go into skipped."""
    found: dict[str, None] = {}
    for path in visible_files(folder):
        refuse_link(root, path)
        if volumes and path.parent != folder and not is_nifti_name(path.name) and is_dicom_file(path):
            path = path.parent  # a slice stands for its series
        name = path.relative_to(root).as_posix()
        if not name.isprintable():  # surrogates of a name that is not UTF-8: it could not be written to split.csv
            raise DataError(f"the file name {name!a} is not readable text: rename it")
        if name in found:
            continue
        if not (is_volume(path) if volumes else _is_image(path)):
            skipped.append(name)
        else:
            found[name] = None
    return list(found)


def visible_files(folder: Path) -> list[Path]:
    """Visible files below a folder, sorted; linked folders inside are not entered."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _holds_image(folder: Path) -> bool:
    files = [path for path in visible_files(folder) if not path.is_symlink()]
    return any(_is_image(path) or is_nifti_name(path.name) for path in files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES if path.suffix else is_dicom_file(path)


def is_volume(path: Path) -> bool:
    """A folder (of slices), a NIfTI file by its name or a DICOM file."""
    return path.is_dir() or is_nifti_name(path.name) or is_dicom_file(path)


def is_dicom_file(path: Path) -> bool:
    """By its name; by its content where the name has no suffix, or one of numbers ('IM_1.2.3')."""
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    return path.is_file() and looks_like_dicom(read_head(path))
