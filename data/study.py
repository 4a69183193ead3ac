"""What the data folder agrees on: one record a study, and the dataset index that a labels source becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from configs.errors import DataError
from configs.study_consistency import OTHER
from data.clinical_table import ClinicalTable
from data.readers.volumes import FittedVolume, Volume

SPLITS = ("train", "val", "test")

# What is read of an image, [H, W] or [H, W, C], or of a volume, or of one from a cache.
Pixels = np.ndarray | Volume | FittedVolume


# The kind of view of a study that has one image, whichever projection it shows.
IMAGE = "image"


@dataclass(frozen=True)
class Study:
    """What belongs to one prediction: images and what is known about them.

    name: its identity, which split.csv, boxes, caches, predictions and errors show; unique within a source.
    views: kind of view → where its file is: a path relative to data_dir, or 'train[17]' of an .npz; a second one of a
    kind is 'lateral 2'.
    labels: float32 [num_classes]; 1 present, 0 absent, -1 uncertain, NaN unknown. Multi-class: one-hot.
    patient_id: '' where the source names none; such a study is a patient of its own.
    split: 'train', 'val', 'test', or None where the source does not say.
    table: what else the source says ('view', 'age', 'sex', any further column), as strings.
    line: of the table that names it, for messages; 0: none does.
    """

    name: str
    views: Mapping[str, str]
    labels: np.ndarray
    patient_id: str = ""
    split: str | None = None
    table: Mapping[str, str] = field(default_factory=dict)
    line: int = 0

    @property
    def file(self) -> str:
        """Where its one view is; DataError where it has another number of them."""
        if len(self.views) != 1:
            raise DataError(f"study '{self.name}' has {len(self.views)} images, where one is looked at")
        (file,) = self.views.values()
        return file

    @property
    def group(self) -> str:
        """What must stay within one split: the patient, or the study itself where no patient is named."""
        return self.patient_id or f"image:{self.name}"  # drawn splits depend on this text


class Reader:
    """What a source makes of a row: reader(index) is `DatasetIndex.read`; the rest says more of it where a source
    can.
    """

    fitted = False  # whether its images are what a preprocessing made of others, which were judged then

    def __call__(self, index: int) -> Pixels:
        raise NotImplementedError

    def reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """The image decoded at a smaller scale, at least (height, width); None: only the full one is available."""
        return None

    def files(self, index: int) -> Sequence[Path]:
        """The files it is read from, so that a cache can detect changes; none: unknown."""
        return ()


@dataclass(frozen=True)
class DatasetIndex:
    """Every image or volume of a source, its classes, and how one is read.

    read(index) -> uint8 or uint16 or float32 array [H, W] or [H, W, 3], DICOM already windowed to [0, 1]; or a Volume.
    Raises DataError naming the image or volume if it cannot be decoded. A Reader can do more.
    exclusive: exactly one class per image (folders, multi-class .npz).
    notes: counted warnings met on the way, each a sentence.
    identical: rows whose images are the same, byte for byte, a tuple for each content; () where nobody looked.
    images: the images of the studies, where these may have several, or a table; None: each study is one image.
    table: what a network is given of the studies beside their images; None: nothing.
    """

    class_names: tuple[str, ...]
    studies: tuple[Study, ...]
    read: Reader | Callable[[int], Pixels]
    exclusive: bool = False
    notes: tuple[str, ...] = ()
    identical: tuple[tuple[int, ...], ...] = ()
    images: StudyImages | None = None
    table: ClinicalTable | None = None

    @property
    def image_index(self) -> DatasetIndex:
        """A row an image: itself, where each study is one."""
        return self if self.images is None else self.images.index

    def image_rows(self, studies: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of `image_index`, int64, of the images of some studies, study after study."""
        if self.images is None:
            return np.asarray(studies, np.int64)
        return np.array([row for study in studies for row in self.images.rows[study]], np.int64)

    def with_image_index(self, image_index: DatasetIndex) -> DatasetIndex:
        """The same studies, their images read from elsewhere, such as a cache."""
        if self.images is None:
            return image_index
        images = replace(self.images, index=image_index)
        return replace(self, images=images, read=StudyReader(images))

    def read_reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """`Reader.reduced`, None where `read` is no Reader."""
        return self.read.reduced(index, least) if isinstance(self.read, Reader) else None

    def files(self, index: int) -> Sequence[Path]:
        """`Reader.files`, none where `read` is no Reader."""
        return self.read.files(index) if isinstance(self.read, Reader) else ()

    @property
    def fitted(self) -> bool:
        """`Reader.fitted`, False where `read` is no Reader."""
        return isinstance(self.read, Reader) and self.read.fitted

    def label_matrix(self) -> np.ndarray:
        """float32 [num_studies, num_classes] with the codes of Study.labels."""
        if not self.studies:
            return np.empty((0, len(self.class_names)), np.float32)
        return np.stack([study.labels for study in self.studies])


@dataclass(frozen=True)
class StudyImages:
    """The images of studies that may have several.

    index: a row an image; its studies are single images, called by their files. rows: of each study, its rows there.
    kinds: what kind of view each of them is, as a position in view_kinds. values: kind → values of the column view.
    """

    index: DatasetIndex
    rows: tuple[tuple[int, ...], ...]
    kinds: tuple[tuple[int, ...], ...]
    values: Mapping[str, Sequence[str]]

    @property
    def view_kinds(self) -> tuple[str, ...]:
        """All kinds, the last of which is that of all other values."""
        return (*self.values, OTHER)


class StudyReader(Reader):
    """DatasetIndex.read of studies: of one image as that is read; DataError where there are several or none."""

    def __init__(self, images: StudyImages) -> None:
        self.images, self.fitted = images, images.index.fitted

    def __call__(self, index: int) -> Pixels:
        return self.images.index.read(self._only(index))

    def reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """See `Reader.reduced`."""
        return self.images.index.read_reduced(self._only(index), least)

    def files(self, index: int) -> Sequence[Path]:
        """Of all its images."""
        return tuple(chain.from_iterable(self.images.index.files(row) for row in self.images.rows[index]))

    def _only(self, index: int) -> int:
        rows = self.images.rows[index]
        if len(rows) != 1:
            raise DataError(f"row {index} is a study of {len(rows)} images, where one is looked at")
        return rows[0]


@dataclass(frozen=True)
class SelectedRows(Reader):
    """DatasetIndex.read of some rows of a dataset index."""

    whole: DatasetIndex
    rows: tuple[int, ...]

    def __call__(self, index: int) -> Pixels:
        return self.whole.read(self.rows[index])

    def reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """See `Reader.reduced`."""
        return self.whole.read_reduced(self.rows[index], least)

    def files(self, index: int) -> Sequence[Path]:
        """See `Reader.files`."""
        return self.whole.files(self.rows[index])


def selected(dataset_index: DatasetIndex, rows: Sequence[int]) -> DatasetIndex:
    """Some rows of a dataset index of single images; itself where they are all."""
    assert dataset_index.images is None, "of images"
    if list(rows) == list(range(len(dataset_index.studies))):
        return dataset_index
    at = {row: number for number, row in enumerate(rows)}
    groups = (tuple(at[row] for row in group if row in at) for group in dataset_index.identical)
    return replace(
        dataset_index,
        studies=tuple(dataset_index.studies[row] for row in rows),
        read=SelectedRows(dataset_index, tuple(rows)),
        identical=tuple(group for group in groups if len(group) > 1),
    )
