"""Where the cells of a network's maps lie in its input: what the backbone promises, and what the fusion makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# The centres of a map's cells in pixels of the input, counted from 0: float64 [cells] per axis.
Centres = Sequence[Tensor]


class Pyramid(Protocol):
    """feature_strides: pixels per cell, a number per level."""

    feature_strides: list[float]

    def forward_features(self, x: Tensor) -> list[Tensor]: ...


class Grid(Protocol):
    """models' CellGrid, see there."""

    def centres(self, cells: Sequence[int]) -> list[Tensor]: ...


@runtime_checkable
class PlacedPyramid(Protocol):
    """A backbone that knows which pixels the cells of each level are centred on, for inputs of a spatial size."""

    def cell_grids(self, size: Sequence[int]) -> Sequence[Grid]: ...


@runtime_checkable
class PlacedFusion(Protocol):
    """A fusion that knows where the cells of its map lie, from where those of the levels do."""

    def centres(self, levels: Sequence[Centres]) -> list[Tensor]: ...


def level_centres(backbone: Pyramid, levels: Sequence[Tensor], size: Sequence[int]) -> list[Centres]:
    """The centres of every level's cells, levels [B, C, *cells] for an input of spatial `size`.

    Of a backbone that makes no promise, cells tile the input from its first pixel on.
    """
    cells = [level.shape[2:] for level in levels]
    if isinstance(backbone, PlacedPyramid):
        return [grid.centres(count) for grid, count in zip(backbone.cell_grids(size), cells, strict=True)]
    return [
        [tile_centres(n, stride) for n in count] for stride, count in zip(backbone.feature_strides, cells, strict=True)
    ]


def tile_centres(cells: int, stride: float) -> Tensor:
    """Cells that tile the input: the first is centred on pixel (stride − 1) / 2."""
    return (stride - 1) / 2 + stride * torch.arange(cells, dtype=torch.float64)
