"""Weights of images and images for volumes, and what the 3-D backbones share."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import ModelError

VOLUME_STRIDES = (4, 8, 16, 32)


def inflate(weight: Tensor, depth: int) -> Tensor:
    """A 2-D kernel [out, in, h, w] → [out, in, depth, h, w] that does to a volume the same in every slice.

    Repeated along depth and divided by its length, so that a volume that is constant along depth gives what a slice of
    it gives. Source: Carreira & Zisserman, CVPR 2017, arXiv:1705.07750, section 2.4.1.
    """
    return (weight / depth)[:, :, None].repeat(1, 1, depth, 1, 1)


def pad_to_divisor(x: Tensor, size_divisor: int, first_axis: int) -> Tensor:
    """Zeros at the end of the three axes from `first_axis` on, so that each is a multiple; x itself where it is."""
    missing = [-length % size_divisor for length in x.shape[first_axis : first_axis + 3]]
    if not any(missing):
        return x
    behind = [0, 0] * (x.ndim - first_axis - 3)
    return F.pad(x, behind + [n for length in reversed(missing) for n in (0, length)])


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Every tensor of the module from `weights`, none left over; else ModelError with what differs."""
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ModelError(f"these weights do not fit {name}: {' '.join(str(error).split())[:600]}") from None
