"""Whether a network looks at annotated regions: means over regions, with intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evaluation.effective_size import clustered_proportion
from evaluation.records import AttentionResults
from evaluation.results_table import with_interval

# A patient's regions, before their own figures tell, are taken to be alike: the wider interval.
_ALIKE = 1.0


def attention_results(
    energy: ArrayLike, hit: ArrayLike, area: ArrayLike, patients: Sequence[str], level: float = 0.95
) -> AttentionResults:
    """Means over N regions of at least one patient, with intervals that have a width at 0 and at 1 too, see
    `clustered_proportion`; without ends where there is one patient.

    energy: the share of a map that lies inside. hit: whether its maximum does. area: the region's share of the image.
    patients: whose each is.
    """
    names, member = np.unique(np.asarray(patients, str), return_inverse=True)
    counts = np.bincount(member, minlength=len(names))
    sums = [np.bincount(member, np.asarray(one, np.float64), len(names)) for one in (energy, hit)]
    # A mean of shares may vary less than one of hits does.
    inside = clustered_proportion(sums[0], counts, _ALIKE, level, 0.0)
    pointing = clustered_proportion(sums[1], counts, _ALIKE, level)
    return {
        "regions": len(member),
        "patients": len(names),
        "energy_inside": inside.as_dict(),
        "pointing_game": pointing.as_dict(),
        "area": float(np.mean(np.asarray(area, np.float64))),
    }


def attention_sentence(found: AttentionResults) -> str:
    """For the report and the terminal."""
    return (
        f"Maps against {found['regions']:,} annotated regions of {found['patients']:,} patients: energy inside "
        f"{with_interval(found['energy_inside'])} (an even map: {found['area']:.3f}), pointing game "
        f"{with_interval(found['pointing_game'])}. Maps are class activation maps on the fused map; intervals are by "
        "patient. Looking there is no proof of being right."
    )
