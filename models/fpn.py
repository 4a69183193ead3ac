"""Feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv_nd
from utils.blocks import Block, State, run_plainly


class FeaturePyramidNetwork(nn.Module):
    """Top-down pathway with lateral connections: every level sees the coarser ones.

    p_i = conv3(l_i), l_i = conv1(c_i) + nearest_upsample(l_{i+1}); kernels of 3 and 1 in each of `spatial_dims` axes.
    Source: Lin et al., CVPR 2017, arXiv:1612.03144.

    Shapes: levels [B, in_channels[i], *spatial_i], finest first → the same sizes with `out_channels` channels.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, spatial_dims: int = 2) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(conv_nd(spatial_dims, c, out_channels, 1) for c in in_channels)
        self.output_convs = nn.ModuleList(
            conv_nd(spatial_dims, out_channels, out_channels, 3, padding=1) for _ in in_channels
        )
        self.feature_channels = [out_channels] * len(in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return list(run_plainly(self.steps(), tuple(features)))

    def steps(self) -> list[Block]:
        """One step per level, coarsest first: levels in → levels out."""
        return [Block(f"fpn level {i}", partial(self._reach, i)) for i in reversed(range(len(self.lateral_convs)))]

    def _reach(self, i: int, state: State) -> State:
        """(c_0 … c_i, l_{i+1}, p_{i+2} …) → (c_0 … l_i, p_{i+1}, p_{i+2} …); at i = 0 p_0 takes the place of l_0."""
        levels = list(state)
        lateral = self.lateral_convs[i](levels[i])
        if i + 1 < len(levels):
            above = levels[i + 1]
            lateral = lateral + F.interpolate(above, size=lateral.shape[2:], mode="nearest")
            levels[i + 1] = self.output_convs[i + 1](above)
        levels[i] = lateral if i else self.output_convs[0](lateral)
        return tuple(levels)
