"""Which classes the training split can teach, and which it cannot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from training.losses import Array

logger = logging.getLogger("train")


class KnownLabels(Protocol):
    """Labels of a split: 0 to 1, or anything where the mask is False, [N, K]."""

    @property
    def target(self) -> Array: ...
    @property
    def mask(self) -> Array: ...


def positives_of(labels: KnownLabels) -> list[int]:
    """How many images are known to be positive for each class."""
    return [int(count) for count in ((labels.target > 0.5) & (labels.mask > 0)).sum(axis=0)]


def warn_of_classes(labels: KnownLabels, class_names: Sequence[str]) -> None:
    """Name the classes that no image of the training split is positive for, or none negative: nothing is learnt."""
    negatives = ((labels.target <= 0.5) & (labels.mask > 0)).sum(axis=0)
    for kind, counts in (("positive", np.array(positives_of(labels))), ("negative", negatives)):
        lacking = ", ".join(name for name, count in zip(class_names, counts) if not count)
        if lacking:
            logger.warning(
                "none of the %d images of the training split is %s for %s: nothing is learnt of that%s",
                len(labels.target),
                kind,
                lacking,
                "; the figures are marked, and in no mean" if kind == "positive" else "",
            )
