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
        return list(run_plainly(self.steps(), State(levels=tuple(features))).levels)

    def steps(self) -> list[Block]:
        """One step per level, coarsest first: levels in → levels out."""
        return [
            Block(f"fpn level {i}", partial(self._reach, i), self._called_for(i))
            for i in reversed(range(len(self.lateral_convs)))
        ]

    def _called_for(self, i: int) -> tuple[nn.Module, ...]:
        """The convolution of level i, and those of the outputs that it lets finish: p_{i+1}, and p_0 at the end."""
        called = [self.lateral_convs[i]]
        if i + 1 < len(self.output_convs):
            called.append(self.output_convs[i + 1])
        return (*called, self.output_convs[0]) if i == 0 else tuple(called)

    def _reach(self, i: int, state: State) -> State:
        """levels c_0 … c_i, x = l_{i+1}, outputs p_{i+2} … → c_0 … c_{i-1}, l_i, p_{i+1} …; at i = 0 levels p_0 …"""
        *finer, level = state.levels
        lateral, outputs = self.lateral_convs[i](level), state.outputs
        if state.x is not None:
            lateral = lateral + F.interpolate(state.x, size=lateral.shape[2:], mode="nearest")
            outputs = (self.output_convs[i + 1](state.x), *outputs)
        if finer:
            return State(lateral, tuple(finer), outputs)
        return State(levels=(self.output_convs[0](lateral), *outputs))
