"""Convolutional block attention: which channels, then which places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import global_average_and_max


class ChannelAttention(nn.Module):
    """sigmoid(fc(avgpool(x)) + fc(maxpool(x))), one bottleneck `fc` shared by both. [B, C, H, W] → [B, C, 1, 1]."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        average, maximum = global_average_and_max(x)[:, :, None, None].chunk(2, dim=1)
        return torch.sigmoid(self.fc(average) + self.fc(maximum))


class SpatialAttention(nn.Module):
    """sigmoid(conv7x7([mean over channels, max over channels])). [B, C, H, W] → [B, 1, H, W]."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], dim=1)))


class CBAM(nn.Module):
    """Channel attention, then spatial attention, each multiplied in. Woo et al., ECCV 2018, arXiv:1807.06521.

    Shapes: [B, C, H, W] → [B, C, H, W].
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(channels, reduction)
        self.spatial_attention = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel_attention(x)
        return x * self.spatial_attention(x)


class PyramidCBAM(nn.Module):
    """A CBAM of its own for each level. Levels in → levels out, same shapes."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.cbam_modules = nn.ModuleList(CBAM(c) for c in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [cbam(x) for cbam, x in zip(self.cbam_modules, features)]
