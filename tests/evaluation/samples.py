"""Made-up splits that several tests share."""

import numpy as np

from evaluation.scored_split import ScoredSplit


def made_up(seed=0, images=240, classes=4, patients=60, digits=2, unknown=0.1, exclusive=False):
    """Scores that rank somewhat, with ties (rounded), unknown labels, and patients of unequal numbers of images."""
    rng = np.random.default_rng(seed)
    if exclusive:
        targets = np.eye(classes)[rng.integers(0, classes, images)]
        mask = np.ones((images, classes), bool)
    else:
        targets = (rng.random((images, classes)) < rng.uniform(0.1, 0.5, classes)).astype(float)
        mask = rng.random((images, classes)) >= unknown
    logits = rng.normal(size=targets.shape) + 1.5 * targets - 0.5
    probabilities = np.round(1 / (1 + np.exp(-logits)), digits)
    names = [f"p{n}" for n in rng.integers(0, patients, images) ** 2 // patients]
    class_names = tuple(f"class {k}" for k in range(classes))
    return ScoredSplit(probabilities, targets, mask, names, class_names, "test", exclusive)
