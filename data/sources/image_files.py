"""From the names in a table to files that lie inside data_dir, and the reader of a dataset index of files."""

from __future__ import annotations

import difflib
import filecmp
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from configs.errors import DataError
from data.readers.images import read_image, read_reduced
from data.readers.regular_files import leaves
from data.readers.tables import some
from data.sources.file_names import alike, below, forward_slashes, is_windows_root, shared_folders
from data.study import Reader
from utils.text import told_apart

_COMPARED = 20_000  # names of a folder, which takes a second


@dataclass(frozen=True)
class FileReader(Reader):
    """DatasetIndex.read of images that are files: reader(index) decodes root / names[index]."""

    root: Path
    names: tuple[str, ...]

    def __call__(self, index: int) -> np.ndarray:
        return read_image(self.root / self.names[index])

    def reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """See `read_reduced`."""
        return read_reduced(self.root / self.names[index], least)

    def files(self, index: int) -> tuple[Path, ...]:
        """The image's file."""
        return (self.root / self.names[index],)


@dataclass
class ImageFiles:
    """Finds files below a folder by relative name; each folder is listed once, however many names point into it.

    root: the folder that no name may leave, by '..', an absolute path or a symbolic link.
    bases: folders below root, relative to it, in which names are looked up, the first match counting.
    folders: whether a name may be that of a folder, as that of a volume's slices is.
    rewritten: names that were found otherwise than they are written, and what they were found as.
    """

    root: Path
    bases: tuple[str, ...] = ("",)
    folders: bool = False
    rewritten: dict[str, str] = field(default_factory=dict, repr=False)
    _listings: dict[str, dict[str, bool]] = field(default_factory=dict, repr=False)
    _parents: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()

    def find(self, name: str) -> str | None:
        """The file's path relative to root ('images/a.png'), or None where there is none.

        Where no file is called so, the one that differs in case, Unicode form, backslashes or in having a suffix only.
        Raises ValueError, saying why, for a name that leaves root, and where several files fit it.
        """
        path = _safe_path(name)
        exact = [found for base in self._bases_of(path) if (found := self._at(base, path)) is not None]
        if exact:
            return self._only(exact)
        fitting = list(
            dict.fromkeys(found for base in self.bases for found in self._alike(base, forward_slashes(path)))
        )
        if len(fitting) > 1:
            raise ValueError(f"no file has exactly this name, and several fit it: {some(fitting)}")
        if fitting:
            self.rewritten[name] = fitting[0]
        return fitting[0] if fitting else None

    def _only(self, found: Sequence[str]) -> str:
        """The first of files that have one name; ValueError where another differs from it."""
        others = [file for file in found[1:] if not self._same(file, found[0])]
        if others:
            raise ValueError(f"it may be {told_apart(found[0], others[0])}, which differ: name it with its folder")
        return found[0]

    def _same(self, one: str, other: str) -> bool:
        """Whether two files are one, or alike: then it does not matter which is taken."""
        first, second = self.root / one, self.root / other
        if not first.exists() or not second.exists():  # a link to nothing
            return False
        return first.samefile(second) or (first.is_file() and second.is_file() and filecmp.cmp(first, second, False))

    def _bases_of(self, path: str) -> list[str]:
        """The bases below which the folder of a path is not empty."""
        parent = path.rpartition("/")[0]
        if parent not in self._parents:
            self._parents[parent] = [base for base in self.bases if self._listing(_joined(base, parent))]
        return self._parents[parent]

    def _at(self, base: str, path: str) -> str | None:
        parent, _, leaf = path.rpartition("/")
        folder = f"{base}/{parent}" if base and parent else base or parent
        return (f"{folder}/{leaf}" if folder else leaf) if self._holds(folder, leaf) else None

    def _alike(self, base: str, path: str) -> list[str]:
        """Paths that a name fits, without regard to case and suffix; folder by folder, of which each is one."""
        found = [base]
        *parents, leaf = path.split("/")
        for parent in parents:
            found = [
                f"{folder}/{name}".lstrip("/") for folder in found for name in alike(parent, self._folders(folder))
            ]
        below = [(folder, name) for folder in found for name in alike(leaf, self._listing(folder))]
        return [f"{folder}/{name}".lstrip("/") for folder, name in below if self._holds(folder, name)]

    def _folders(self, folder: str) -> list[str]:
        path = self.root / folder
        if not path.is_dir() or leaves(self.root, path):
            return []
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def _holds(self, folder: str, name: str) -> bool:
        listing = self._listing(folder)
        if listing.get(name):
            self._check_inside(self.root / folder / name)
        return name in listing

    def _listing(self, folder: str) -> dict[str, bool]:
        if folder not in self._listings:
            self._listings[folder] = self._list(folder)
        return self._listings[folder]

    def _list(self, folder: str) -> dict[str, bool]:
        """The names in a folder that count, and whether each is a symbolic link; {} where there is no such folder."""
        path = self.root / folder
        try:
            if not path.is_dir():
                return {}
        except OSError as reason:  # a name longer than any file's
            raise ValueError(str(reason.strerror)) from None
        self._check_inside(path)
        with os.scandir(path) as entries:
            return {entry.name: entry.is_symlink() for entry in entries if self.folders or Path(entry).is_file()}

    def _check_inside(self, path: Path) -> None:
        if leaves(self.root, path):
            raise ValueError(f"its symbolic link leads out of data_dir, to '{os.path.realpath(path)}'")


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def missing_files_error(
    table: Path, root: Path, missing: Sequence[str], total: int, looked_in: Sequence[str]
) -> DataError:
    """The error for listed files that are not there: how many, the first few, where looked for, the way on."""
    folders = ", ".join(f"'{root / folder}'" for folder in looked_in)
    series = any((root / folder / name).is_dir() for folder in looked_in for name in missing[:10])
    hint = " Some are folders: for volumes set DATA.image_size=[depth, height, width]." if series else ""
    return DataError(
        f"{len(missing)} of {total} images that '{table}' lists are missing: {some(missing)}. "
        f"Looked in {folders}.{hint}{_nearest_there(root, missing, looked_in)} Set DATA.data_dir to the folder that "
        "holds them, or DATA.allow_missing_images=true to continue without them"
    )


def _nearest_there(root: Path, missing: Sequence[str], looked_in: Sequence[str]) -> str:
    """' There is …' for the nearest name to the first missing one, where there is any like it."""
    leaf = PurePosixPath(missing[0].replace("\\", "/")).name
    for folder in looked_in:
        try:
            names = [entry.name for entry in islice((root / folder).iterdir(), _COMPARED)]
        except OSError:
            continue
        for name in difflib.get_close_matches(leaf, names, 1, 0.8):
            return f" There is {told_apart(_joined(folder, name), missing[0]).replace(' and ', ', not ', 1)}."
    return ""


def missing_files_note(missing: Sequence[str], total: int) -> str:
    """The counted warning for the same."""
    return f"{len(missing)} of {total} listed images are missing and left out: {some(missing)}"


def below_data_dir(names: Sequence[str], files: ImageFiles) -> tuple[list[str], list[str]]:
    """(names, absolute Windows paths among them without the folder that all of these lie in; notes).

    Such a folder is data_dir on the machine where the table was made: the one below which files are found as they are
    here. Where none or several are, the names stay, and are refused.
    """
    absolute = [name for name in names if is_windows_root(name)]
    if not absolute:
        return list(names), []
    fitting = [
        folder for folder in shared_folders(absolute) if any(_is_there(below(n, folder), files) for n in absolute)
    ]
    if len(fitting) != 1:
        return list(names), []
    note = f"{len(absolute)} images are named by absolute paths: '{fitting[0]}' was read as data_dir"
    return [below(name, fitting[0]) if is_windows_root(name) else name for name in names], [note]


def _is_there(name: str, files: ImageFiles) -> bool:
    try:
        return files.find(name) is not None
    except ValueError:
        return False


def rewritten_notes(files: ImageFiles) -> tuple[str, ...]:
    """What was found under another name than the table has."""
    if not files.rewritten:
        return ()
    listed = some([f"'{name}' as '{found}'" for name, found in files.rewritten.items()], 2)
    return (f"{len(files.rewritten)} images were found under names that are written otherwise: {listed}",)


def _safe_path(name: str) -> str:
    """A relative path without '.' and '//'; ValueError for one that is absolute, has '..', or is no path at all."""
    if not name or "\0" in name:
        raise ValueError("it is not a file name")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root:
        raise ValueError("it is an absolute path; paths are relative to data_dir")
    if ".." in posix.parts or ".." in windows.parts:
        raise ValueError("it leaves data_dir by '..'")
    if not posix.parts:
        raise ValueError("it is not a file name")
    return posix.as_posix()
