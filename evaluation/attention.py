"""Whether a network looks at annotated regions: means over regions, with intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evaluation.bootstrap import bootstrap
from evaluation.records import AttentionResults
from evaluation.results_table import with_interval
from evaluation.scored_split import DEFAULT_BOOTSTRAP, BootstrapSettings, Floats
from utils.intervals import Interval


def attention_results(
    energy: ArrayLike,
    hit: ArrayLike,
    area: ArrayLike,
    patients: Sequence[str],
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> AttentionResults:
    """Means over N regions of at least one patient; intervals are percentiles over draws of patients.

    energy: the share of a map that lies inside. hit: whether its maximum does. area: the region's share of the image.
    patients: whose each is. An interval of a single patient, or of values that are all alike, has no width.
    """
    values = np.stack([np.asarray(energy, np.float64), np.asarray(hit, np.float64)])
    names, member = np.unique(np.asarray(patients, str), return_inverse=True)
    count = np.bincount(member, minlength=len(names)).astype(np.float64)
    sums = np.stack([np.bincount(member, one, len(names)) for one in values])

    def means(weights: Floats) -> dict[str, Floats]:
        return {"mean": (sums @ weights) / (count @ weights)}

    (drawn,) = bootstrap([means], len(names), settings)
    tail = 50 * (1 - settings.level)
    low, high = np.percentile(drawn["mean"], (tail, 100 - tail), axis=1)
    inside, pointing = (
        Interval(float(mean), float(a), float(b)).as_dict() for mean, a, b in zip(values.mean(1), low, high)
    )
    return {
        "regions": values.shape[1],
        "patients": len(names),
        "energy_inside": inside,
        "pointing_game": pointing,
        "area": float(np.mean(np.asarray(area, np.float64))),
    }


def attention_sentence(found: AttentionResults) -> str:
    """For the report and the terminal."""
    return (
        f"Maps against {found['regions']:,} annotated regions of {found['patients']:,} patients: energy inside "
        f"{with_interval(found['energy_inside'])} (an even map: {found['area']:.3f}), pointing game "
        f"{with_interval(found['pointing_game'])}. Maps are class activation maps on the fused map; intervals are "
        "percentiles of bootstrap draws of patients. Looking there is no proof of being right."
    )
