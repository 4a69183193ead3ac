"""The sanity check of Adebayo et al.: a map that stays when the weights go explains the image, not the network.

Source: Adebayo et al., NeurIPS 2018, arXiv:1810.03292, its cascading randomisation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage, stats
from torch import Tensor, nn

from configs.errors import ExplanationError

# A backbone is randomised in so many parts, the last one first.
BACKBONE_PARTS = 4
# A rank correlation with the trained network's maps above this, when nothing trained is left, fails the check.
LIMIT = 0.5

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Stage:
    """name: what was randomised, with all before it. correlation: mean Spearman correlation of |map| with the trained
    network's, over images and classes; ssim: the mean structural similarity. compared: maps that could be compared,
    of `maps`: an empty one has no ranks. Both figures are nan where none could."""

    name: str
    correlation: float
    ssim: float
    compared: int
    maps: int


@dataclass(frozen=True)
class Check:
    """The stages, head first, and what follows from the last one, where all weights are random."""

    stages: tuple[Stage, ...]

    @property
    def passed(self) -> bool:
        """Whether the maps changed: also where those of the random network are empty."""
        last = self.stages[-1].correlation
        return math.isnan(last) or last <= LIMIT


def cascade(model: Network, random: Network, backbone: str = "backbone") -> Iterator[tuple[str, Network]]:
    """The network with more and more of its tensors from `random`, from the head to the first layer: (stage, network).

    random: a network of the same architecture with other, random weights. model: not touched.
    The top-level modules go in reverse order; the one named `backbone` in BACKBONE_PARTS runs of tensors, in the
    reverse of the order in which it registers them. One network is changed step by step: use it before the next step.
    Raises ExplanationError where the two have other tensors.
    """
    state, other = model.state_dict(), random.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in other.items()}:
        raise ExplanationError("the random network is not of the same architecture: their tensors differ")
    changed = copy.deepcopy(model)
    for name, keys in _stages(list(state), backbone):
        tensors = changed.state_dict()
        with torch.no_grad():
            for key in keys:
                tensors[key].copy_(other[key])
        yield name, changed


def _stages(keys: Sequence[str], backbone: str) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.partition(".")[0], []).append(key)
    inner = groups.pop(backbone, [])
    stages = [(name, group) for name, group in reversed(groups.items())]
    parts = min(BACKBONE_PARTS, len(inner))
    cuts = [len(inner) * i // max(parts, 1) for i in range(parts + 1)]
    for i in reversed(range(parts)):
        stages.append((f"{backbone}, part {i + 1} of {parts}", inner[cuts[i] : cuts[i + 1]]))
    return stages


def check(model: Network, random: Network, maps: Callable[[Network], Tensor]) -> Check:
    """Compare `maps(model)` with the maps of each stage of the cascade.

    maps: network → [B, K, *spatial], the same images, classes and method each time.
    """
    trained = maps(model).cpu().numpy()
    return Check(tuple(compare(name, trained, maps(stage).cpu().numpy()) for name, stage in cascade(model, random)))


def compare(name: str, before: np.ndarray, after: np.ndarray) -> Stage:
    """Two arrays of maps [B, K, *spatial]."""
    pairs = list(zip(before.reshape(-1, *before.shape[2:]), after.reshape(-1, *after.shape[2:])))
    usable = [(np.abs(a), np.abs(b)) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
    correlations = [float(stats.spearmanr(a, b, axis=None).statistic) for a, b in usable]
    similarities = [ssim(a, b) for a, b in usable]
    means = [float(np.mean(values)) if values else math.nan for values in (correlations, similarities)]
    return Stage(name, means[0], means[1], len(usable), len(pairs))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two arrays in [0, 1]: mean over places, Gaussian windows of σ 1.5, K 0.01 and 0.03.

    Wang et al., IEEE TIP 13 (2004). Borders are mirrored, where the paper leaves them out.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)

    def blur(z: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(z, 1.5, truncate=3.5))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    shared = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    return float((above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
