"""Images decoded once, as they are before augmentation: each epoch then begins where decoding would have ended.

A dataset index's reader is replaced by one that gives fitted images (Preprocess.fit), which a Preprocess leaves as they
are. uint8 images come back bit for bit; those that are float32 in [0, 1] (DICOM, 16-bit PNG, volumes) are kept as
uint16, so within half of 1/65535.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from configs.errors import CacheError, DataError
from data.cache.file import RECORD, CacheIndex, DamagedCache, FileBytes, SharedBytes, open_cache_file
from data.cache.stamps import ContentOf, changed_rows
from data.loading.remarks import from_json
from data.readers.regular_files import refuse_link
from data.readers.remarks import remark
from data.readers.volumes import FittedVolume
from data.study import DatasetIndex, Pixels, Reader
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess

logger = logging.getLogger(__name__)

# To be raised with every change of what a file becomes before augmentation: readers, reduced JPEG, intensity, resizing.
DECODING = 2
FOLDER = ".hybridmednet_cache"
# Kind of a record: how its numbers are stored, and the channels of its image.
KINDS = {1: ("u1", 1), 2: ("u1", 3), 3: ("<u2", 1), 4: ("<u2", 3)}
_LOOKED_AT = 64
_LIBRARIES = ("numpy", "pillow", "pydicom", "nibabel", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
_CODECS = ("python-gdcm", "pyjpegls")

AnyPreprocess = Preprocess | VolumePreprocess


class Encoded(NamedTuple):
    """What is kept of one image or volume: its kind, the spacing of its grid in mm (0 of images), its bytes.

    content: uint64 [2], of its files, see data/cache/stamps.py; zeros where that is not asked for.
    """

    kind: int
    spacing: np.ndarray
    pixels: np.ndarray
    content: np.ndarray = np.zeros(2, "<u8")


class EncodedBatch(NamedTuple):
    """A batch of n on its way from a worker: kind uint8 [n], spacing float64 [n, 3], all their bytes, uint8, and
    content int64 [n, 2].

    The bytes are one tensor, as each tensor is an open file of both processes; a kind says how many are an image's.
    """

    kind: Tensor
    spacing: Tensor
    pixels: Tensor
    content: Tensor

    def split(self, size: Sequence[int]) -> list[Encoded]:
        """The single ones. size: of their grid."""
        kinds = self.kind.tolist()
        pixels = torch.split(self.pixels, [stored_bytes(kind, size) for kind in kinds])
        contents = self.content.numpy().view("<u8")
        columns = zip(kinds, self.spacing, pixels, contents)
        return [Encoded(kind, at.numpy(), own.numpy(), content) for kind, at, own, content in columns]


class Encoder:
    """What is kept of images: an InputTransform of data/transforms/input_transform.py.

    with_content: whether files are digested, so that changes of their content can be seen later.
    """

    def __init__(self, preprocess: AnyPreprocess, with_content: bool = False) -> None:
        self.preprocess = preprocess
        self._content_of = ContentOf() if with_content else None

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator | None = None) -> Encoded:
        """The image as training would get it before augmentation."""
        # Before decoding: a file that changes in between has another stamp and another content later.
        content = None if self._content_of is None else self._content_of(dataset_index, index)
        encoded = encode(self.preprocess.fitted(dataset_index, index))
        return encoded if content is None else encoded._replace(content=content)

    def collate(self, values: Sequence[Encoded]) -> EncodedBatch:
        """See EncodedBatch."""
        kinds, spacings, pixels, contents = zip(*values)
        return EncodedBatch(
            torch.tensor(kinds, dtype=torch.uint8),
            torch.from_numpy(np.stack(spacings)),
            torch.from_numpy(np.concatenate(pixels)),
            torch.from_numpy(np.stack(contents).view("<i8")),
        )

    @property
    def most_bytes(self) -> int:
        """Of any image."""
        return int(np.prod(self.preprocess.size)) * self.preprocess.channels * 2


def encode(fitted: np.ndarray | FittedVolume) -> Encoded:
    """A fitted image or volume as it is kept."""
    volume = fitted if isinstance(fitted, FittedVolume) else FittedVolume(fitted, (0.0, 0.0, 0.0))
    pixels = volume.voxels[..., None] if volume is fitted else volume.voxels
    spacing = np.array(volume.spacing_mm, np.float64)
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0.0, 1.0) * np.float32(65535)).astype("<u2")
    form = ("u1" if pixels.dtype == np.uint8 else "<u2", pixels.shape[-1])
    kind = next(k for k, known in KINDS.items() if known == form)
    return Encoded(kind, spacing, np.ascontiguousarray(pixels).view(np.uint8).ravel())


def stored_bytes(kind: int, size: Sequence[int]) -> int:
    """Of an image of this kind."""
    dtype, channels = KINDS[kind]
    return int(np.prod(size)) * channels * np.dtype(dtype).itemsize


class CachedReader(Reader):
    """DatasetIndex.read of a cache: fitted images [H, W, C], uint8 or float32 in [0, 1], or FittedVolumes.

    An image that could not be read when the cache was made raises the DataError that it raised then. Bytes are
    compared with their checksum when a process reads them for the first time. What was remarked of an image then is
    remarked again.
    """

    fitted = True

    def __init__(self, index: CacheIndex, kept: FileBytes | SharedBytes, size: Sequence[int], location: str) -> None:
        self.size, self.location, self._kept = tuple(size), location, kept
        self._fields = {name: index.records[name].copy() for name in ("kind", "offset", "length", "crc", "spacing")}
        self._unreadable: dict[str, str] = index.about["unreadable"]
        self._remarks = from_json(index.about.get("remarks", {}), len(index.records))
        self._checked = np.zeros(len(index.records), bool)

    def __call__(self, index: int) -> Pixels:
        kind, offset, length = (int(self._fields[name][index]) for name in ("kind", "offset", "length"))
        if kind == 0:
            raise DataError(self._unreadable[str(index)])
        stored = self._kept(offset, length)
        if not self._checked[index]:
            if zlib.crc32(stored.data) != self._fields["crc"][index]:
                raise CacheError(f"{self.location} is damaged at its image {index}: delete it, and it is rebuilt")
            self._checked[index] = True
        for known in self._remarks.get(index, ()):
            remark(*known)
        return self._decoded(index, stored, *KINDS[kind])

    def _decoded(self, index: int, stored: np.ndarray, dtype: str, channels: int) -> np.ndarray | FittedVolume:
        pixels = stored.view(dtype).reshape(*self.size, channels)
        if dtype == "u1":
            return pixels if stored.flags.owndata else pixels.copy()
        unit = pixels.astype(np.float32)
        unit /= np.float32(65535)
        if len(self.size) == 2:
            return unit
        return FittedVolume(unit[..., 0], tuple(self._fields["spacing"][index].tolist()))


@dataclass(frozen=True)
class Recipe:
    """What decides a cache's content, the files apart.

    settings: of the decoding. size: of the grid, which is one of them. libraries: name → version of what decodes.
    names: of the images, in their order. source: the folder or file that they are from.
    """

    settings: dict[str, object]
    size: Sequence[int]
    libraries: dict[str, str]
    names: tuple[str, ...]
    source: Path

    @classmethod
    def of(cls, dataset_index: DatasetIndex, preprocess: AnyPreprocess, source: Path) -> Recipe:
        """How `preprocess` fits the images of a dataset index."""
        fitting = {key: value for key, value in preprocess.as_dict().items() if key not in ("mean", "std")}
        names = tuple(study.name for study in dataset_index.studies)
        return cls({"decoding": DECODING, **fitting}, preprocess.size, _libraries(), names, source.resolve())

    def file_name(self) -> str:
        """One for each source, list of images and setting, so that a changed file replaces its old cache."""
        text = json.dumps([self.settings, self.names, str(self.source)], sort_keys=True)
        return f"{'x'.join(map(str, self.size))}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cache"


def _libraries() -> dict[str, str]:
    found = {"opencv": cv2.__version__}
    for name in (*_LIBRARIES, *_CODECS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def cache_folder(cache_dir: str | None, data_dir: Path) -> Path:
    """DATA.cache_dir, or a hidden folder in data_dir, beside it where that is a file.

    Raises DataError where the hidden folder is a link that leaves data_dir.
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    inside = data_dir if data_dir.is_dir() else data_dir.parent
    return refuse_link(inside, inside / FOLDER)


def find(
    path: Path, recipe: Recipe, dataset_index: DatasetIndex, now: np.ndarray, by_content: bool = False
) -> tuple[CacheIndex, FileBytes] | None:
    """The cache at `path` if it is whole and of the dataset index's files; else says why not.

    now: the files' `stamps`. by_content: see `changed_rows`.
    """
    try:
        index, kept = open_cache_file(path, len(now))
        _check(index, recipe.size)
        _check_some(index, kept)
    except FileNotFoundError:
        return None
    except (DamagedCache, DataError, OSError) as reason:
        logger.warning("the cache '%s' is damaged and is rebuilt: %s", path, reason)
        return None
    why = _of_another_recipe(index, recipe)
    if not why:
        changed = len(changed_rows(dataset_index, index.records, now, path, kept.footer, by_content))
        why = f"the files of {changed:,} of {len(now):,} images have changed" if changed else ""
    if why:
        logger.info("the cache '%s' is rebuilt: %s", path, why)
        return None
    return index, kept


def _of_another_recipe(index: CacheIndex, recipe: Recipe) -> str:
    """Why a whole cache is not the one that is wanted, its files apart; '' where it is."""
    old, new = index.about.get("libraries"), recipe.libraries
    if index.about.get("settings") != recipe.settings:
        return "it is of other settings"
    if old != new:
        both = {name: (dict(old or {}).get(name, "none"), version) for name, version in new.items()}
        return "by " + ", ".join(f"{name} {one} → {other}" for name, (one, other) in both.items() if one != other)
    return ""


def _check(index: CacheIndex, size: Sequence[int]) -> None:
    """DamagedCache unless it has what a CachedReader takes from it."""
    kinds, lengths = index.records["kind"], index.records["length"]
    wanted = np.array([0, *(stored_bytes(kind, size) for kind in KINDS)], np.uint64)
    if (kinds >= len(wanted)).any() or (lengths != wanted[kinds]).any():
        raise DamagedCache("its index names images of no kind that is kept")
    reasons = index.about.get("unreadable") if isinstance(index.about, dict) else None
    if not isinstance(reasons, dict) or {str(row) for row in np.flatnonzero(kinds == 0)} != set(reasons):
        raise DamagedCache("it does not say why images are missing")
    try:
        from_json(index.about.get("remarks"), len(index.records))
    except ValueError as reason:
        raise DamagedCache(str(reason)) from None


def _check_some(index: CacheIndex, kept: Callable[[int, int], np.ndarray]) -> None:
    """DamagedCache unless some images, the first and the last among them, have the checksums they should have."""
    rows = np.flatnonzero(index.records["kind"])
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(int))] if len(rows) else ():
        record = index.records[row]
        stored = kept(int(record["offset"]), int(record["length"]))
        if zlib.crc32(stored.data) != record["crc"]:
            raise DamagedCache(f"its image {row} has another checksum")


def with_reader(dataset_index: DatasetIndex, reader: CachedReader) -> DatasetIndex:
    """The same dataset index, read from a cache."""
    return replace(dataset_index, read=reader)


def empty_records(rows: int) -> np.ndarray:
    """RECORD [rows], all unreadable."""
    return np.zeros(rows, RECORD)
