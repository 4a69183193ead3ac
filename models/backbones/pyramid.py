"""Four levels from a map of one stride."""

from __future__ import annotations

from torch import nn

from utils.blocks import Block, block, identity


class SimplePyramid(nn.ModuleList):
    """Maps at strides s/4, s/2, s and 2s from one at stride s: transposed convolutions up, pooling down.

    The simple feature pyramid of ViTDet (Li et al., ECCV 2022, arXiv:2203.16527), without its last 1×1 and 3×3
    convolutions, which the fusion that follows has already.

    levels[i]: [B, C, h, w] → [B, C, h / SCALES[i], w / SCALES[i]], rounded up
    """

    SCALES = (0.25, 0.5, 1, 2)

    def __init__(self, channels: int) -> None:
        def twice() -> nn.Module:
            return nn.ConvTranspose2d(channels, channels, 2, stride=2)

        super().__init__(
            [
                nn.Sequential(twice(), nn.GroupNorm(1, channels), nn.GELU(), twice()),
                twice(),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def blocks(self) -> list[Block]:
        """The map x → four levels, finest first."""
        return [block(f"pyramid.{i}", identity, tap=level, last=i == len(self) - 1) for i, level in enumerate(self)]
