"""Multi-head attention from every place of a map to a few pooled tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.layers import ChannelLayerNorm


class PooledAttention(nn.Module):
    """Each place of x queries `context` tokens; the answer is projected back and added to x.

    y = x + gamma · W_o softmax(q kᵀ / √d) v, with q from LayerNorm(x), (k, v) from `context`, and a learned scale
    per channel `gamma` that starts small (LayerScale; Touvron et al. 2021, arXiv:2103.17239), so that pretrained
    features are hardly changed at first. The cost is linear in the number of places: keys are pooled as in the
    spatial-reduction attention of PVT (Wang et al. 2021, arXiv:2102.12122), here by means over a fixed grid.

    Shapes: x [B, C, *spatial], context [B, N, context_channels] → [B, C, *spatial]; observed: and float32 [B, N], how
    much each token is looked at, the mean over places and heads, which adds up to 1.
    """

    def __init__(self, channels: int, context_channels: int, num_heads: int, init_scale: float = 0.1) -> None:
        super().__init__()
        self.num_heads = num_heads
        width = num_heads * max(channels // num_heads, 8)
        self.norm = ChannelLayerNorm(channels)
        self.query = nn.Linear(channels, width)
        self.key_value = nn.Linear(context_channels, 2 * width)
        self.out = nn.Linear(width, channels)
        self.gamma = nn.Parameter(torch.full((channels,), init_scale))

    def forward(self, x: Tensor, context: Tensor, observed: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = self._project(x, context)
        answer = F.scaled_dot_product_attention(query, key, value)
        answer = rearrange(answer, "b heads n d -> b n (heads d)")
        # gamma on the weights: on the update it is three passes over a map as large as x, kept for one of them.
        update = F.linear(answer, self.out.weight * self.gamma[:, None], self.out.bias * self.gamma)
        attended = x + update.transpose(1, 2).reshape(x.shape)
        return (attended, _looked_at(query, key)) if observed else attended

    def attention_weights(self, x: Tensor, context: Tensor) -> Tensor:
        """softmax(q kᵀ / √d), which `forward` never builds: [B, heads, places, N], places = product of spatial.

        Rows add up to 1.
        """
        query, key, _ = self._project(x, context)
        return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)

    def _project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, places, d], keys and values [B, heads, N, d]."""
        query = self._split_heads(self.query(self.norm(x)))
        key, value = (self._split_heads(t) for t in self.key_value(context).chunk(2, dim=-1))
        return query, key, value

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """[B, N, width] → [B, heads, N, width / heads]."""
        return rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.num_heads)


def _looked_at(query: Tensor, key: Tensor) -> Tensor:
    """[B, heads, places, d], [B, heads, N, d] → the mean of softmax(q kᵀ / √d), float32 [B, N]."""
    with torch.autocast(query.device.type, enabled=False):
        return (query.float() @ key.float().mT * query.shape[-1] ** -0.5).softmax(-1).mean((1, 2))


def on_one_grid(weights: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
    """Weights of the tokens of several grids, one after another, as one map on the finest of them.

    [B, N] → [B, *cells], each axis with the most cells that a grid has; a token's weight is spread over its extent, so
    that the sum stays.
    """
    cells = [max(axis) for axis in zip(*grids)]
    parts = weights.split([math.prod(grid) for grid in grids], dim=-1)
    maps = [part.unflatten(-1, grid) for part, grid in zip(parts, grids)]
    return torch.stack([along_axes_of(part, cells) for part in maps]).sum(0)


def along_axes_of(part: Tensor, cells: Sequence[int]) -> Tensor:
    """[B, *grid] → [B, *cells], the sum kept: each cell has the share of a token that lies in it."""
    for axis, count in enumerate(cells, start=1):
        if part.shape[axis] != count:
            shares = spread_matrix(part.shape[axis], count).to(part)
            part = torch.movedim(torch.tensordot(part, shares, dims=([axis], [0])), -1, axis)
    return part


def spread_matrix(old: int, new: int) -> Tensor:
    """float64 [old, new]: which share of each of `old` parts of a line lies in each of `new` parts; rows sum to 1."""
    begin, end = torch.arange(old, dtype=torch.float64)[:, None] / old, torch.arange(1, old + 1)[:, None] / old
    low, high = torch.arange(new, dtype=torch.float64) / new, torch.arange(1, new + 1, dtype=torch.float64) / new
    return (torch.minimum(end, high) - torch.maximum(begin, low)).clamp(min=0) * old


def pooled_attentions(modules: Iterable[nn.Module]) -> list[PooledAttention]:
    """The modules of a ModuleList, which knows no types, as what they are."""
    return [module for module in modules if isinstance(module, PooledAttention)]
