"""Attention in shifted windows of a volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Places an axis of a window, at most.
WINDOW = 7


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of equal length, with a learned bias for every offset in a window.

    shifted: windows begin half a window later, and what the cyclic shift brings together from opposite borders is
    kept apart. An axis of up to WINDOW places is one window and is not shifted.
    Shapes: [B, D, H, W, C] → the same.
    """

    def __init__(self, channels: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.shifted = heads, shifted
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:4]
        counts = [-(-length // WINDOW) for length in size]
        window = [-(-length // count) for length, count in zip(size, counts)]
        padding = [count * side - length for length, count, side in zip(size, counts, window)]
        shift = [side // 2 if self.shifted and count > 1 else 0 for side, count in zip(window, counts)]
        x = F.pad(x, [0, 0, *(n for length in reversed(padding) for n in (0, length))])
        x = torch.roll(x, [-n for n in shift], (1, 2, 3)) if any(shift) else x
        bias = self._position_bias(window)
        if any(shift) or any(padding):
            apart = _kept_apart(size, counts, window, shift, x.device)
            bias = bias.masked_fill(apart[:, None], float("-inf"))
        x = self._attend(x, counts, bias)
        x = torch.roll(x, shift, (1, 2, 3)) if any(shift) else x
        return self.proj(x[:, : size[0], : size[1], : size[2]])

    def _attend(self, x: Tensor, counts: Sequence[int], bias: Tensor) -> Tensor:
        """x [B, D, H, W, C] of whole windows, bias [1 or windows, heads, N, N] → [B, D, H, W, C].

        A bias of its own a window goes with the heads, so that it is not repeated for each volume of the batch.
        """
        i, j, k = counts
        groups = "(b i j k) s" if len(bias) == 1 else "b (i j k s)"
        outer = {"i": i, "j": j, "k": k}
        query, key, value = rearrange(
            self.qkv(x),
            f"b (i p) (j q) (k r) (three s c) -> three {groups} (p q r) c",
            three=3,
            s=self.heads,
            **outer,
        )
        bias = bias if len(bias) == 1 else bias.flatten(0, 1)[None]
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        p, q = x.shape[1] // i, x.shape[2] // j
        return rearrange(y, f"{groups} (p q r) c -> b (i p) (j q) (k r) (s c)", p=p, q=q, s=self.heads, **outer)

    def _position_bias(self, window: Sequence[int]) -> Tensor:
        """The table's entries for every pair of places of a window: [1, heads, N, N], N = product of `window`."""
        device = self.relative_position_bias_table.device
        positions = [torch.arange(side, device=device) for side in window]
        d, h, w = (a[:, None] - a[None, :] + WINDOW - 1 for a in positions)
        side = 2 * WINDOW - 1
        rows = d[:, None, None, :, None, None] * side + h[None, :, None, None, :, None]
        index = rows * side + w[None, None, :, None, None, :]
        count = window[0] * window[1] * window[2]
        return self.relative_position_bias_table[index.flatten()].view(1, count, count, -1).permute(0, 3, 1, 2)


def _kept_apart(
    size: Sequence[int], counts: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device
) -> Tensor:
    """Which pairs of a window must not see each other: bool [windows, N, N].

    Along every axis a place belongs to the volume, to what the shift has carried around the border, or to padding;
    two places see each other where they agree in all axes. Each sees itself, so that no row is empty.
    """
    i, j, k = counts
    kinds = []
    for length, count, side, moved in zip(size, counts, window, shift):
        whole = count * side
        position = torch.arange(whole, device=device)
        around = (position >= whole - moved).to(torch.uint8)
        kinds.append(torch.where((position + moved) % whole >= length, 2, around))
    d, h, w = kinds
    kind = d[:, None, None] * 9 + h[None, :, None] * 3 + w[None, None, :]
    kind = rearrange(kind, "(i p) (j q) (k r) -> (i j k) (p q r)", i=i, j=j, k=k)
    return kind[:, :, None] != kind[:, None, :]
