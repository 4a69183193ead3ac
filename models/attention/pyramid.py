"""What all attention modes share: levels in, levels of the same shapes out, one step per level."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from utils.blocks import Block, State, run_plainly

# Cells an axis that keys and values are means over: 49 an image's level, 64 a volume's. 7 in a volume would be 343.
DEFAULT_GRID = {2: 7, 3: 4}


class CBAMMaps(NamedTuple):
    """One level's CBAM: channel [B, C] is multiplied in first, then spatial [B, 1, *spatial]; all from 0 to 1."""

    channel: Tensor
    spatial: Tensor


class TokenMaps(NamedTuple):
    """What each place of a level looks at.

    weights: [B, heads, places, tokens], rows add up to 1. places: the level's spatial size, row by row.
    sources: (level, grid of its tokens) in the order of the tokens, each grid row by row.
    """

    weights: Tensor
    spatial_shape: tuple[int, ...]
    sources: tuple[tuple[int, tuple[int, ...]], ...]

    def by_source(self) -> dict[int, Tensor]:
        """Level → its part of the weights, [B, heads, places, *grid]."""
        counts = [math.prod(grid) for _, grid in self.sources]
        parts = self.weights.split(counts, dim=-1)
        return {level: part.unflatten(-1, grid) for (level, grid), part in zip(self.sources, parts)}


class PyramidAttention(nn.Module, ABC):
    """levels [B, C_i, *spatial_i] in → the same shapes out, as the sequence of `steps`."""

    # How what `steps` observes is to be read: gates, of which each place has its own, or shares, which add up to 1.
    observes: ClassVar[Literal["nothing", "gates", "shares"]] = "nothing"

    @abstractmethod
    def steps(self, observed: bool = False) -> list[Block]:
        """Levels in → levels out. One step per level, so that checkpointing can cut between them.

        observed: each level's map over places is kept in State.attended: gates before their sigmoid [B, *cells of the
        level]; shares, float32 [B, *cells of the grid of its tokens]. Levels are the same, bit for bit.
        """

    @abstractmethod
    def attention_maps(self, features: Sequence[Tensor]) -> Mapping[int, CBAMMaps | TokenMaps]:
        """The weights that `forward` uses for these levels, by level; nothing where there is no attention."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return list(run_plainly(self.steps(), State(levels=tuple(features))).levels)


class NoAttention(PyramidAttention):
    """Levels as they are, in no step."""

    def steps(self, observed: bool = False) -> list[Block]:
        return []

    def attention_maps(self, features: Sequence[Tensor]) -> dict[int, TokenMaps]:
        return {}


def level_step(i: int, function: Callable[[Tensor], Tensor], modules: Sequence[nn.Module]) -> Block:
    """The step that replaces level i by function(level i), which calls `modules`."""
    return Block(f"attention level {i}", partial(_apply_to_level, i, function), tuple(modules))


def observed_step(i: int, function: Callable[[Tensor], tuple[Tensor, Tensor]], modules: Sequence[nn.Module]) -> Block:
    """As `level_step`, of a function that gives the level and what is observed of its attention."""
    return Block(f"attention level {i}", partial(_observe_level, i, function), tuple(modules))


def _observe_level(i: int, function: Callable[[Tensor], tuple[Tensor, Tensor]], state: State) -> State:
    level, attended = function(state.levels[i])
    return state._replace(levels=replaced(state.levels, i, level), attended=(*state.attended, attended))


def _apply_to_level(i: int, function: Callable[[Tensor], Tensor], state: State) -> State:
    return state._replace(levels=replaced(state.levels, i, function(state.levels[i])))


def replaced(levels: tuple[Tensor, ...], i: int, level: Tensor) -> tuple[Tensor, ...]:
    """The levels with another one in place i."""
    return (*levels[:i], level, *levels[i + 1 :])


def grid_of(spatial_dims: int, grid: int | None) -> int:
    """The grid asked for, or the default for this many axes; ValueError where there is none."""
    if spatial_dims not in DEFAULT_GRID:
        raise ValueError(f"spatial_dims is {spatial_dims!r}: one of {', '.join(map(str, DEFAULT_GRID))}")
    return DEFAULT_GRID[spatial_dims] if grid is None else grid
