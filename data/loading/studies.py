"""Studies of several images and a table: read image by image, so that what is missing is masked and nothing else.

All that is random is a function of (seed, epoch, study, view): the same with any number of workers, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from configs.errors import CacheError, DataError
from data.loading.loaders import Failure, ImageDataset, Item
from data.readers.remarks import Remark, collecting
from data.study import DatasetIndex, StudyImages
from data.table_encoding import TableEncoding
from data.transforms.images import sample_rng
from data.transforms.input_transform import ImageTransform, InputTransform, ReadBatch, of_studies
from utils.batch import DeviceTransform, Inputs

Collated = TypeVar("Collated", covariant=True)
# Any: what is made of an image, and of several, is known to the transform alone.
AnyImageTransform = InputTransform[Any, Any]


@dataclass(frozen=True)
class EncodedTable:
    """What a network is given of N studies. values: float32 [N, F], 0 where unknown. known: bool [N, F]."""

    values: np.ndarray
    known: np.ndarray

    @classmethod
    def none(cls, studies: int) -> EncodedTable:
        """Without columns."""
        return cls(np.zeros((studies, 0), np.float32), np.zeros((studies, 0), bool))

    @classmethod
    def of(cls, encoding: TableEncoding | None, dataset_index: DatasetIndex) -> EncodedTable:
        """The table of all studies. Raises DataError where the data have no such table."""
        if encoding is None:
            return cls.none(len(dataset_index.studies))
        if dataset_index.table is None:
            raise DataError(f"the model was trained with a table ({', '.join(encoding.kinds)}), the data have none")
        return cls(*encoding.encode(dataset_index.table))


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

    images: tuple[Any, ...]  # what the image transform makes, which alone knows it
    view_mask: np.ndarray
    view_kind: np.ndarray
    table: np.ndarray
    table_mask: np.ndarray


class StudyTransform(Protocol[Collated]):
    """What `StudyDataset` reads images with, and what makes a batch of the studies that it read: an InputTransform,
    of which the dataset takes the place of `apply`.
    """

    @property
    def image_transform(self) -> AnyImageTransform: ...

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> ReadStudy: ...

    def collate(self, values: Sequence[ReadStudy]) -> Collated: ...


class StudyInputs:
    """A StudyTransform for one model, its images made by an ImageTransform."""

    def __init__(self, image_transform: ImageTransform) -> None:
        self.image_transform = image_transform

    @property
    def device_transform(self) -> DeviceTransform | None:
        return self.image_transform.device_transform

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> ReadStudy:
        """See `read_whole`."""
        return read_whole(self.image_transform, dataset_index, index, rng)

    def collate(self, values: Sequence[ReadStudy]) -> ReadBatch:
        """Images study after study; V is the largest number of views of a study, whether they are there or not."""
        images = [image for value in values for image in value.images]
        together = self.image_transform.collate(images) if images else self.image_transform.no_images()
        table, known = (np.stack(rows) for rows in zip(*((value.table, value.table_mask) for value in values)))
        return ReadBatch(
            inputs_of(together.inputs.image, values, table, known),
            together.augmentation_params,
            of_studies(together.guidance, [len(value.images) for value in values]),
        )


def read_whole(
    transform: AnyImageTransform, dataset_index: DatasetIndex, index: int, rng: np.random.Generator
) -> ReadStudy:
    """A study without dropout and without its table; raises DataError where one of its images cannot be read."""
    images, nothing = _images_of(dataset_index), EncodedTable.none(1)
    read = tuple(transform.apply(images.index, row, rng) for row in images.rows[index])
    kinds = np.array(images.kinds[index], np.int64)
    return ReadStudy(read, np.ones(len(read), bool), kinds, nothing.values[0], nothing.known[0])


def inputs_of(image: Tensor, values: Sequence[ReadStudy], table: np.ndarray, known: np.ndarray) -> Inputs:
    """The inputs of B read studies. image: [M, …], theirs, study after study. table, known: [B, F]."""
    most = max(1, *(len(value.view_mask) for value in values))
    return Inputs(
        image,
        _padded([value.view_mask for value in values], most),
        _padded([value.view_kind for value in values], most),
        torch.from_numpy(np.ascontiguousarray(table)),
        torch.from_numpy(np.ascontiguousarray(known)),
    )


def _padded(rows: Sequence[np.ndarray], length: int) -> Tensor:
    """[B, length], False or 0 behind each row."""
    padded = np.zeros((len(rows), length), rows[0].dtype)
    for row, values in zip(padded, rows):
        row[: len(values)] = values
    return torch.from_numpy(padded)


def _images_of(dataset_index: DatasetIndex) -> StudyImages:
    assert dataset_index.images is not None, "a dataset index of studies"
    return dataset_index.images


# Any: as in TransformTo.
Together = TypeVar("Together", bound=StudyTransform[Any], covariant=True)


class StudyDataset(ImageDataset[Together]):
    """dataset[(epoch, index)] → Item of a ReadStudy.

    An image that cannot be read is a view that is missing; a study without any image that can be read and without a
    known column is left out. table: of all studies of the dataset index. dropout: of training.
    """

    def __init__(
        self,
        dataset_index: DatasetIndex,
        transform: Together,
        seed: int,
        table: EncodedTable | None = None,
        dropout: StudyDropout = NO_DROPOUT,
    ) -> None:
        super().__init__(dataset_index, transform, seed)
        self.table = EncodedTable.none(len(dataset_index.studies)) if table is None else table
        self.dropout = dropout

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        images = _images_of(self.dataset_index)
        rows = images.rows[index]
        kept, without_table = self.dropout.draw(view_rng(self.seed, epoch, index, None), len(rows))
        reading = _Reading(images.index, self.transform.image_transform)
        for view in np.flatnonzero(kept).tolist():
            if reading.fatal:
                break
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

    def __init__(self, image_index: DatasetIndex, transform: AnyImageTransform) -> None:
        self._index, self._transform = image_index, transform
        self.images: dict[int, object] = {}
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
