"""What is evaluated: the probabilities of a split, beside what is known about its images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.operating_points import confusion_counts
from utils.decision import Task, calls_at
from utils.metrics import NEVER_SEEN

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredSplit:
    """Probabilities and labels of a split's images.

    probabilities: float64 [N, K], finite where known. targets: [N, K], 0 or 1 where known.
    mask: bool [N, K], True where the label is known. patients: N names; images of one name are drawn together.
    class_names: K. split: its name. exclusive: exactly one class per image, and the most probable one is called.
    other_class: where K is 1 and the class one of an exclusive pair, the other one. not_learnt: classes that no image
    of the training split was positive for; their figures enter no mean. own_thresholds: [N, K] of images that were
    scored by several models, each of which calls at its own; they take the place of those that `calls` is given.
    Raises ValueError where these do not fit each other.
    """

    probabilities: Floats
    targets: np.ndarray
    mask: np.ndarray
    patients: Sequence[str]
    class_names: tuple[str, ...]
    split: str = "test"
    exclusive: bool = False
    other_class: str = ""
    not_learnt: frozenset[str] = frozenset()
    own_thresholds: Floats | None = None

    def __post_init__(self) -> None:
        shape = (len(self.patients), len(self.class_names))
        if 0 in shape:
            raise ValueError(f"nothing to evaluate: {shape[0]} images, {shape[1]} classes")
        for name in ("probabilities", "targets", "mask"):
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(np.shape(getattr(self, name)))}")
        if np.asarray(self.mask).dtype != np.bool_:
            raise ValueError(f"mask must be bool, got {np.asarray(self.mask).dtype}")
        known = np.asarray(self.targets)[self.mask]
        if np.count_nonzero((known != 0) & (known != 1)):
            raise ValueError("targets must be 0 or 1 wherever they are known")
        scores = self.probabilities[self.mask]
        if not np.isfinite(scores).all():
            raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} probabilities are not finite")

    @property
    def one_per_image(self) -> bool:
        """Whether exactly one class is called and right per image, so that there is an accuracy."""
        return self.exclusive or bool(self.other_class)

    @property
    def learnt(self) -> NDArray[np.bool_]:
        """Whether a class had a positive image in training, bool [K]."""
        return np.array([name not in self.not_learnt for name in self.class_names])

    def label(self, k: int) -> str:
        """A class's name, marked where it was never positive in training."""
        name = self.class_names[k]
        return f"{name} {NEVER_SEEN}" if name in self.not_learnt else name

    def calls(self, thresholds: ArrayLike) -> NDArray[np.bool_]:
        """What is called at these thresholds [K], bool [N, K]; none are needed where the most probable class is."""
        own = self.own_thresholds
        return calls_at(self.probabilities, thresholds if own is None else own, self.exclusive)

    def confusion(self, thresholds: ArrayLike) -> Floats:
        """`confusion_counts` of what is called, [4, K]."""
        own = self.own_thresholds
        if own is not None and not self.exclusive:  # as distances from them, so that 0 is everyone's
            distances, zeros = self.probabilities - own, np.zeros(len(self.class_names))
            return confusion_counts(distances, self.targets, self.mask, zeros)
        return confusion_counts(self.probabilities, self.targets, self.mask, thresholds, self.exclusive)

    @cached_property
    def clusters(self) -> NDArray[np.intp]:
        """The patient of each image as a number from 0, [N], in the order of names."""
        return np.unique(np.asarray(self.patients, dtype=str), return_inverse=True)[1].reshape(-1)

    @property
    def cluster_count(self) -> int:
        """How many patients there are."""
        return int(self.clusters.max()) + 1 if len(self.clusters) else 0

    def known(self, k: int) -> tuple[Floats, Floats, NDArray[np.intp]]:
        """Probabilities, labels and patients of class k where its label is known, each [n]."""
        rows = self.mask[:, k]
        labels = np.asarray(self.targets)[rows, k].astype(np.float64)
        return np.asarray(self.probabilities, np.float64)[rows, k], labels, self.clusters[rows]

    def only(self, rows: NDArray[np.bool_]) -> ScoredSplit:
        """The same images and patients, with labels known only in some rows, bool [N]: a subgroup."""
        return replace(self, mask=self.mask & rows[:, None])

    def of_other(self, probabilities: Floats) -> ScoredSplit:
        """The same images, scored by another model."""
        return replace(self, probabilities=probabilities)


def scored_by_task(
    task: Task,
    probabilities: Floats,
    targets: np.ndarray,
    mask: np.ndarray,
    patients: Sequence[str],
    split: str = "test",
    not_learnt: Collection[str] = (),
) -> ScoredSplit:
    """A ScoredSplit of the classes that figures are about. probabilities, targets, mask: [N, K] of all classes.

    Of two exclusive classes with a positive one it is that one: the other is its mirror image, and every figure,
    panel and test of it would be there twice.
    """
    measured = list(task.measured)
    return ScoredSplit(
        np.ascontiguousarray(probabilities[:, measured]),
        np.asarray(targets)[:, measured],
        np.asarray(mask)[:, measured],
        patients,
        tuple(task.class_names[k] for k in measured),
        split,
        task.kind == "most_probable_class",
        task.other_class,
        frozenset(not_learnt),
    )


@dataclass(frozen=True)
class BootstrapSettings:
    """How intervals are made.

    draws: how often patients are drawn with replacement. seed: not negative. level: of the intervals.
    threads: how many draw at a time; the figures do not depend on it.
    """

    draws: int = 2000
    seed: int = 0
    level: float = 0.95
    threads: int = 2

    def __post_init__(self) -> None:
        if self.draws < 1 or self.seed < 0 or self.threads < 1 or not 0 < self.level < 1:
            raise ValueError(
                f"a bootstrap needs draws >= 1, seed >= 0, threads >= 1 and 0 < level < 1, not {self.draws}, "
                f"{self.seed}, {self.threads} and {self.level}"
            )


DEFAULT_BOOTSTRAP = BootstrapSettings()
