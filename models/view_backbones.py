"""A backbone of its own for each kind of view: images are sorted by kind, and their levels put back in order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from models.backbones import BaseVisionBackbone
from utils.batch import Inputs
from utils.blocks import Block, State, run_plainly
from utils.kernels import is_exported


def kinds_of_images(inputs: Inputs) -> Tensor:
    """int64 [M]: the kind of each image, in their order. Waits for the device where views are missing."""
    kind, slots = torch.where(inputs.view_mask, inputs.view_kind, 0), inputs.view_mask.numel()
    return kind.flatten() if inputs.image.shape[0] == slots else kind[inputs.view_mask]


def levels_by_kind(backbones: Sequence[BaseVisionBackbone], image: Tensor, kinds: Tensor) -> list[Tensor]:
    """[M, C, *spatial] and their kinds → levels [M, C_i, *spatial_i], those of an image from the backbone of its kind.

    An exported graph, whose shapes cannot depend on kinds, asks all backbones about all images and selects.
    """
    if not is_exported():
        return list(run_plainly(blocks_by_kind(backbones, image, kinds), State(image)).levels)
    found = [backbone.forward_features(image) for backbone in backbones]
    levels = found[0]
    for kind, others in enumerate(found[1:], start=1):
        chosen = (kinds == kind)[(..., *[None] * (image.ndim - 1))]
        levels = [torch.where(chosen, other, level) for level, other in zip(levels, others, strict=True)]
    return levels


def blocks_by_kind(backbones: Sequence[BaseVisionBackbone], image: Tensor, kinds: Tensor) -> list[Block]:
    """The same, a block per backbone and one that puts images back in order. No backbone is asked about no image."""
    parts = image[kinds.argsort(stable=True)].split(kinds.bincount(minlength=len(backbones)).tolist())
    steps = [
        Block(f"backbone of view kind {number}", partial(_append_levels, backbone, part), (backbone,))
        for number, (backbone, part) in enumerate(zip(backbones, parts, strict=True))
    ]
    asked, places = sum(part.shape[0] > 0 for part in parts), kinds.argsort(stable=True).argsort()
    return [*steps, Block("images in order", partial(_in_order, asked, places))]


def _append_levels(backbone: BaseVisionBackbone, image: Tensor, state: State) -> State:
    found = backbone.forward_features(image) if image.shape[0] else []
    return State(levels=(*state.levels, *found))


def _in_order(asked: int, places: Tensor, state: State) -> State:
    count = len(state.levels) // asked
    return State(levels=tuple(torch.cat(state.levels[level::count])[places] for level in range(count)))
