"""Self-attention inside every level of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from models.attention.pooled import PooledAttention, on_one_grid, pooled_attentions
from models.attention.pyramid import PyramidAttention, TokenMaps, grid_of, level_step, observed_step
from models.layers import pooled_tokens, token_grid
from utils.blocks import Block


class MultiScaleAttention(PyramidAttention):
    """Multi-head self-attention per level; keys and values are that level's own, pooled to a grid.

    grid: cells per axis; None: 7 in images, 4 in volumes, which is about as many keys (49 and 64).
    Shapes: levels [B, channels[i], *spatial_i] in → the same out.
    """

    observes = "shares"

    def __init__(
        self, channels: Sequence[int], num_heads: int = 8, grid: int | None = None, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        self.grid = grid_of(spatial_dims, grid)
        self.context_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.levels = nn.ModuleList(PooledAttention(c, c, num_heads) for c in channels)

    def steps(self, observed: bool = False) -> list[Block]:
        modules = list(enumerate(zip(self.levels, self.context_norms, strict=True)))
        if observed:
            return [observed_step(i, partial(self._attend_observed, i), called) for i, called in modules]
        return [level_step(i, partial(self._attend, i), called) for i, called in modules]

    def attention_maps(self, features: Sequence[Tensor]) -> dict[int, TokenMaps]:
        return {
            i: TokenMaps(
                level.attention_weights(x, self._context(i, x)), tuple(x.shape[2:]), ((i, token_grid(x, self.grid)),)
            )
            for i, (level, x) in enumerate(zip(pooled_attentions(self.levels), features))
        }

    def _attend(self, i: int, x: Tensor) -> Tensor:
        return self.levels[i](x, self._context(i, x))

    def _attend_observed(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        level, weights = self.levels[i](x, self._context(i, x), True)
        return level, on_one_grid(weights, [token_grid(x, self.grid)])

    def _context(self, i: int, x: Tensor) -> Tensor:
        return self.context_norms[i](pooled_tokens(x, self.grid))
