"""What a batch carries for attention that is taught: annotated regions, and second augmented views of its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ANY_CLASS = -1  # of a region that is not of a certain class, but of whatever the image shows


class Regions(NamedTuple):
    """N regions in some of a batch's M images, where augmentation left them.

    share: uint8 [N, H, W], how much of a pixel of the network's input lies in the region, of 255; none is empty.
    image: int64 [N], in which of the M images, ascending. study: int64 [N], in which of the B studies.
    column: int64 [N], the class that it is a region of, or ANY_CLASS.
    turn: int64 [N]: regions of one study have different turns, from 0 on. turns: more than any of them.
    """

    share: Tensor
    image: Tensor
    study: Tensor
    column: Tensor
    turn: Tensor
    turns: int

    def to(self, device: torch.device) -> Regions:
        """On a device; from pinned memory without waiting."""
        share, image, study, column, turn = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        return Regions(share, image, study, column, turn, self.turns)

    def tensors(self) -> tuple[Tensor, ...]:
        """All but `turns`."""
        return self.share, self.image, self.study, self.column, self.turn

    def part(self, first_study: int, first_image: int, studies: int) -> Regions:
        """Those of `studies` studies from first_study on, whose first image is first_image."""
        inside = (self.study >= first_study) & (self.study < first_study + studies)
        share, image, study, column, turn = (tensor[inside] for tensor in self.tensors())
        return Regions(share, image - first_image, study - first_study, column, turn, self.turns)


class SecondViews(NamedTuple):
    """Another augmented view of each of M images.

    image: [M, c, *spatial] as Inputs.image, where a data worker made it; None where the device makes it of that image
    and of params [M, P]. maps: float32 [M, 2, 2, 3]: of each image the affine map from places before augmentation to
    those in the first view, and to those in the second: (x, y) in pixels of the network's input, from the upper left
    one's centre.
    """

    image: Tensor | None
    params: Tensor | None
    maps: Tensor

    def part(self, first: int, count: int) -> SecondViews:
        """Those of some images."""
        rows = slice(first, first + count)
        image = None if self.image is None else self.image[rows]
        return SecondViews(image, None if self.params is None else self.params[rows], self.maps[rows])


class Guidance(NamedTuple):
    """Either is None where nothing asks for it, or none of the batch's images has one."""

    regions: Regions | None = None
    second: SecondViews | None = None

    def split(self, studies: Sequence[int], images: Sequence[int]) -> list[Guidance]:
        """In parts of so many studies and images each."""
        parts, first_study, first_image = [], 0, 0
        for count, views in zip(studies, images, strict=True):
            regions = self.regions and self.regions.part(first_study, first_image, count)
            parts.append(Guidance(regions, self.second and self.second.part(first_image, views)))
            first_study, first_image = first_study + count, first_image + views
        return parts
