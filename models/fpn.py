"""Feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramidNetwork(nn.Module):
    """Top-down pathway with lateral connections: every level sees the coarser ones.

    p_i = conv3x3(l_i), l_i = conv1x1(c_i) + nearest_upsample(l_{i+1}).
    Source: Lin et al., CVPR 2017, arXiv:1612.03144.

    Shapes: levels [B, in_channels[i], H_i, W_i], finest first → the same sizes with `out_channels` channels.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        self.output_convs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)
        self.feature_channels = [out_channels] * len(in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, features)]
        for i in range(len(laterals) - 1, 0, -1):
            above = F.interpolate(laterals[i], size=laterals[i - 1].shape[2:], mode="nearest")
            laterals[i - 1] = laterals[i - 1] + above
        return [conv(x) for conv, x in zip(self.output_convs, laterals)]
