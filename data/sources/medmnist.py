"""MedMNIST's .npz (Yang et al. 2023, MedMNIST v2): {train,val,test}_{images,labels} in one file."""

from __future__ import annotations

import hashlib
import itertools
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from configs.errors import DataError
from data.readers.regular_files import check_expansion, read_head
from data.readers.tables import some
from data.sources.identical_files import Groups, identical_notes
from data.study import IMAGE, SPLITS, DatasetIndex, Reader, Study


class NpzReader(Reader):
    """DatasetIndex.read of an .npz: keeps the images of all splits in memory; pickled, it is its path and reloads."""

    def __init__(self, path: Path, images: dict[str, np.ndarray]) -> None:
        self.path = path
        self._images: dict[str, np.ndarray] | None = images
        self._starts = list(itertools.accumulate((len(images[split]) for split in SPLITS), initial=0))

    def __call__(self, index: int) -> np.ndarray:
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"image {index} of {self._starts[-1]}")
        if self._images is None:
            self._images = {split: images for split, (images, _) in _load(self.path).items()}
        position = next(position for position in range(len(SPLITS)) if index < self._starts[position + 1])
        return self._images[SPLITS[position]][index - self._starts[position]]

    def files(self, index: int) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_images": None}


def open_medmnist(path: Path, class_names: Sequence[str] | None = None) -> DatasetIndex:
    """The dataset index of one MedMNIST file.

    images: uint8 [N, H, W] or [N, H, W, 3]. labels: [N, 1] of 0 and 1 is one class, called 'positive'; [N, 1] of
    0 … C-1 is C exclusive classes, one-hot; [N, K] of 0 and 1 is K classes, not exclusive. class_names, if given,
    must be as many. Images are named 'train[17]'; patients are not known. Notes say of images that stand there
    twice, byte for byte, see `identical_notes`.

    Raises DataError for a damaged file, missing or object arrays, volumes, other shapes, types or values.
    """
    arrays = _load(path)
    codes, exclusive = _codes(path, {split: labels for split, (_, labels) in arrays.items()})
    names = _names(path, codes[SPLITS[0]].shape[1], exclusive, class_names)
    studies = tuple(
        Study(f"{split}[{index}]", {IMAGE: f"{split}[{index}]"}, labels, split=split)
        for split in SPLITS
        for index, labels in enumerate(codes[split])
    )
    if not studies:
        raise DataError(f"'{path}' holds no images")
    images = {split: images for split, (images, _) in arrays.items()}
    identical = _identical(images)
    nobody = "the file names no patients: each image counts as a patient of its own"
    notes = (nobody, *identical_notes(studies, identical, names))
    return DatasetIndex(names, studies, NpzReader(path, images), exclusive, notes, identical)


def _load(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(images, labels [N, K]) of each split, checked."""
    try:
        read_head(path)  # a pipe or a device ends here
        if not zipfile.is_zipfile(path):
            raise DataError("it is not an .npz archive, or a damaged one")
        with np.load(path, allow_pickle=False) as file:
            wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
            lacking = [key for key in wanted if key not in file.files]
            if lacking:
                raise DataError(f"it is not MedMNIST's: it lacks {some(lacking, 6)} (it has {some(file.files, 12)})")
            _check_sizes(path, wanted)
            arrays = {key: file[key] for key in wanted}
    except Exception as reason:  # zipfile alone raises OSError, BadZipFile, RuntimeError, NotImplementedError, …
        raise DataError(f"cannot read '{path}': {reason}") from reason
    return {split: _checked(path, split, arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in SPLITS}


def _check_sizes(path: Path, keys: Sequence[str]) -> None:
    """DataError for an archive that unpacks to far more than it is, or arrays whose headers tell of other sizes."""
    with zipfile.ZipFile(path) as archive:
        members = [archive.getinfo(f"{key}.npy") for key in keys]
        check_expansion(path.stat().st_size, sum(member.file_size for member in members))
        for member in members:
            with archive.open(member) as file:
                read_header = read_array_header_1_0 if read_magic(file) == (1, 0) else read_array_header_2_0
                shape, _, dtype = read_header(file)
                size = file.tell() + math.prod(shape) * dtype.itemsize
            if size != member.file_size and not dtype.hasobject:
                raise DataError(f"{member.filename} has {member.file_size:,} bytes, its header tells of {size:,}")


def _checked(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    what = f"'{path}': {split}_images of shape {list(images.shape)} and type {images.dtype}"
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim == 5 or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(f"{what} are volumes; images are [N, H, W] or [N, H, W, 3]")
    if images.ndim not in (3, 4) or images.dtype != np.uint8:
        raise DataError(f"{what} are not uint8 images [N, H, W] or [N, H, W, 3]")
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or len(labels) != len(images) or not labels.shape[1]:
        raise DataError(f"{what} do not go with labels of shape {list(labels.shape)} and type {labels.dtype}")
    return images, labels.astype(np.int64)


def _codes(path: Path, labels: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
    """(float32 [N, K] for each split, whether the classes are exclusive)."""
    widths = {values.shape[1] for values in labels.values()}
    if len(widths) > 1:
        raise DataError(f"'{path}': its splits have {sorted(widths)} label columns")
    values = np.unique(np.concatenate([values.ravel() for values in labels.values()]))
    low, high = (int(values[0]), int(values[-1])) if values.size else (0, 0)
    if low < 0 or (widths != {1} and high > 1) or high > 10_000:
        raise DataError(f"'{path}': labels run from {low} to {high}; classes are 0, 1, … in one column, else 0 and 1")
    if high <= 1:
        return {split: values.astype(np.float32) for split, values in labels.items()}, False
    one_hot = np.eye(high + 1, dtype=np.float32)
    return {split: one_hot[values[:, 0]] for split, values in labels.items()}, True


def _names(path: Path, count: int, exclusive: bool, class_names: Sequence[str] | None) -> tuple[str, ...]:
    if class_names:
        if len(class_names) != count:
            what = "classes" if exclusive or count > 1 else "class (its labels are 0 and 1: name the one that 1 means)"
            raise DataError(f"'{path}' has {count} {what}, DATA.class_names names {len(class_names)}")
        return tuple(class_names)
    return ("positive",) if count == 1 else tuple(f"class_{index}" for index in range(count))


def _identical(images: Mapping[str, np.ndarray]) -> Groups:
    """The rows of each image that stands there more than once."""
    rows: dict[bytes, list[int]] = {}
    for row, image in enumerate(itertools.chain.from_iterable(images[split] for split in SPLITS)):
        rows.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append(row)
    return tuple(tuple(same) for same in rows.values() if len(same) > 1)
