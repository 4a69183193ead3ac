"""Convolutional block attention: which channels, then which places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.attention.pyramid import CBAMMaps, PyramidAttention, level_step, observed_step
from models.layers import conv_nd, global_average_and_max
from utils.blocks import Block


class ChannelAttention(nn.Module):
    """sigmoid(fc(avgpool(x)) + fc(maxpool(x))), one bottleneck `fc` shared by both. [B, C, *spatial] → [B, C, 1 …]."""

    def __init__(self, channels: int, reduction: int = 16, spatial_dims: int = 2) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc = nn.Sequential(
            conv_nd(spatial_dims, channels, hidden, 1, bias=False),
            nn.ReLU(),
            conv_nd(spatial_dims, hidden, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = global_average_and_max(x)
        average, maximum = pooled.reshape(*pooled.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        return torch.sigmoid(self.fc(average) + self.fc(maximum))


class SpatialAttention(nn.Module):
    """sigmoid(conv([mean over channels, max over channels])), 7 places per axis. [B, C, *spatial] → [B, 1,
    *spatial].
    """

    def __init__(self, kernel_size: int = 7, spatial_dims: int = 2) -> None:
        super().__init__()
        self.conv = conv_nd(spatial_dims, 2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """The gate before its sigmoid."""
        gate: Tensor = self.conv(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], dim=1))
        return gate


class CBAM(nn.Module):
    """Channel attention, then spatial attention, each multiplied in. Woo et al., ECCV 2018, arXiv:1807.06521.

    Shapes: [B, C, *spatial] → [B, C, *spatial], `spatial_dims` spatial axes; observed: and the spatial gate before its
    sigmoid [B, *spatial].
    """

    def __init__(self, channels: int, reduction: int = 16, spatial_dims: int = 2) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(channels, reduction, spatial_dims)
        self.spatial_attention = SpatialAttention(spatial_dims=spatial_dims)

    def forward(self, x: Tensor, observed: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        x = x * self.channel_attention(x)
        if not observed:
            return x * self.spatial_attention(x)
        gate = self.spatial_attention.logits(x)
        return x * torch.sigmoid(gate), gate[:, 0]

    def attention_maps(self, x: Tensor) -> CBAMMaps:
        """What `forward` multiplies x with."""
        channel = self.channel_attention(x)
        return CBAMMaps(channel.flatten(1), self.spatial_attention(x * channel))


class PyramidCBAM(PyramidAttention):
    """A CBAM of its own for each level. Levels in → levels out, same shapes."""

    observes = "gates"

    def __init__(self, channels: Sequence[int], spatial_dims: int = 2) -> None:
        super().__init__()
        self.cbam_modules = nn.ModuleList(CBAM(c, spatial_dims=spatial_dims) for c in channels)

    def steps(self, observed: bool = False) -> list[Block]:
        if observed:
            return [observed_step(i, partial(cbam, observed=True), [cbam]) for i, cbam in enumerate(self._cbams())]
        return [level_step(i, cbam, [cbam]) for i, cbam in enumerate(self.cbam_modules)]

    def attention_maps(self, features: Sequence[Tensor]) -> dict[int, CBAMMaps]:
        return {i: cbam.attention_maps(x) for i, (cbam, x) in enumerate(zip(self._cbams(), features))}

    def _cbams(self) -> list[CBAM]:
        return [cbam for cbam in self.cbam_modules if isinstance(cbam, CBAM)]
