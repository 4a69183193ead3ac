"""Multi-head attention from every place of a map to a few pooled tokens."""

from __future__ import annotations

from collections.abc import Iterable

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

    Shapes: x [B, C, *spatial], context [B, N, context_channels] → [B, C, *spatial].
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

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        answer = F.scaled_dot_product_attention(*self._project(x, context))
        answer = rearrange(answer, "b heads n d -> b n (heads d)")
        # gamma on the weights: on the update it is three passes over a map as large as x, kept for one of them.
        update = F.linear(answer, self.out.weight * self.gamma[:, None], self.out.bias * self.gamma)
        return x + update.transpose(1, 2).reshape(x.shape)

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


def pooled_attentions(modules: Iterable[nn.Module]) -> list[PooledAttention]:
    """The modules of a ModuleList, which knows no types, as what they are."""
    return [module for module in modules if isinstance(module, PooledAttention)]
