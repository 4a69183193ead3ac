"""Images with their annotated regions, and with a second augmented view of each, for attention that is taught.

What happens to an image happens to its regions: they are resized as it is, and warped by the very map that was drawn
for it. That is done where files are read, on the device's code path too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch

from data.study import DatasetIndex
from data.transforms.device_augmentation import DeviceAugmentation
from data.transforms.images import LightAugmentation, Preprocess, normalize, resize
from data.transforms.input_transform import ReadBatch, ReadGuidance, ReadImage, collate_images
from utils.batch import DeviceTransform

# What LightAugmentation.draw gives.
Drawn = tuple[np.ndarray, float, float]


class Region(NamedTuple):
    """column: its class, or ANY_CLASS. pixels: bool [H, W], of the image as it was read or of its proportions."""

    column: int
    pixels: np.ndarray


class RegionReader(Protocol):
    """Annotated regions by rows of an image index."""

    def of(self, row: int) -> Sequence[Region]:
        """Those of an image, () where it has none. Raises DataError for those that cannot be read."""
        ...


class Guided:
    """An ImageTransform that gives images as another does, and guidance beside them.

    transform: a Preprocess without an augmentation or with the light one, or a DeviceAugmentation. regions: where
    regions are read; None: nowhere. second: whether there is a second view, which needs an augmentation.
    The first view is the other transform's for the same generator, whatever is asked for beside it.
    """

    def __init__(
        self, transform: Preprocess | DeviceAugmentation, regions: RegionReader | None, second: bool = False
    ) -> None:
        self.transform, self.regions, self.second = transform, regions, second
        self.preprocess = transform.preprocess if isinstance(transform, DeviceAugmentation) else transform
        augmentation = self.preprocess.augmentation
        assert augmentation is None or isinstance(augmentation, LightAugmentation), "its map is known"
        assert augmentation is not None or not second, "a second view is another augmentation"
        self.augmentation = augmentation

    @property
    def device_transform(self) -> DeviceTransform | None:
        """Of the other transform."""
        return self.transform.device_transform

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> ReadImage:
        """Read an image and its regions. Raises DataError where either cannot be read."""
        fitted = self.preprocess.fit(self.preprocess.read(dataset_index, index))
        draw = None if self.augmentation is None else self.augmentation.draw
        drawn = None if draw is None else draw(self.preprocess.size, rng)
        image, params = self._view(fitted, drawn)
        found = (
            []
            if self.regions is None
            else [(one.column, self._fit(one.pixels, drawn)) for one in self.regions.of(index)]
        )
        found = [pair for pair in found if pair[1].any()]
        shares = np.stack([share for _, share in found]) if found else np.zeros((0, *self.preprocess.size), np.uint8)
        guidance = ReadGuidance(shares, np.array([column for column, _ in found], np.int64))
        if self.second and draw is not None and drawn is not None:
            other = draw(self.preprocess.size, rng)
            view, other_params = self._view(fitted, other)
            maps = torch.tensor(np.stack([drawn[0], other[0]]), dtype=torch.float32)
            on_device = other_params is not None  # which makes the second view of the same image
            guidance = guidance._replace(second=None if on_device else view, params=other_params, maps=maps)
        return ReadImage(image, params, guidance)

    def collate(self, values: Sequence[ReadImage]) -> ReadBatch:
        """See `collate_images`."""
        return collate_images(values)

    def no_images(self) -> ReadBatch:
        """See ImageTransform."""
        return self.transform.no_images()

    def _view(self, fitted: np.ndarray, drawn: Drawn | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(the image, or what the device makes it of; what was drawn, for the device)."""
        if drawn is not None and isinstance(self.transform, DeviceAugmentation):
            return torch.from_numpy(fitted).movedim(-1, 0), self.transform.params(*drawn)
        if drawn is not None and self.augmentation is not None:
            fitted = self.augmentation.warped(fitted, *drawn)
        preprocess = self.preprocess
        return torch.from_numpy(normalize(fitted, preprocess.mean, preprocess.std, preprocess.channels)), None

    def _fit(self, pixels: np.ndarray, drawn: Drawn | None) -> np.ndarray:
        """uint8 [height, width]: how much of each pixel of the network's input is in the region, of 255."""
        share = resize(np.where(pixels, np.uint8(255), np.uint8(0))[:, :, None], *self._size())[:, :, 0]
        if drawn is None:
            return share
        height, width = share.shape
        return cv2.warpAffine(share, drawn[0], (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def _size(self) -> tuple[tuple[int, int], str]:
        return self.preprocess.size, self.preprocess.resize_mode
