"""Where a cell of a map lies in the network's input, and where a pixel of that lies in the original image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from configs.errors import ExplanationError

RESIZE_MODES = ("stretch", "letterbox")


def cells_to_pixels(maps: Tensor, size: Sequence[int], stride: float, first: float | None = None) -> Tensor:
    """`at_pixels` of cells at equal distances: cell i is centred on pixel first + i · stride along every axis.

    first: None for (stride − 1) / 2, cells that tile the image; where cells · stride = size, this is then torch's
    interpolation with align_corners=False.
    """
    first = (stride - 1) / 2 if first is None else first
    cells = maps.shape[-len(size) :]
    return at_pixels(maps, size, [first + stride * torch.arange(n, dtype=torch.float64) for n in cells])


def at_pixels(maps: Tensor, size: Sequence[int], centres: Sequence[Tensor]) -> Tensor:
    """Linear interpolation along each of the last len(size) axes: [..., *cells] → [..., *size].

    centres: the pixels that the cells of each axis are centred on, rising, so that a map of a padded input, or of one
    whose size the stride does not divide, lies where it belongs. Beyond the outer cells' centres their values are
    repeated.
    """
    for axis, pixels, middles in zip(range(-len(size), 0), size, centres, strict=True):
        weights = _linear_weights(middles, pixels).to(maps)
        maps = torch.movedim(torch.tensordot(maps, weights, dims=([axis], [1])), -1, axis)
    return maps


def _linear_weights(centres: Tensor, pixels: int) -> Tensor:
    """float64 [pixels, cells], rows add up to 1."""
    cells = len(centres)
    if cells == 1:
        return torch.ones(pixels, 1, dtype=torch.float64)
    places = torch.arange(pixels, dtype=torch.float64).clamp(float(centres[0]), float(centres[-1]))
    left = (torch.searchsorted(centres, places, right=True) - 1).clamp(0, cells - 2)
    positions = left + (places - centres[left]) / (centres[left + 1] - centres[left])
    return (1 - (positions[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def content_box(size: Sequence[int], image: Sequence[int], mode: str) -> tuple[int, int, int, int]:
    """Where a resized image lies in the network's input: (top, left, height, width) in pixels of the input.

    size, image: (height, width) of the input and of the original. mode: that of data.transforms.images.resize,
    'stretch' or 'letterbox'. Raises ExplanationError for another.
    """
    if mode not in RESIZE_MODES:
        raise ExplanationError(f"unknown resize mode {mode!r}: one of {', '.join(map(repr, RESIZE_MODES))}")
    if mode == "stretch" or tuple(size) == tuple(image):
        return 0, 0, size[0], size[1]
    ratio = min(size[0] / image[0], size[1] / image[1])
    height, width = (min(side, max(1, round(length * ratio))) for side, length in zip(size, image))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def onto_image(heatmap: np.ndarray, image: Sequence[int], mode: str) -> np.ndarray:
    """A heatmap of the network's input back in the original's pixels: float32 [h, w] → [*image], image (H, W).

    The inverse of data.transforms.images.resize: what was padding is cut off, then axes are interpolated linearly.
    """
    top, left, height, width = content_box(heatmap.shape, image, mode)
    content = np.ascontiguousarray(heatmap[top : top + height, left : left + width], np.float32)
    return cv2.resize(content, (int(image[1]), int(image[0])), interpolation=cv2.INTER_LINEAR)
