"""What the attention of studies is made of: attention with masked keys, tokens of an image's places."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Heads of all attention here, or the largest divisor of them that divides the width.
_HEADS = 4
# Of the position of a place, before training: with 0.02, one of three trainings did not find the places at all.
_POSITION_STD = 0.5
_FREQUENCIES = 3  # 1/2, 1 and 2 periods along an axis


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that begins as the constant 0, so that what it is added to begins unchanged."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def small_uniform(*shape: int) -> nn.Parameter:
    """Uniform on ±1/√d, d the last axis: how tokens begin in Gorishniy et al. 2021, arXiv:2106.11959."""
    bound = shape[-1] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class MaskedAttention(nn.Module):
    """Queries look at those keys that are there: softmax(Q Kᵀ / √(width / heads)) V, per head (Vaswani et al. 2017).

    x [B, Q, queries], keys [B, K, keys], mask bool [B, Q or 1, K], of which each row must have a key → [B, Q, width].
    Not nn.MultiheadAttention, whose weights are NaN where no key is there.
    """

    def __init__(self, queries: int, keys: int, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(width, _HEADS)
        self.query, self.key_value = nn.Linear(queries, width), nn.Linear(keys, 2 * width)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        key, value = self.key_value(keys).chunk(2, dim=-1)
        query, key, value = map(self._by_head, (self.query(x), key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None]).transpose(1, 2).flatten(2)

    def weights(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """What `forward` multiplies the values by, a mean over heads: [B, Q, K]; rows add up to 1."""
        query, key = self._by_head(self.query(x)), self._by_head(self.key_value(keys).chunk(2, dim=-1)[0])
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1).mean(1)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PlaceTokens(nn.Module):
    """Tokens of places: what is there, where it is, and in what kind of view.

    means [B, V, N, C] over the cells of `grid`, kind int64 [B, V] → [B, V, N, width].

    Where a place is, is a sum over axes of learned combinations of sines and cosines of its relative coordinate: it
    means the same in every grid.
    """

    def __init__(self, channels: int, width: int, kinds: int, spatial_dims: int) -> None:
        super().__init__()
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, width)
        self.kinds = nn.Embedding(kinds, width)
        std = _POSITION_STD / math.sqrt(spatial_dims * _FREQUENCIES)
        self.positions = nn.Parameter(torch.randn(spatial_dims, 2 * _FREQUENCIES, width) * std)

    def forward(self, means: Tensor, kind: Tensor, grid: Sequence[int]) -> Tensor:
        return self.project(self.norm(means)) + self._position(grid) + self.kinds(kind)[:, :, None]

    def _position(self, grid: Sequence[int]) -> Tensor:
        """[N, width], row by row."""
        total = self.positions.new_zeros(1, self.positions.shape[-1])
        for cells, combination in zip(grid, self.positions, strict=True):
            centres = (torch.arange(cells, device=combination.device) + 0.5) / cells * 2 - 1
            angles = centres[:, None] * math.pi / 2 * 2 ** torch.arange(_FREQUENCIES, device=centres.device)
            along = torch.cat([angles.sin(), angles.cos()], dim=1).to(combination.dtype) @ combination
            total = (total[:, None] + along[None]).flatten(0, 1)
        return total
