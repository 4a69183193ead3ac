"""How else the name of a file may be written in a table: backslashes, another case or Unicode form, no suffix."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath, PureWindowsPath

from data.readers.dicom import DICOM_SUFFIXES
from data.readers.images import IMAGE_SUFFIXES
from utils.words import UNDRAWN

_SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *DICOM_SUFFIXES, ".nii", ".nii.gz")))


def forward_slashes(name: str) -> str:
    r"""'lungs\a.png', as Windows writes it, as 'lungs/a.png'."""
    return name.replace("\\", "/")


def is_windows_root(name: str) -> bool:
    r"""Whether a path begins with a drive or a share: 'C:\study\a.png', '\\server\study\a.png'."""
    path = PureWindowsPath(name)
    return bool(path.drive) and bool(path.root)


def alike(name: str, names: Iterable[str]) -> list[str]:
    """Those of names that differ from one in case, Unicode form and characters that are not drawn only; or else, where
    it has no suffix of an image, those that have one besides.
    """
    key = _key(name)
    keys = {other: _key(other) for other in names}
    same = [other for other, its in keys.items() if its == key]
    if same or key.endswith(_SUFFIXES):
        return same
    return [other for other, its in keys.items() if its in {f"{key}{suffix}" for suffix in _SUFFIXES}]


def _key(name: str) -> str:
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return "".join(mark for mark in composed if mark not in UNDRAWN)


def shared_folders(names: Sequence[str]) -> list[str]:
    """The folders that all of some absolute Windows paths lie in, as the first of them writes them, longest first."""
    parents = [PureWindowsPath(name).parents for name in names]
    shared = [parent for parent in parents[0] if all(parent in others for others in parents[1:])]
    return [str(parent) for parent in shared]


def below(name: str, folder: str) -> str:
    """An absolute Windows path as a relative one, with slashes."""
    return PurePosixPath(PureWindowsPath(name).relative_to(folder).as_posix()).as_posix()
