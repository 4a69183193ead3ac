"""What is drawn for mixup and CutMix: a function of (seed, epoch, number of the batch) and of the batch's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.mixing import Mix

_STREAM = 0x6D6978  # apart from those of order and augmentation


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: α of the Beta(α, α) that λ is drawn from, 0: not used; where both are, each batch gets one of them
    with equal chances. probability: of a batch to be mixed at all.
    """

    seed: int
    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def draw(self, epoch: int, number: int, studies: int, spatial: Sequence[int]) -> Mix | None:
        """For batch `number` of an epoch, with images of so many pixels per axis; None where it is left as it is."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, number, _STREAM)))
        mixed, cut, where = rng.random(), rng.random(), rng.random(len(spatial))
        partner = torch.from_numpy(rng.permutation(studies))
        if mixed >= self.probability or studies < 2:
            return None
        if self.mixup and (not self.cutmix or cut < 0.5):
            return Mix(partner, float(rng.beta(self.mixup, self.mixup)))
        box = cut_box(float(rng.beta(self.cutmix, self.cutmix)), where.tolist(), spatial)
        inside = np.prod([end - first for first, end in box]) / np.prod(spatial)
        return Mix(partner, float(1 - inside), box) if inside else None


def cut_box(share: float, where: Sequence[float], spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(first, end) per axis: (1 − share) of the image, about a centre drawn evenly, as far as it lies within.

    where: a number in [0, 1) per axis. Each side is (1 − share)^(1/d) of the image's, in d dimensions.
    """
    side = (1 - share) ** (1 / len(spatial))
    box = []
    for place, size in zip(where, spatial, strict=True):
        length, centre = int(size * side), int(place * size)
        box.append((max(centre - length // 2, 0), min(centre - length // 2 + length, size)))
    return tuple(box)
