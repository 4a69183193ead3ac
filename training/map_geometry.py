"""Regions and maps of a network's cells: what part of a cell a region takes, and where a cell lies in another view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_matrix(centres: Tensor, pixels: int) -> Tensor:
    """float64 [cells, pixels], rows add up to 1: how much of a cell each pixel of an axis takes.

    centres: the pixels that cells are centred on, rising. Cells meet halfway between their centres; the outer ones
    reach to the image's edges, so that every pixel belongs to cells with all of its extent.
    """
    middle = (centres[1:] + centres[:-1]) / 2
    edges = torch.cat(
        [centres.new_tensor([-0.5]), middle.clamp(-0.5, pixels - 0.5), centres.new_tensor([pixels - 0.5])]
    )
    begin = torch.arange(pixels, dtype=torch.float64) - 0.5
    shared = torch.minimum(edges[1:, None], begin + 1) - torch.maximum(edges[:-1, None], begin)
    return shared.clamp(min=0) / (edges[1:] - edges[:-1]).clamp(min=1e-9)[:, None]


def even_centres(cells: int, pixels: int) -> Tensor:
    """Of cells that tile an axis evenly."""
    return (torch.arange(cells, dtype=torch.float64) + 0.5) * pixels / cells - 0.5


def to_cells(share: Tensor, centres: Sequence[Tensor]) -> Tensor:
    """uint8 [N, H, W], parts of 255, → float32 [N, *cells] in [0, 1]: the region averaged to a map's cells."""
    rows, columns = (
        cell_matrix(axis, pixels).to(share.device, torch.float32) for axis, pixels in zip(centres, share.shape[1:])
    )
    with torch.autocast(share.device.type, enabled=False):
        return torch.einsum("yh,nhw,xw->nyx", rows, share.float() / 255.0, columns)


def in_other_view(maps: Tensor, views: Tensor, centres: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Maps of second views as they would lie in the first: (float32 [M, *cells], bool [M, *cells], where both views
    show something of the image).

    maps: [M, *cells] of the second views. views: [M, 2, 2, 3], see utils.guidance.SecondViews. centres: of the cells,
    in pixels of either view; size: (height, width) of these.
    """
    y, x = (axis.to(maps.device, torch.float32) for axis in centres)
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [cells y, cells x, (x, y)]
    first, second = views.float().unbind(1)
    before = _moved(_inverse(first), places.expand(len(maps), -1, -1, -1))
    there = _moved(second, before)
    sampled = F.grid_sample(maps.float()[:, None], _as_grid(there, centres), padding_mode="border", align_corners=False)
    return sampled[:, 0], _inside(before, size) & _inside(there, size)


def _inverse(maps: Tensor) -> Tensor:
    """Of affine maps [M, 2, 3], without a solver, which would make the device wait."""
    a, b, c, d = maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1]
    determinant = a * d - b * c
    linear = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], 1) / determinant[:, None, None]
    shift = -(linear * maps[:, None, :, 2]).sum(-1)
    return torch.cat([linear, shift[..., None]], dim=-1)


def _moved(maps: Tensor, places: Tensor) -> Tensor:
    """Affine maps [M, 2, 3] of places [M, ..., 2]; sums of products, which no autocast rounds."""
    linear, shift = maps[:, None, None, :, :2], maps[:, None, None, :, 2]
    return (linear * places[..., None, :]).sum(-1) + shift


def _inside(places: Tensor, size: Sequence[int]) -> Tensor:
    x, y = places.unbind(-1)
    return (x >= -0.5) & (x <= size[1] - 0.5) & (y >= -0.5) & (y <= size[0] - 0.5)


def _as_grid(places: Tensor, centres: Sequence[Tensor]) -> Tensor:
    """Pixels [..., (x, y)] → places for grid_sample: linearly between cells, beyond the outer ones those."""
    y, x = centres
    parts = [_cell_of(places[..., i], axis) for i, axis in enumerate((x, y))]
    return torch.stack([(2 * part + 1) / len(axis) - 1 for part, axis in zip(parts, (x, y))], dim=-1)


def _cell_of(pixels: Tensor, centres: Tensor) -> Tensor:
    """Which cell a pixel lies on, in fractions."""
    if len(centres) == 1:
        return torch.zeros_like(pixels)
    axis = centres.to(pixels)
    left = (torch.searchsorted(axis, pixels.contiguous(), right=True) - 1).clamp(0, len(centres) - 2)
    part = (pixels - axis[left]) / (axis[left + 1] - axis[left])
    return (left + part).clamp(0, len(centres) - 1)
