"""A folder per class, with or without train, val and test above it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.readers.dicom import DICOM_SUFFIXES, looks_like_dicom
from data.readers.images import IMAGE_SUFFIXES
from data.readers.nifti import is_nifti_name
from data.readers.regular_files import read_head, refuse_link
from data.readers.tables import SPLIT_NAMES, some
from data.sources.class_formats import check_formats
from data.sources.image_files import FileReader
from data.sources.volume_files import VOLUME_WORDS, VolumeReader, check_names
from data.study import IMAGE, DatasetIndex, Study
from utils.text import alike_between, folded, has_controls, told_apart

# A folder with one of these has its labels elsewhere: it is not a folder per class.
_NOT_CLASSES = ("images", "image", "masks", "labels", "annotations")
# Within a class folder that has its images in a folder 'images': what was drawn on them.
_DRAWN_ON = ("masks", "mask", "annotations", "segmentations", "segmentation")
# Written by macOS, Windows, Synology, QNAP, ext4 and Python into folders of other people's; in small letters.
_SYSTEM_FOLDERS = frozenset(
    (
        "__macosx",
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
    )
    + ("recycled", "system volume information", "lost+found", "found.000", "__pycache__", "network trash folder")
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
# What people call split folders beside what they write into a column.
_SPLIT_FOLDERS = {
    **SPLIT_NAMES,
    **dict.fromkeys(("train set", "trainset", "training set", "trn", "训练", "训练集"), "train"),
    **dict.fromkeys(("val set", "valset", "validation set", "dev", "devel", "development", "验证", "验证集"), "val"),
    **dict.fromkeys(("test set", "testset", "testing set", "tst", "测试", "测试集"), "test"),
}


@dataclass
class LeftOut:
    """What lies in folders and is no image. folders: by their paths; hidden: files; kinds: files of another kind."""

    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def notes(self, what: str = "images") -> list[str]:
        """A sentence for each kind."""
        notes = []
        if self.folders:
            notes.append(f"folders that hold no {what} of the data are left aside: {some(sorted(self.folders))}")
        if self.hidden:
            notes.append(f"hidden files left out ({len(self.hidden)}): {some(sorted(self.hidden))}")
        if self.kinds:
            notes.append(f"{len(self.kinds)} files are no {what} and left out: {some(sorted(self.kinds))}")
        return notes


@dataclass(frozen=True)
class _ClassFolder:
    """name: of the class. path: relative to the data's folder. images: below it. others: files that are none."""

    name: str
    path: str
    images: tuple[str, ...]
    others: tuple[str, ...]


def open_folders(data_dir: Path, class_names: Sequence[str] | None = None, volumes: bool = False) -> DatasetIndex:
    """The dataset index of data_dir/<class>/**/<image>, or data_dir/<train|val|test>/<class>/**/<image>.

    volumes: NIfTI files, multi-frame DICOM files right in a class folder, and each folder below one with DICOM files
    right in it: a series. Where they are images, DICOM files are one each.

    Classes are exclusive, their names sorted (class_names may give another order). Splits are the folders above, if
    all are called like one, in any case ('Training', 'valid', 'dev', '测试集'); or else the folders in all class
    folders. Patients are not known. Hidden files and folders and those that systems write (__MACOSX, @eaDir,
    lost+found, …) are left out; they, files that are no images and empty class folders, which are no classes, are
    notes, as are classes without images in val or test.

    Raises DataError for class folders with files of which none is an image, for classes that train lacks, for two
    whose names differ in case, blanks or Unicode form only, for one in another format than all others (see
    `check_formats`), for others than class_names, fewer than two, folders beside the splits, links that leave data_dir.
    """
    root, left = data_dir.resolve(), LeftOut()
    splits = _split_folders(root, left)
    found = {split: list(_class_folders(root, folder, left, volumes)) for split, folder in splits}
    everything = [one for folders in found.values() for one in folders]
    if not any(one.images for one in everything):
        check_names(data_dir, [name for one in everything for name in one.others], volumes)
        expected = f"volumes ({VOLUME_WORDS})" if volumes else f"images ({', '.join(IMAGE_SUFFIXES)})"
        raise DataError(f"the class folders of '{data_dir}' hold no {expected}")
    _check_alike(root, sorted({one.name for one in everything}))
    _check_readable(data_dir, everything, volumes)
    names, notes = _class_names(root, found, class_names)
    if not volumes:
        files = {name: [image for one in everything if one.name == name for image in one.images] for name in names}
        notes += check_formats(data_dir, files, class_names is not None)
    studies = [
        Study(image, {IMAGE: image}, np.eye(len(names), dtype=np.float32)[names.index(one.name)], split=split)
        for split, folders in found.items()
        for one in folders
        for image in one.images
    ]
    studies, more = _with_inner_splits(studies) if None in found else (studies, [])
    left.kinds += [name for one in everything for name in one.others]
    notes = ["folders name no patients: each image counts as a patient of its own", *notes, *more]
    reader = (VolumeReader if volumes else FileReader)(root, tuple(study.file for study in studies))
    what = "volumes" if volumes else "images"
    return DatasetIndex(names, tuple(studies), reader, exclusive=True, notes=(*notes, *left.notes(what)))


def has_class_folders(data_dir: Path) -> bool:
    """Whether a folder looks like open_folders' layout: split folders, or two or more class folders with files."""
    folders = _subfolders(data_dir, data_dir, LeftOut())
    if any(folder.name.lower() in _NOT_CLASSES for folder in folders):
        return False
    if any(_split_of(folder) == "train" for folder in folders):
        return True
    if folders and all(map(_split_of, folders)):
        return any(_holds_image(folder) for folder in folders)
    return sum(1 for folder in folders if _holds_image(folder)) >= 2


def _split_of(folder: Path) -> str | None:
    return _SPLIT_FOLDERS.get(folded(folder.name))


def _split_folders(root: Path, left: LeftOut) -> list[tuple[str | None, Path]]:
    """(split, folder) pairs, or [(None, root)] where the folders have other names than splits."""
    folders = _subfolders(root, root, left)
    splits = [(_split_of(folder), folder) for folder in folders]
    given = [split for split, _ in splits if split]
    if not folders or ("train" not in given and len(given) < len(folders)):
        left.folders.clear()  # they are met again as those beside the classes
        return [(None, root)]
    beside = [folder.name for split, folder in splits if split is None]
    if beside:
        raise DataError(f"'{root}' has split folders and, beside them, {some(beside)}: move those elsewhere")
    for (one, first), (other, second) in combinations(splits, 2):
        if one == other:
            pair = told_apart(first.name, second.name)
            raise DataError(f"'{root}' has two folders for one split ({one}): {pair}")
    return list(splits)


def _class_folders(root: Path, folder: Path, left: LeftOut, volumes: bool) -> Iterator[_ClassFolder]:
    for child in _subfolders(root, folder, left):
        others: list[str] = []
        images = _images(root, child, others, left, volumes)
        yield _ClassFolder(child.name, child.relative_to(root).as_posix(), tuple(images), tuple(others))


def _check_alike(root: Path, names: Sequence[str]) -> None:
    """DataError for two names of one class, as they may be."""
    for one, other in combinations(names, 2):
        if folded(one) == folded(other):
            raise DataError(
                f"the class folders of '{root}' have names that may be of one class: {told_apart(one, other)}. Put "
                "their files into one folder, or rename one"
            )


def _check_readable(data_dir: Path, folders: Sequence[_ClassFolder], volumes: bool) -> None:
    """DataError for a class folder with files of which none is read: its class would be lost without a word."""
    for one in folders:
        files = [name for name in one.others if name.rpartition("/")[2].lower() not in _SYSTEM_FILES]
        if one.images or not files:
            continue
        check_names(data_dir, files, volumes)
        what = "volumes" if volumes else "images"
        raise DataError(
            f"the class folder '{one.path}' of '{data_dir}' has {len(files)} files and no {what} that can be read: "
            f"{some(files, 3)} ({VOLUME_WORDS if volumes else ', '.join(IMAGE_SUFFIXES)} are). Convert them, or move "
            "the folder elsewhere if it is no class"
        )


def _class_names(
    root: Path, found: dict[str | None, list[_ClassFolder]], wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], list[str]]:
    """(the classes in their order, notes)."""
    names = {one.name for folders in found.values() for one in folders if one.images}
    empty = {one.name for folders in found.values() for one in folders} - names
    if wanted:
        names |= empty & set(wanted)
        if set(wanted) != names:
            hint = alike_between(set(wanted) - names, names - set(wanted))
            raise DataError(f"DATA.class_names are {some(wanted, 20)}, the folders {some(sorted(names), 20)}{hint}")
    notes = [f"class folder '{name}' is empty, and no class" for name in sorted(empty - names)]
    for split, folders in found.items():
        lacking = names - {one.name for one in folders}
        if lacking and split == "train":
            raise DataError(_lacking(root, split, sorted(lacking), [one.name for one in folders]))
        notes += [f"{split} has no folder of class '{name}'" for name in sorted(lacking)]
        notes += [f"class folder '{one.path}' is empty" for one in folders if one.name in names and not one.images]
    if len(names) < 2:
        raise DataError(f"'{root}' has {len(names)} class folders with images; two or more are needed")
    return tuple(wanted or sorted(names)), notes


def _lacking(root: Path, split: str, lacking: Sequence[str], there: Sequence[str]) -> str:
    hint = alike_between(lacking, there)
    return f"the class folders of '{root}' differ between its splits: {split} lacks {some(lacking)}{hint}"


def _with_inner_splits(studies: Sequence[Study]) -> tuple[list[Study], list[str]]:
    """With the splits of data_dir/<class>/<train|val|test>/<image>, where every image is below such a folder."""
    splits = [_SPLIT_FOLDERS.get(folded(study.file.split("/")[1])) for study in studies]
    if "train" not in splits or not all(splits) or any(study.file.count("/") < 2 for study in studies):
        return list(studies), []
    found = [replace(study, split=split) for study, split in zip(studies, splits)]
    return found, ["the folders in the class folders are taken as splits"]


def _subfolders(root: Path, folder: Path, left: LeftOut) -> list[Path]:
    found = []
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not _is_system(child.relative_to(root), left):
            found.append(refuse_link(root, child))
    return found


def _is_system(path: Path, left: LeftOut) -> bool:
    """Whether a folder is hidden or one that a system writes, and so no class; it is noted then."""
    if not path.name.startswith(".") and path.name.lower() not in _SYSTEM_FOLDERS:
        return False
    if path.name != ".hybridmednet_cache":
        left.folders.append(path.as_posix())
    return True


def _images(root: Path, folder: Path, others: list[str], left: LeftOut, volumes: bool = False) -> list[str]:
    """Sorted paths, relative to root, of the images or volumes below a class folder; other files go into others."""
    found: dict[str, None] = {}
    for path in visible_files(folder, left, root):
        refuse_link(root, path)
        if volumes and path.parent != folder and not is_nifti_name(path.name) and is_dicom_file(path):
            path = path.parent  # a slice stands for its series
        name = path.relative_to(root).as_posix()
        if has_controls(name):  # surrogates of a name that is not UTF-8: it could not be written to split.csv
            raise DataError(f"the file name {name!a} is not readable text: rename it")
        if name in found:
            continue
        if not (is_volume(path) if volumes else _is_image(path)):
            others.append(name)
        else:
            found[name] = None
    return list(found)


def visible_files(folder: Path, left: LeftOut | None = None, root: Path | None = None) -> list[Path]:
    """Visible files below a folder, sorted, but those in folders that systems write; linked ones are not entered.

    left: what is told of those that are left out, by paths relative to root or else the folder.
    """
    left, root, found = left or LeftOut(), root or folder, []
    for parent, folders, files in os.walk(folder):
        inside = Path(parent).relative_to(root)
        drawn_on = _DRAWN_ON if any(name.lower() in ("images", "image") for name in folders) else ()
        for name in [name for name in folders if name.lower() in drawn_on]:
            folders.remove(name)
            left.folders.append((inside / name).as_posix())
        folders[:] = [name for name in folders if not _is_system(inside / name, left)]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
        left.hidden += [(inside / name).as_posix() for name in files if name.startswith(".")]
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
