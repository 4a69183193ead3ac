"""One decoded image as the inputs of several models, each by its own preprocessing, with its traits beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from configs.errors import DataError
from data.loading.loaders import EpochBatchSampler, ImageDataset, StudyLoader, UnreadableImages
from data.loading.studies import EncodedTable, ReadStudy, StudyDataset, inputs_of, read_whole
from data.loading.worker_watch import WorkerFailures
from data.profile import Traits, measure
from data.readers.images import to_uint8
from data.readers.volumes import Volume
from data.study import DatasetIndex, Pixels
from data.table_encoding import TableEncoding
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess, apply_window, regrid
from utils.batch import Inputs

logger = logging.getLogger(__name__)

_MAX_DISPLAYED = 5


class JointStudy(NamedTuple):
    """One study: its image [C, *spatial] for each preprocessing, and its traits."""

    images: tuple[Tensor, ...]
    traits: Traits


class JointInputs(NamedTuple):
    """A batch of B: the inputs of each preprocessing, and the traits of each study."""

    inputs: tuple[Inputs, ...]
    traits: list[Traits]


class DisplayOptions(TypedDict, total=False):
    """What a heatmap's drawing is told beside the image. spacing: of a volume's grid, in mm."""

    spacing: tuple[float, ...]


class JointPreprocess:
    """The inputs of several models and the traits of data/profile.py: a file is read once, however many are asked.

    An InputTransform of data/transforms. Raises DataError for models of images and of volumes together.
    """

    def __init__(self, preprocesses: Sequence[Preprocess | VolumePreprocess]) -> None:
        self.preprocesses = tuple(preprocesses)
        if len({len(p.size) for p in self.preprocesses}) > 1:
            raise DataError("some of the models are for images and some for volumes: ask them one by one")

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator | None = None) -> JointStudy:
        """Read in full, then as each of the models takes it."""
        full = dataset_index.read(index)
        images = tuple(preprocess.apply(dataset_index, index, rng, full).image for preprocess in self.preprocesses)
        return JointStudy(images, measure(full))

    def collate(self, values: Sequence[JointStudy]) -> JointInputs:
        """See JointInputs."""
        images = zip(*(value.images for value in values))
        return JointInputs(
            tuple(Inputs.of_images(torch.stack(of_one)) for of_one in images), [value.traits for value in values]
        )

    def no_images(self) -> tuple[Tensor, ...]:
        """[0, C, *spatial] for each preprocessing."""
        return tuple(preprocess.no_images().inputs.image for preprocess in self.preprocesses)

    @property
    def modes(self) -> list[str]:
        """How images are resized for each input: see data.transforms.images.resize."""
        return [p.resize_mode for p in self.preprocesses if isinstance(p, Preprocess)]

    def display_image(self, image: Pixels) -> tuple[np.ndarray, DisplayOptions]:
        """(what a heatmap is laid over, what is to be said of it).

        Images: uint8 [H, W] or [H, W, 3], as they are. Volumes: [D, H, W] in [0, 1] on the first model's grid, and
        the `spacing` of that in mm.
        """
        first = self.preprocesses[0]
        if isinstance(first, VolumePreprocess):
            assert isinstance(image, Volume)
            windowed = apply_window(image.voxels, first.window)
            voxels, spacing = regrid(windowed, first.size, image.spacing_mm, first.spacing_mm)
            return voxels, {"spacing": spacing}
        assert isinstance(image, np.ndarray)
        return to_uint8(image), {}


class JointStudies(NamedTuple):
    """A batch of B studies: the inputs for each model, and the traits of each study's images that could be read."""

    inputs: tuple[Inputs, ...]
    traits: list[tuple[Traits, ...]]


class JointStudyTransform:
    """The inputs of several models of studies: a StudyTransform of data/loading/studies.py.

    models: for each the number of its preprocessing among those of `joint`, and which of the table's columns are its.
    """

    def __init__(self, joint: JointPreprocess, models: Sequence[tuple[int, slice]]) -> None:
        self.image_transform, self.models = joint, tuple(models)

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> ReadStudy:
        """See `read_whole`."""
        return read_whole(self.image_transform, dataset_index, index, rng)

    def collate(self, values: Sequence[ReadStudy]) -> JointStudies:
        """See JointStudies."""
        read: list[JointStudy] = [image for value in values for image in value.images]
        columns = zip(*(one.images for one in read)) if read else ()
        images = tuple(torch.stack(column) for column in columns) or self.image_transform.no_images()
        table, known = (np.stack(rows) for rows in zip(*((value.table, value.table_mask) for value in values)))
        inputs = tuple(inputs_of(images[number], values, table[:, own], known[:, own]) for number, own in self.models)
        return JointStudies(inputs, [tuple(image.traits for image in value.images) for value in values])


class UnreadableInputs(UnreadableImages):
    """Any number of unreadable files; the first few are said, all are kept in `reasons`. silent: nothing is said."""

    def __init__(self, silent: bool = False) -> None:
        super().__init__(0)
        self.silent = silent

    def add(self, index: int, reason: str) -> None:
        if index in self.reasons:
            return
        self.reasons[index] = reason
        if len(self.reasons) <= _MAX_DISPLAYED and not self.silent:
            logger.warning(
                "%s%s", reason, "; further ones stand in the results only" * (len(self.reasons) == _MAX_DISPLAYED)
            )

    def end_epoch(self) -> None:
        if not self.silent:
            super().end_epoch()


def unlabelled_loader(
    dataset_index: DatasetIndex,
    joint: JointPreprocess,
    unread: UnreadableInputs,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    rows: Sequence[int] | None = None,
) -> StudyLoader[JointInputs]:
    """The loader of images of a dataset index without classes, of all or of some rows, in their order. Raises DataError
    for other numbers.
    """
    dataset = ImageDataset(dataset_index, joint, seed=0)
    batches, failures = _in_order(dataset_index, batch_size, num_workers, rows)
    return StudyLoader(dataset, batches, unread, num_workers, pin_memory, failures)


def unlabelled_study_loader(
    dataset_index: DatasetIndex,
    joint: JointPreprocess,
    models: Sequence[tuple[int, TableEncoding | None]],
    unread: UnreadableInputs,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
    rows: Sequence[int] | None = None,
) -> StudyLoader[JointStudies]:
    """The loader of all studies, in their order; of those of which nothing is known there is no row.

    models: for each the number of its preprocessing among those of `joint`, and the encoding of its table. `unread` has
    rows of the image index. Raises DataError for other numbers, and for data that lack a model's columns.
    """
    parts, slices, width = [], [], 0
    for number, encoding in models:
        part = EncodedTable.of(encoding, dataset_index)
        parts.append(part)
        slices.append((number, slice(width, width := width + part.values.shape[1])))
    table = EncodedTable(np.hstack([one.values for one in parts]), np.hstack([one.known for one in parts]))
    dataset = StudyDataset(dataset_index, JointStudyTransform(joint, slices), 0, table)
    batches, failures = _in_order(dataset_index, batch_size, num_workers, rows)
    return StudyLoader(dataset, batches, unread, num_workers, pin_memory, failures)


def _in_order(
    dataset_index: DatasetIndex, batch_size: int, num_workers: int, rows: Sequence[int] | None
) -> tuple[EpochBatchSampler, WorkerFailures]:
    if batch_size < 1 or num_workers < 0:
        raise DataError(f"--batch-size {batch_size} must be at least 1, --num-workers {num_workers} at least 0")
    batches = EpochBatchSampler(range(len(dataset_index.studies)) if rows is None else rows, batch_size, False, 0)
    return batches, WorkerFailures(limit=3, timeout=300.0)
