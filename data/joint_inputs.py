"""One decoded image as the inputs of several models, each by its own preprocessing, with its traits beside them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from configs.errors import DataError
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.loading.worker_watch import WorkerFailures
from data.profile import measure
from data.readers.images import to_uint8
from data.readers.volumes import Volume
from data.study import DatasetIndex
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess, apply_window, regrid

logger = logging.getLogger(__name__)

_MAX_DISPLAYED = 5


class JointPreprocess:
    """Takes the place of a preprocessing in a ImageDataset: a file is read once, however many models are asked.

    images → float32 [n]: all inputs and the traits of data/profile.py, flat one after another; `split` undoes it.
    Raises DataError for models of images and of volumes together.
    """

    augmentation = None

    def __init__(self, preprocesses: Sequence[Preprocess | VolumePreprocess]) -> None:
        self.preprocesses = tuple(preprocesses)
        if len({len(p.size) for p in self.preprocesses}) > 1:
            raise DataError("some of the models are for images and some for volumes: ask them one by one")
        self.shapes = [(p.channels, *p.size) for p in self.preprocesses]

    def read(self, dataset_index: DatasetIndex, index: int) -> list[Any]:
        """The image or volume in full, then as each of the models takes it."""
        full: Any = dataset_index.read(index)
        return [full, *(preprocess.read(dataset_index, index, full) for preprocess in self.preprocesses)]

    def __call__(self, images: list[Any], rng: np.random.Generator | None = None) -> np.ndarray:
        full, *own = images
        inputs = [preprocess(image) for preprocess, image in zip(self.preprocesses, own)]
        return np.concatenate([*(one.ravel() for one in inputs), measure(full)])

    def split(self, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """[B, n] → (an input [B, C, *spatial] for each preprocessing, traits [B, T])."""
        sizes = [math.prod(shape) for shape in self.shapes]
        *inputs, traits = batch.split([*sizes, batch.shape[1] - sum(sizes)], dim=1)
        return [one.reshape(len(batch), *shape) for one, shape in zip(inputs, self.shapes)], traits

    @property
    def modes(self) -> list[str]:
        """How images are resized for each input: see data.transforms.images.resize."""
        return [p.resize_mode for p in self.preprocesses if isinstance(p, Preprocess)]

    def display_image(self, image: np.ndarray | Volume) -> tuple[np.ndarray, dict[str, Any]]:
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
) -> ImageLoader:
    """The loader of all images of a dataset index without classes, in their order. Raises DataError for other
    numbers.
    """
    if batch_size < 1 or num_workers < 0:
        raise DataError(f"--batch-size {batch_size} must be at least 1, --num-workers {num_workers} at least 0")
    count = len(dataset_index.studies)
    none = Labels(np.empty((count, 0), np.float32), np.empty((count, 0), bool))
    dataset = ImageDataset(dataset_index, joint, seed=0)  # type: ignore[arg-type]
    batches = EpochBatchSampler(np.arange(count), batch_size, False, 0)
    failures = WorkerFailures(limit=3, timeout=300.0)
    return ImageLoader(dataset, none, batches, unread, num_workers, pin_memory, failures)
