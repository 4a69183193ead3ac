"""The prevalence of what is drawn against that of the training split, as a shift of logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def prior_shift(target: np.ndarray, mask: np.ndarray, weights: Floats, exclusive: bool) -> Floats:
    """What the logits of a network that is trained on drawn studies have too much, float64 [K].

    Per label logit(π′) − logit(π), exclusive classes log π′ − log π: π the prevalence among the studies, π′ among those
    that are drawn by `weights` [N]; 0 where one of them is 0 or 1. Added to the logits within the loss, the network's
    own are those of π: logit adjustment (Menon et al., ICLR 2021, arXiv:2007.07314; Saerens et al. 2002).
    Exact for exclusive classes and for one finding, whose images are drawn by their class alone; of several findings
    per label, as if the others told nothing more of how often an image is drawn.
    """
    known = np.repeat(mask.all(1, keepdims=True), mask.shape[1], axis=1) if exclusive else mask
    before, after = (_prevalence(target, known, own) for own in (np.ones(len(target)), weights))
    defined = (before > 0) & (before < 1) & (after > 0) & (after < 1)
    before, after = np.where(defined, before, 0.5), np.where(defined, after, 0.5)
    shift = np.log(after) - np.log(before)
    return shift if exclusive else shift - (np.log1p(-after) - np.log1p(-before))


def _prevalence(target: np.ndarray, known: np.ndarray, weights: Floats) -> Floats:
    counted = weights[:, None] * known
    total: Floats = (counted * target).sum(0) / np.maximum(counted.sum(0), 1e-12)
    return total
