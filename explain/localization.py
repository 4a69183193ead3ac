"""Whether a heatmap is where the finding is: pointing game and IoU against annotated regions, by class.

The random baselines stand beside every figure: how often a point anywhere, or the image's centre, would hit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from scipy import ndimage

from configs.errors import ExplanationError
from utils.intervals import wilson_interval

# Zhang et al. allow 15 pixels in PASCAL VOC's images, whose longer side is 500.
TOLERANCE = 15 / 500
# The share of a map's maximum from which on a place counts as found.
MAP_FRACTION = 0.5
DRAWS = 2000


def with_tolerance(region: np.ndarray, pixels: float) -> np.ndarray:
    """The region and all that lies within so many pixels of it."""
    if not region.any() or pixels <= 0:
        return region
    return np.asarray(ndimage.distance_transform_edt(~region) <= pixels)


@dataclass(frozen=True)
class Finding:
    """One map against one region.

    hit: the map's maximum lies in the region or within the tolerance; an empty map hits nothing. strict_hit: without
    tolerance. chance: the share of places that would hit. centre: whether the image's centre would.
    iou: of the places at MAP_SHARE of the maximum or more. iou_area: of as many places as the region has, the highest.
    area: the region's share of the image; what iou_area is by chance follows from it.
    """

    hit: bool
    strict_hit: bool
    chance: float
    centre: bool
    iou: float
    iou_area: float
    area: float
    empty: bool = False

    @property
    def chance_iou(self) -> float:
        """The IoU of as many places drawn by chance, in large images: a / (2 − a)."""
        return self.area / (2 - self.area)


def measure(heatmap: np.ndarray, region: np.ndarray, tolerance: float = TOLERANCE) -> Finding:
    """One heatmap [H, W] or [D, H, W] against an annotated region of its shape, bool and not empty.

    tolerance: in parts of the longest side; 0.03 is the published 15 pixels of 500.
    Pointing game: Zhang et al., ECCV 2016, arXiv:1608.00507. Raises ExplanationError for other shapes, and an empty
    region.
    """
    if heatmap.shape != region.shape or not region.any():
        raise ExplanationError(f"a heatmap of {heatmap.shape} needs a region of its shape that is not empty")
    near = with_tolerance(region, tolerance * max(region.shape))
    peak = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    empty = not heatmap.max() > 0
    return Finding(
        hit=bool(near[peak]) and not empty,
        strict_hit=bool(region[peak]) and not empty,
        chance=float(near.mean()),
        centre=bool(near[tuple(side // 2 for side in region.shape)]),
        iou=0.0 if empty else intersection_over_union(heatmap >= MAP_FRACTION * heatmap.max(), region),
        iou_area=0.0 if empty else intersection_over_union(_highest(heatmap, int(region.sum())), region),
        area=float(region.mean()),
        empty=empty,
    )


def _highest(heatmap: np.ndarray, count: int) -> np.ndarray:
    """bool: the `count` highest places; of equal ones the first."""
    chosen = np.zeros(heatmap.size, bool)
    chosen[np.argsort(-heatmap.reshape(-1), kind="stable")[:count]] = True
    return chosen.reshape(heatmap.shape)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """|a ∩ b| / |a ∪ b| of two bool arrays of one shape; nan where both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else math.nan


class Ends(TypedDict):
    """The ends of an interval, nan where undefined."""

    low: float
    high: float


class MeanAndInterval(Ends):
    """The mean of some findings with its interval."""

    value: float


class Summary(TypedDict):
    """What `summarise` gives: how many maps, of how many patients, how many empty; then means of Finding's figures."""

    maps: int
    patients: int
    empty: int
    hit: MeanAndInterval
    strict_hit: MeanAndInterval
    iou: MeanAndInterval
    iou_area: MeanAndInterval
    hit_wilson: Ends
    chance: float
    centre: float
    chance_iou_area: float


def summarise(findings: Sequence[Finding], groups: Sequence[str], seed: int = 0) -> Summary:
    """Rates and means as plain values with intervals.

    groups: whose image it is, for each finding: intervals are percentiles of 2,000 draws of patients, as images of
    one patient are alike; that of `hit_wilson` is Wilson's, as if they were not. nan without findings.
    """
    draws = _draws(groups, seed)

    def drawn(values: Iterable[float]) -> MeanAndInterval:
        return _mean_and_interval(np.array(list(values), np.float64), draws)

    hits = wilson_interval(sum(f.hit for f in findings), len(findings))
    return {
        "maps": len(findings),
        "patients": len(set(groups)),
        "empty": sum(f.empty for f in findings),
        "hit": drawn(f.hit for f in findings),
        "strict_hit": drawn(f.strict_hit for f in findings),
        "iou": drawn(f.iou for f in findings),
        "iou_area": drawn(f.iou_area for f in findings),
        "hit_wilson": {"low": hits.low, "high": hits.high},
        "chance": _mean([f.chance for f in findings]),
        "centre": _mean([f.centre for f in findings]),
        "chance_iou_area": _mean([f.chance_iou for f in findings]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _draws(groups: Sequence[str], seed: int) -> np.ndarray:
    """int [draws, N]: how often each finding counts in each draw of as many patients with replacement."""
    names, member = np.unique(np.array(groups, str), return_inverse=True)
    if not len(names):
        return np.zeros((DRAWS, 0), np.int64)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return drawn[:, member]


def _mean_and_interval(values: np.ndarray, draws: np.ndarray) -> MeanAndInterval:
    if not len(values):
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    low, high = np.percentile(draws @ values / draws.sum(1), (2.5, 97.5))
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}
