"""Studies of several images and a table: read image by image, so that what is missing is masked and nothing else.

All that is random is a function of (seed, epoch, study, view): the same with any number of workers, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs.errors import CacheError, DataError
from data.loading.loaders import Failure, ImageDataset, Item
from data.readers.remarks import Remark, collecting
from data.study import DatasetIndex, StudyImages
from data.transforms.images import sample_rng
from data.transforms.input_transform import ImageTransform, ReadBatch, ReadImage
from utils.batch import DeviceTransform, Inputs


@dataclass(frozen=True)
class EncodedTable:
    """What a network is given of N studies. values: float32 [N, F], 0 where unknown. known: bool [N, F]."""

    values: np.ndarray
    known: np.ndarray

    @classmethod
    def none(cls, studies: int) -> EncodedTable:
        """Without columns."""
        return cls(np.zeros((studies, 0), np.float32), np.zeros((studies, 0), bool))


@dataclass(frozen=True)
class StudyDropout:
    """What training withholds, so that a network can do without it. views: probability for each view but the last that
    is left; table: for all columns of a study together.
    """

    views: float = 0.0
    table: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("views", self.views), ("table", self.table)):
            if not 0 <= value < 1:
                raise ValueError(f"dropout of {name} must be at least 0 and less than 1, got {value}")

    def draw(self, rng: np.random.Generator, views: int) -> tuple[np.ndarray, bool]:
        """(bool [views], which are read: one at least; whether the table is withheld). Draws views + 2 numbers."""
        kept = rng.random(views) >= self.views
        one, table = rng.random(2)
        if views and not kept.any():
            kept[int(one * views)] = True
        return kept, bool(table < self.table)


NO_DROPOUT = StudyDropout()


class ReadStudy(NamedTuple):
    """A study: the images of the views that are there, in their order; which these are, bool [v], and of what kind,
    int64 [v]; its row of the table and what of it is known, [F].
    """

    images: tuple[ReadImage, ...]
    view_mask: np.ndarray
    view_kind: np.ndarray
    table: np.ndarray
    table_mask: np.ndarray


class StudyTransform:
    """Puts read studies together, their images as an ImageTransform does: the second half of an InputTransform.

    The first is `StudyDataset`, which reads image by image. Attributes: those of the ImageTransform.
    """

    def __init__(self, image_transform: ImageTransform) -> None:
        self.image_transform = image_transform

    @property
    def device_transform(self) -> DeviceTransform | None:
        return self.image_transform.device_transform

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> ReadStudy:
        """A study without dropout and without its table; raises DataError where one of its images cannot be read."""
        images = _images_of(dataset_index)
        read = tuple(self.image_transform.apply(images.index, row, rng) for row in images.rows[index])
        nothing = EncodedTable.none(1)
        kinds = np.array(images.kinds[index], np.int64)
        return ReadStudy(read, np.ones(len(read), bool), kinds, nothing.values[0], nothing.known[0])

    def collate(self, values: Sequence[ReadStudy]) -> ReadBatch:
        """Images study after study; V is the largest number of views of a study, whether they are there or not."""
        images = [image for value in values for image in value.images]
        together = self.image_transform.collate(images) if images else self.image_transform.no_images()
        most = max(1, *(len(value.view_mask) for value in values))
        inputs = Inputs(
            together.inputs.image,
            _padded([value.view_mask for value in values], most),
            _padded([value.view_kind for value in values], most),
            torch.from_numpy(np.stack([value.table for value in values])),
            torch.from_numpy(np.stack([value.table_mask for value in values])),
        )
        return ReadBatch(inputs, together.augmentation_params)

    def no_images(self) -> ReadBatch:
        """See ImageTransform."""
        return self.image_transform.no_images()


def _padded(rows: Sequence[np.ndarray], length: int) -> Tensor:
    """[B, length], False or 0 behind each row."""
    padded = np.zeros((len(rows), length), rows[0].dtype)
    for row, values in zip(padded, rows):
        row[: len(values)] = values
    return torch.from_numpy(padded)


def _images_of(dataset_index: DatasetIndex) -> StudyImages:
    assert dataset_index.images is not None, "a dataset index of studies"
    return dataset_index.images


class StudyDataset(ImageDataset[StudyTransform]):
    """dataset[(epoch, index)] → Item of a ReadStudy.

    An image that cannot be read is a view that is missing; a study without any image that can be read and without a
    known column is left out. table: of all studies of the dataset index. dropout: of training.
    """

    def __init__(
        self,
        dataset_index: DatasetIndex,
        image_transform: ImageTransform,
        seed: int,
        table: EncodedTable | None = None,
        dropout: StudyDropout = NO_DROPOUT,
    ) -> None:
        super().__init__(dataset_index, StudyTransform(image_transform), seed)
        self.table = EncodedTable.none(len(dataset_index.studies)) if table is None else table
        self.dropout = dropout

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        images = _images_of(self.dataset_index)
        rows = images.rows[index]
        kept, without_table = self.dropout.draw(view_rng(self.seed, epoch, index, None), len(rows))
        reading = _Reading(images.index, self.transform.image_transform)
        for view in np.flatnonzero(kept).tolist():
            reading.read(view, rows[view], view_rng(self.seed, epoch, index, view))
        for view in np.flatnonzero(~kept).tolist():
            if reading.images or reading.fatal:
                break  # else what was to be read cannot be
            reading.read(view, rows[view], view_rng(self.seed, epoch, index, view))
        values, known = self.table.values[index], self.table.known[index]
        if reading.fatal or not (reading.images or known.any()):
            return Item(index, None, tuple(reading.failures), tuple(reading.remarks), reading.fatal)
        if without_table and reading.images:
            values, known = np.zeros_like(values), np.zeros_like(known)
        mask = np.array([view in reading.images for view in range(len(rows))], bool)
        read = tuple(image for _, image in sorted(reading.images.items()))
        study = ReadStudy(read, mask, np.array(images.kinds[index], np.int64), values, known)
        return Item(index, study, tuple(reading.failures), tuple(reading.remarks))


def view_rng(seed: int, epoch: int, study: int, view: int | None) -> np.random.Generator:
    """The generator of one view of a study in one epoch; view None: of what is withheld of the study.

    The first view's is that of a study of one image, `sample_rng`, so that such studies are augmented as ever.
    """
    if view == 0:
        return sample_rng(seed, epoch, study)
    key = (epoch, study, 0 if view is None else view)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class _Reading:
    """What could be read of a study: view → image; and what is to be said of its rows of the image index."""

    def __init__(self, image_index: DatasetIndex, transform: ImageTransform) -> None:
        self._index, self._transform = image_index, transform
        self.images: dict[int, ReadImage] = {}
        self.failures: list[Failure] = []
        self.remarks: list[tuple[int, tuple[Remark, ...]]] = []
        self.fatal = False

    def read(self, view: int, row: int, rng: np.random.Generator) -> None:
        with collecting() as found:
            try:
                self.images[view] = self._transform.apply(self._index, row, rng)
            except DataError as error:
                self.failures.append((row, str(error)))
                self.fatal = self.fatal or isinstance(error, CacheError)
                return
        if found:
            self.remarks.append((row, tuple(found.values())))
