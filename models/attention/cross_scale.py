"""Attention between the levels of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention.pooled import PooledAttention
from models.layers import pooled_tokens


class CrossScaleAttention(nn.Module):
    """Every place of a level queries the pooled tokens of all other levels.

    Tokens of all levels are brought to one width and marked with a learned embedding of their level.
    With grid 7 a level sees at most 3 · 49 tokens, whatever the size of the picture.

    Shapes: levels [B, channels[i], H_i, W_i] in → the same out. At least two levels.
    """

    def __init__(self, channels: Sequence[int], num_heads: int = 8, width: int = 256, grid: int = 7) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"cross-scale attention needs two levels or more, got {len(channels)}")
        self.grid = grid
        self.projections = nn.ModuleList(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, width)) for c in channels)
        self.level_embeddings = nn.Parameter(torch.randn(len(channels), width) * 0.02)
        self.levels = nn.ModuleList(PooledAttention(c, width, num_heads) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        tokens = [
            project(pooled_tokens(x, self.grid)) + embedding
            for project, x, embedding in zip(self.projections, features, self.level_embeddings)
        ]
        return [
            attend(x, torch.cat(tokens[:i] + tokens[i + 1 :], dim=1))
            for i, (attend, x) in enumerate(zip(self.levels, features))
        ]
