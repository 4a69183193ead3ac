"""Which sizes of images a backbone takes: found by trying, on tensors that have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from configs.errors import ModelError
from models.backbones.base import BaseVisionBackbone

# The coarsest stride of the registry is 32 (28 at the finest patches), so that from twice of it on every level has two
# cells or more along every axis; only images with a shorter side are tried.
CERTAIN_SIDE = 64
# Sides that are tried in search of one that works.
_SIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError, ArithmeticError)


Make = Callable[[tuple[int, ...]], BaseVisionBackbone]

# (name, size) → what `_least_side` found.
_KNOWN: dict[tuple[str, tuple[int, ...]], int | None] = {}


def refuse_unfit_size(name: str, image_size: Sequence[int], make: Make) -> None:
    """ModelError where a backbone cannot be trained on images of this size, with the least side that works.

    make: builds it for a size. It is called within torch's meta device, and only where a side is below CERTAIN_SIDE.
    Where no size works, which is then not the size's fault, nothing is raised: building says why.
    """
    size = tuple(image_size)
    if min(size) >= CERTAIN_SIDE:
        return
    if (name, size) not in _KNOWN:
        _KNOWN[name, size] = _least_side(size, make)
    least = _KNOWN[name, size]
    if least is not None:
        kind = "images" if len(size) == 2 else "volumes"
        raise ModelError(
            f"'{name}' does not run on {'×'.join(map(str, size))} {kind}: no side may be below {least} pixels. Set "
            f"DATA.image_size (or MODEL.input_size, where it is given) to {least} or more, to which {kind} are "
            "resized, or take another MODEL.backbone"
        )


def _least_side(size: tuple[int, ...], make: Make) -> int | None:
    """None where the size works, or none does; else the least side of a square or cube that does."""
    trials, fails, dims = _Trials(make), min(size), len(size)
    if trials.runs(size):
        return None
    works = next((side for side in _SIDES if side > fails and trials.runs((side,) * dims)), None)
    if works is None:
        return None
    fails = max([fails, *(side for side in _SIDES if side < works)])
    while works - fails > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if trials.runs((middle,) * dims) else (works, middle)
    return works


class _Trials:
    """A backbone on torch's meta device, built once unless it is tied to its size."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.backbone: BaseVisionBackbone | None = None

    def runs(self, size: tuple[int, ...]) -> bool:
        """Whether a training step on one image reaches every level, and each level has a cell."""
        try:
            with torch.device("meta"), torch.no_grad():
                if self.backbone is None or self.backbone.fixed_input_size:
                    self.backbone = self.make(size).train()
                self.backbone.image_size = size
                levels = self.backbone.forward_features(torch.zeros(1, self.backbone.in_channels, *size))
        except (ModelError, *_FAILURES):
            return False
        return all(level.numel() > 0 for level in levels)
