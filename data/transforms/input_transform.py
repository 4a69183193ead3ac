"""What a loader's worker makes of one study, and of a batch of them: the contract, and the form a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.study import DatasetIndex
from utils.batch import DeviceTransform, Inputs
from utils.guidance import Guidance, Regions, SecondViews

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


class ReadGuidance(NamedTuple):
    """What attention is taught with, of one image: see utils.guidance.

    regions: uint8 [n, H, W]. columns: int64 [n]. second, params, maps: of a second view; None: nothing asks for it.
    """

    regions: np.ndarray
    columns: np.ndarray
    second: Tensor | None = None
    params: Tensor | None = None
    maps: Tensor | None = None


class ReadImage(NamedTuple):
    """One study: its image [c, *spatial], and what was drawn for its augmentation [P] where a device applies that."""

    image: Tensor
    augmentation_params: Tensor | None = None
    guidance: ReadGuidance | None = None


class ReadBatch(NamedTuple):
    """A batch of them, see utils.batch.Batch."""

    inputs: Inputs
    augmentation_params: Tensor | None
    guidance: Guidance | None = None


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
    params = [value.augmentation_params for value in values if value.augmentation_params is not None]
    image = _together([value.image for value in values])
    return ReadBatch(Inputs.of_images(image), torch.stack(params) if params else None, _guidance(values))


def _together(images: list[Tensor]) -> Tensor:
    if len({(image.dtype, image.shape) for image in images}) > 1:
        colour = max(len(image) for image in images)
        unit = [image.float() / 255.0 if image.dtype == torch.uint8 else image for image in images]
        images = [image.expand(colour, -1, -1) for image in unit]
    return torch.stack(images)


def _guidance(values: Sequence[ReadImage]) -> Guidance | None:
    """Of images of which each is a study; see `of_studies` for others. None where there is nothing to be taught."""
    read = [value.guidance for value in values]
    given = [one for one in read if one is not None]
    if not given:
        return None
    assert len(given) == len(read), "all images are read alike"
    images = np.repeat(np.arange(len(given)), [len(one.columns) for one in given])
    regions = None
    if len(images):
        share = np.concatenate([one.regions for one in given if len(one.columns)])
        regions = regions_of(share, images, images, np.concatenate([one.columns for one in given]))
    maps = [one.maps for one in given if one.maps is not None]
    second = None
    if maps:
        views = [one.second for one in given if one.second is not None]
        params = [one.params for one in given if one.params is not None]
        stacked = torch.stack(params) if params else None
        second = SecondViews(_together(views) if views else None, stacked, torch.stack(maps))
    return Guidance(regions, second)


def regions_of(share: np.ndarray, images: np.ndarray, studies: np.ndarray, columns: np.ndarray) -> Regions:
    """Regions [N, H, W] of these images, of these studies, in ascending order, and of these classes."""
    _, first, counts = np.unique(studies, return_index=True, return_counts=True)
    turn = np.arange(len(studies)) - np.repeat(first, counts)
    image, study, column, turns = (torch.from_numpy(one.astype(np.int64)) for one in (images, studies, columns, turn))
    return Regions(torch.from_numpy(np.ascontiguousarray(share)), image, study, column, turns, int(counts.max()))


def of_studies(guidance: Guidance | None, images_per_study: Sequence[int]) -> Guidance | None:
    """The guidance of images collated one by one, for studies of so many images each, one after another."""
    if guidance is None or guidance.regions is None:
        return guidance
    share, image, _, column, _ = (tensor.numpy() for tensor in guidance.regions.tensors())
    study = np.repeat(np.arange(len(images_per_study)), images_per_study)
    return guidance._replace(regions=regions_of(share, image, study[image], column))
