"""Which pixel a cell of a feature map looks at: measured, as no two families of networks agree.

Half of a stride is the usual guess, and right for networks that cut patches. A ResNet's strided convolutions are padded
by as much on both sides, so that its first cell looks at the first pixel: at stride 32 the guess is 15.5 pixels off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from configs.errors import ModelError

# Cells an axis of the image that is measured on, so that the middle one sees no border; odd, so that there is one.
CELLS = 9

_KNOWN: WeakKeyDictionary[nn.Module, dict[int, float]] = WeakKeyDictionary()


class Pyramid(Protocol):
    """feature_strides: pixels per cell, a number per level."""

    feature_strides: list[float]

    def forward_features(self, x: Tensor) -> list[Tensor]: ...


def first_centre(backbone: Pyramid, level: int, x: Tensor) -> float:
    """The pixel, counted from 0, that the first cell of a level is centred on along each axis, as a mean over axes.

    Measured once a backbone and level, on noise: the centroid of the squared gradients of the middle cell, less its
    index times the stride. An image of CELLS cells is used, or one of x's size where the backbone takes no other.
    Volumes are not measured: (stride − 1) / 2, as both families for them cut patches.
    Called in evaluation mode with autograd on. x: [B, C, *spatial], for its device and type.
    """
    stride = backbone.feature_strides[level]
    if x.ndim != 4 or not isinstance(backbone, nn.Module):
        return (stride - 1) / 2
    known = _KNOWN.setdefault(backbone, {})
    if level not in known:
        try:
            known[level] = _measure(backbone, level, stride, x, [round(CELLS * stride)] * 2)
        except ModelError:  # tied to the size it is built for
            known[level] = _measure(backbone, level, stride, x, x.shape[2:])
    return known[level]


def _measure(backbone: Pyramid, level: int, stride: float, x: Tensor, size: Sequence[int]) -> float:
    noise = torch.randn(1, x.shape[1], *size, generator=torch.Generator().manual_seed(0)).to(x).requires_grad_()
    activations = backbone.forward_features(noise)[level]
    middle = [slice((cells - 1) // 2, cells // 2 + 1) for cells in activations.shape[2:]]
    (gradient,) = torch.autograd.grad(activations[0, :, middle[0], middle[1]].square().sum(), noise)
    weight = gradient[0].double().square().sum(0)
    found = []
    for axis, cells in enumerate(activations.shape[2:]):
        along = weight.sum(1 - axis)
        centroid = (along * torch.arange(len(along), device=along.device)).sum() / along.sum()
        found.append(float(centroid) - stride * (cells - 1) / 2)
    return sum(found) / len(found)
