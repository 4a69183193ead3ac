"""Attention between the levels of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.attention.pooled import PooledAttention, on_one_grid, pooled_attentions
from models.attention.pyramid import PyramidAttention, TokenMaps, grid_of, replaced
from models.layers import pooled_tokens, token_grid
from utils.blocks import Block, State


class CrossScaleAttention(PyramidAttention):
    """Every place of a level queries the pooled tokens of all other levels.

    Tokens of all levels are brought to one width and marked with a learned embedding of their level.
    With four levels a position attends to at most 3 · 49 tokens of an image and 3 · 64 of a volume, of any size.

    grid: cells per axis; None: 7 in images, 4 in volumes.
    Shapes: levels [B, channels[i], *spatial_i] in → the same out. At least two levels, else ValueError.
    """

    observes = "shares"

    def __init__(
        self,
        channels: Sequence[int],
        num_heads: int = 8,
        width: int = 256,
        grid: int | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"cross-scale attention needs two levels or more, got {len(channels)}")
        self.grid = grid_of(spatial_dims, grid)
        self.projections = nn.ModuleList(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, width)) for c in channels)
        self.level_embeddings = nn.Parameter(torch.randn(len(channels), width) * 0.02)
        self.levels = nn.ModuleList(PooledAttention(c, width, num_heads) for c in channels)

    def steps(self, observed: bool = False) -> list[Block]:
        """The tokens of all levels, then one step per level: levels in → levels out."""
        attend = self._attend_observed if observed else self._attend
        levels = [Block(f"attention level {i}", partial(attend, i), (level,)) for i, level in enumerate(self.levels)]
        return [
            Block("attention tokens", self._with_tokens, tuple(self.projections), (self.level_embeddings,)),
            *levels,
        ]

    def attention_maps(self, features: Sequence[Tensor]) -> dict[int, TokenMaps]:
        tokens = self._tokens(features)
        grids = [(i, token_grid(x, self.grid)) for i, x in enumerate(features)]
        return {
            i: TokenMaps(
                level.attention_weights(x, _others(tokens, i)), tuple(x.shape[2:]), (*grids[:i], *grids[i + 1 :])
            )
            for i, (level, x) in enumerate(zip(pooled_attentions(self.levels), features))
        }

    def _with_tokens(self, state: State) -> State:
        return state._replace(tokens=self._tokens(state.levels))

    def _tokens(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """[B, N_i, width] for each level."""
        return tuple(
            project(pooled_tokens(x, self.grid)) + embedding
            for project, x, embedding in zip(self.projections, levels, self.level_embeddings, strict=True)
        )

    def _attend(self, i: int, state: State) -> State:
        """Level i sees the tokens of the others; after the last level the tokens go."""
        return self._after(i, state, self.levels[i](state.levels[i], _others(state.tokens, i)), state.attended)

    def _attend_observed(self, i: int, state: State) -> State:
        """As `_attend`; the tokens of all other levels have one map, on the finest grid of theirs."""
        level, weights = self.levels[i](state.levels[i], _others(state.tokens, i), True)
        grids = [token_grid(x, self.grid) for x in state.levels]
        return self._after(i, state, level, (*state.attended, on_one_grid(weights, [*grids[:i], *grids[i + 1 :]])))

    def _after(self, i: int, state: State, level: Tensor, attended: tuple[Tensor, ...]) -> State:
        is_last = i + 1 == len(self.levels)
        tokens = () if is_last else state.tokens
        return State(levels=replaced(state.levels, i, level), tokens=tokens, attended=attended)


def _others(tokens: Sequence[Tensor], i: int) -> Tensor:
    """The tokens of all levels but level i: [B, N, width]."""
    return torch.cat([*tokens[:i], *tokens[i + 1 :]], dim=1)
