"""What of a folder that is watched can be predicted, and what belongs together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.readers.dicom_identity import read_attributes
from data.readers.images import IMAGE_SUFFIXES
from data.readers.regular_files import leaves
from data.sources.folders import LeftOut, is_dicom_file, is_volume, visible_files

Kind = Literal["images", "volumes", "studies"]
# Of files that others are still writing, by the habits of programs that copy.
_PARTIAL = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".download", "~")


@dataclass(frozen=True)
class WatchedFolder:
    """kind: images are predicted one by one; volumes are a file each, or the DICOM slices of a folder; studies are the
    DICOM files of one StudyInstanceUID, or the files of a folder below this one.
    """

    folder: Path
    kind: Kind

    def files(self) -> Iterator[Path]:
        """All that are there now, whatever they are; OSError where the folder cannot be listed."""
        next(self.folder.iterdir(), None)  # the walk below takes a folder that is away for an empty one
        for path in visible_files(self.folder, LeftOut()):
            if not path.name.lower().endswith(_PARTIAL) and path.name.upper() != "DICOMDIR":
                yield path

    def takes(self, path: Path) -> bool:
        """Whether a file is an image or a volume, and lies in the folder, not behind a link out of it."""
        try:
            if leaves(self.folder, path) or not path.is_file():
                return False
            if self.kind == "volumes":
                return is_volume(path)
            return path.suffix.lower() in IMAGE_SUFFIXES or is_dicom_file(path)
        except OSError:
            return False

    def group_of(self, path: Path) -> str:
        """What a file is predicted together with; '' where its header cannot be read yet."""
        if self.kind == "images":
            return str(path)
        try:
            is_dicom = is_dicom_file(path)
        except OSError:
            return ""
        if self.kind == "volumes":
            return str(path.parent) if is_dicom and path.parent != self.folder else str(path)
        if is_dicom:
            return read_attributes(path).get("StudyInstanceUID", "")
        return str(path.parent) if path.parent != self.folder else str(path)

    def asked(self, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        """What is asked about of the files of a group: a folder in place of its slices."""
        if self.kind == "volumes" and len(paths) > 1:
            return (paths[0].parent,)
        return paths
