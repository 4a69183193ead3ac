"""Small layers that the rest of the network is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _OneValueBatchNorm(_BatchNorm):
    """Batch normalisation that also trains on a batch with a single value a channel.

    The variance of one value is zero, so PyTorch refuses such a batch. Here it is normalised with the running
    statistics, which it leaves as they are. Any other batch is torch.nn.BatchNorm's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *spatial] → the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, every batch normalisation of `module` uses its running statistics and leaves them as they are."""
    training = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    for norm in training:
        norm.training = False
    try:
        yield
    finally:
        for norm in training:
            norm.training = True


class BatchNorm1d(_OneValueBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d that accepts a batch of one in training."""


class BatchNorm2d(_OneValueBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d that accepts a batch of one 1×1 map in training."""


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, *spatial] → tokens [B, N, C], N = product of spatial."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(rearrange(x, "b c ... -> b (...) c"))


def resize_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] → [B, C, *size]: mean over areas where it shrinks, bilinear where it grows."""
    if x.shape[2:] == size:
        return x
    if all(new <= old for new, old in zip(size, x.shape[2:])):
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pooled_tokens(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] → [B, N, C]: means over a grid of at most side × side cells, row by row."""
    height, width = x.shape[2:]
    return rearrange(F.adaptive_avg_pool2d(x, (min(side, height), min(side, width))), "b c h w -> b (h w) c")


def global_average_and_max(x: Tensor) -> Tensor:
    """[B, C, *spatial] → [B, 2C]: the mean of every channel, then its maximum.

    max, not amax: its gradient goes to one place by index. amax compares values again in the backward pass, which
    gives 0/0 where torch.compile recomputes them in another precision.
    """
    flat = x.flatten(2)
    return torch.cat([flat.mean(-1), flat.max(-1).values], dim=1)
