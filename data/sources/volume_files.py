"""A name in a labels source to a volume: which names are volumes, the reader of a dataset index of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import DataError
from data.readers.dicom import looks_like_dicom
from data.readers.dicom_series import list_slices, read_multiframe, read_series
from data.readers.images import DRAWN_SUFFIXES
from data.readers.naming import naming
from data.readers.nifti import NIFTI_SUFFIXES, is_nifti_name, read_nifti
from data.readers.regular_files import leaves, read_head
from data.readers.tables import some
from data.readers.volumes import Volume
from data.study import Reader

VOLUME_WORDS = f"{' or '.join(NIFTI_SUFFIXES)} files, folders of DICOM slices, multi-frame DICOM files"


def read_volume(path: Path, root: Path | None = None) -> Volume:
    """Read a NIfTI file, a folder of DICOM slices or a multi-frame DICOM file, in the convention of readers/volumes.py.

    root: a folder that slices may not leave by a symbolic link; None: anywhere.
    Raises DataError naming the path for anything that prevents reading: see read_nifti and read_series.
    """
    with naming("volume", path):
        return _read(path, root)


@dataclass(frozen=True)
class VolumeReader(Reader):
    """DatasetIndex.read of volumes: reader(index) reads root / names[index]."""

    root: Path
    names: tuple[str, ...]

    def __call__(self, index: int) -> Volume:
        return read_volume(self.root / self.names[index], self.root)

    def files(self, index: int) -> tuple[Path, ...]:
        """The volume's file, or its slices; a folder that cannot be listed stands for itself."""
        path = self.root / self.names[index]
        try:
            return tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
        except OSError:
            return (path,)


def check_names(source: Path, names: Sequence[str], volumes: bool) -> None:
    """DataError where a source names volumes and DATA.image_size is one of images, or the reverse."""
    if volumes:
        wrong = [name for name in names if name.lower().endswith(DRAWN_SUFFIXES)]
        what, advice = "images", "DATA.image_size is one of volumes: set DATA.image_size=[height, width]"
    else:
        wrong = [name for name in names if is_nifti_name(name)]
        what, advice = "volumes", "DATA.image_size is one of images: set DATA.image_size=[depth, height, width]"
    if wrong:
        raise DataError(f"'{source}' names {what} ({some(wrong, 3)}), but {advice}")


def _read(path: Path, root: Path | None) -> Volume:
    if path.is_dir():
        _check_links(path, root)
        return read_series(path, list_slices(path))
    head = read_head(path)
    if not head:
        raise DataError("the file is empty")
    if is_nifti_name(path.name):
        return read_nifti(path)
    if looks_like_dicom(head):
        return read_multiframe(path)
    raise DataError(f"volumes are {VOLUME_WORDS}; it begins with {head[:8]!r}")


def _check_links(folder: Path, root: Path | None) -> None:
    """DataError for links in a folder that leave root, before any file is opened to see whether it is a slice."""
    links = [path for path in sorted(folder.iterdir()) if path.is_symlink() and not path.name.startswith(".")]
    outside = [path.name for path in links if root is not None and leaves(root, path)]
    if outside:
        raise DataError(f"symbolic links lead out of data_dir: {some(outside)}")
