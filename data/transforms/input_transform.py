"""What a loader's worker makes of one study, and of a batch of them: the contract, and the form a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.study import DatasetIndex
from utils.batch import DeviceTransform, Inputs

Value = TypeVar("Value")
Collated = TypeVar("Collated", covariant=True)


class InputTransform(Protocol[Value, Collated]):
    """Two functions that run where files are read, in a data worker: `apply` for one study, `collate` for a batch.

    Both results are trees of tuples whose leaves are tensors, arrays or plain values, so that they can be sent between
    processes and pinned. Reading and what is made of it are one function, as only the transform knows what it reads:
    a JPEG file at a smaller scale, a volume, the inputs of several models.
    """

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> Value:
        """Row `index`, read and transformed; rng: of this study in this epoch, for what is random.

        Raises DataError, naming the file, where it cannot be read.
        """
        ...

    def collate(self, values: Sequence[Value]) -> Collated:
        """What `apply` gave of one or more studies, together."""
        ...


# A transform by what its `collate` returns. Any: what `apply` returns is known to the transform alone; a loader passes
# it on without reading it.
TransformTo = InputTransform[Any, Collated]


class ReadImage(NamedTuple):
    """One study: its image [c, *spatial], and what was drawn for its augmentation [P] where a device applies that."""

    image: Tensor
    augmentation_params: Tensor | None = None


class ReadBatch(NamedTuple):
    """A batch of them, see utils.batch.Batch."""

    inputs: Inputs
    augmentation_params: Tensor | None


class ReadTransform(InputTransform[Value, ReadBatch], Protocol[Value]):
    """An InputTransform for a model, with what it leaves to the device, if anything."""

    @property
    def device_transform(self) -> DeviceTransform | None: ...


# Any: as in TransformTo.
AnyReadTransform = ReadTransform[Any]


class ImageTransform(ReadTransform[ReadImage], Protocol):
    """One of single images."""

    def no_images(self) -> ReadBatch:
        """What `collate` would give of no image: of studies of which only a table is known."""
        ...


def no_images(channels: int, size: Sequence[int]) -> ReadBatch:
    """[0, C, *size]."""
    return ReadBatch(Inputs.of_images(torch.empty(0, channels, *size)), None)


def collate_images(values: Sequence[ReadImage]) -> ReadBatch:
    """Images of one size together; they may differ in kind: then all are float32 in [0, 1] and colour."""
    images = [value.image for value in values]
    if len({(image.dtype, image.shape) for image in images}) > 1:
        colour = max(len(image) for image in images)
        unit = [image.float() / 255.0 if image.dtype == torch.uint8 else image for image in images]
        images = [image.expand(colour, -1, -1) for image in unit]
    params = [value.augmentation_params for value in values if value.augmentation_params is not None]
    return ReadBatch(Inputs.of_images(torch.stack(images)), torch.stack(params) if params else None)
