"""Fusion of a pyramid into one map, with weights that depend on the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BatchNorm2d, resize_to


class DynamicFusion(nn.Module):
    """A weighted sum of all levels at the size of one of them; the weights are a softmax over levels.

    y = Σ_i w_i · ReLU(BN_i(resize(conv_i(x_i)))), w = softmax(W · concat_i mean(resize(x_i)) + b).

    Convolutions of 1×1 are done at each level's own size: they commute with resizing, which is linear with
    weights that add up to one. With target_level 0 this is the previous release's fusion, number by number.

    Shapes: levels [B, channels[i], H_i, W_i], finest first → [B, out_channels, H_t, W_t], t = target_level.
    """

    def __init__(self, channels: Sequence[int], out_channels: int = 512, target_level: int = 0) -> None:
        super().__init__()
        self.target_level = target_level
        self.scale_convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, out_channels, 1), BatchNorm2d(out_channels), nn.ReLU()) for c in channels
        )
        self.weight_generator = nn.Linear(sum(channels), len(channels))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        height, width = features[self.target_level].shape[2:]
        size = (height, width)
        weights = self.level_weights(features, size)
        fused: Tensor | None = None
        for i, (x, branch) in enumerate(zip(features, self.scale_convs)):
            conv, norm, activation = branch.children()
            shrinks = x.shape[2] > size[0]
            x = conv(resize_to(x, size)) if shrinks else resize_to(conv(x), size)
            level = activation(norm(x)) * weights[:, i, None, None, None]
            fused = level if fused is None else fused + level
        assert fused is not None
        return fused

    def level_weights(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """How much each level counts: [B, levels], rows add up to one."""
        means = torch.cat([mean_after_resize(x, size) for x in features], dim=1)
        return self.weight_generator(means).softmax(dim=1)


def mean_after_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean of every channel of `resize_to(x, size)` without building it: [B, C, H, W] → [B, C].

    Bilinear growth counts border pixels differently, but separably: the mean is a weighted one.
    """
    if x.shape[2] >= size[0]:
        return resize_to(x, size).mean((2, 3))
    rows, columns = (_growth_weights(old, new, x) for old, new in zip(x.shape[2:], size))
    return torch.einsum("bchw,h,w->bc", x, rows, columns)


def _growth_weights(old: int, new: int, like: Tensor) -> Tensor:
    """How much each of `old` samples adds to the mean of `new` linearly interpolated ones: [old]."""
    identity = torch.eye(old, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(identity, size=new, mode="linear", align_corners=False)[0].mean(-1)
