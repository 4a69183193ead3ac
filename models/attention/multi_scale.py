"""Self-attention inside every level of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.attention.pooled import PooledAttention
from models.layers import pooled_tokens


class MultiScaleAttention(nn.Module):
    """Multi-head self-attention a level; keys and values are that level's own, pooled to a grid.

    Shapes: levels [B, channels[i], H_i, W_i] in → the same out.
    """

    def __init__(self, channels: Sequence[int], num_heads: int = 8, grid: int = 7) -> None:
        super().__init__()
        self.grid = grid
        self.context_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.levels = nn.ModuleList(PooledAttention(c, c, num_heads) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        contexts = [norm(pooled_tokens(x, self.grid)) for norm, x in zip(self.context_norms, features)]
        return [attend(x, context) for attend, x, context in zip(self.levels, features, contexts)]
