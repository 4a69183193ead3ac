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
from data.loading.worker_watch import WorkerFailures
from data.profile import Traits, measure
from data.readers.images import to_uint8
from data.readers.volumes import Volume
from data.study import DatasetIndex, Pixels
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


class UnreadableInputs(UnreadableImages):
    """Any number of unreadable files; the first few are said, all are kept in `reasons`."""

    def __init__(self) -> None:
        super().__init__(0)

    def add(self, index: int, reason: str) -> None:
        if index in self.reasons:
            return
        self.reasons[index] = reason
        if len(self.reasons) <= _MAX_DISPLAYED:
            logger.warning(
                "%s%s", reason, "; further ones stand in the results only" * (len(self.reasons) == _MAX_DISPLAYED)
            )


def unlabelled_loader(
    dataset_index: DatasetIndex,
    joint: JointPreprocess,
    unread: UnreadableInputs,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
) -> StudyLoader[JointInputs]:
    """The loader of all images of a dataset index without classes, in their order. Raises DataError for other
    numbers.
    """
    if batch_size < 1 or num_workers < 0:
        raise DataError(f"--batch-size {batch_size} must be at least 1, --num-workers {num_workers} at least 0")
    batches = EpochBatchSampler(np.arange(len(dataset_index.studies)), batch_size, False, 0)
    failures = WorkerFailures(limit=3, timeout=300.0)
    return StudyLoader(ImageDataset(dataset_index, joint, seed=0), batches, unread, num_workers, pin_memory, failures)
