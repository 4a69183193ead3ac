"""What a label is: the codes of a cell, the findings of NIH, the policies for uncertain ones, and coarse classes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from configs.errors import DataError
from utils.text import look_alikes, tell_apart
from utils.words import name_key

NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"
_NO_FINDING_KEYS = frozenset(
    ["nofinding", "nofindings", "未见异常", "未见明显异常", "无异常", "未見異常", "未見明顯異常", "無異常"]
)
UNCERTAIN = -1.0
UNCERTAIN_POLICIES = ("ignore", "zeros", "ones", "smooth")
SMOOTH_RANGE = (0.55, 0.85)


class CoarseGroup(NamedTuple):
    """A coarse class: present if any of the member classes is; if negated, present if none of them is."""

    name: str
    members: tuple[int, ...]
    negated: bool = False


def parse_cell(text: str) -> float:
    """A cell of a class column: '1', '0', '-1' (also '1.0', …) to that code, '' and 'nan' to NaN; else ValueError."""
    text = text.strip()
    try:
        value = float(text) if text else np.nan
    except ValueError:
        value = np.inf
    if np.isnan(value) or value in (1.0, 0.0, UNCERTAIN):
        return value
    raise ValueError(f"{text!r} is not 1, 0, -1 or empty")


def is_no_finding(name: str) -> bool:
    """Whether a name means that nothing was found: 'No Finding', 'no_finding', '未见异常', …"""
    return name_key(name) in _NO_FINDING_KEYS


def nearest(name: str, known: Sequence[str]) -> str:
    """': did you mean …?' for the known name nearest to this one, and in what they differ if they look alike; or ''."""
    alike = next(look_alikes([name], known), None)
    if alike:
        return f": did you mean {alike[1]!r}? They differ: {tell_apart(*alike)}"
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f": did you mean {lowered[close[0]]!r}?" if close else ""


def apply_uncertain(labels: np.ndarray, policy: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Label codes to training targets and the mask of those that count.

    labels: float32 [N, K], 1, 0, -1 (uncertain) or NaN (unknown).
    Returns (targets float32 [N, K] in [0, 1], mask bool [N, K]). Unknown is always masked, with target 0.
    Uncertain by policy: 'ignore' is masked, 'zeros' is 0, 'ones' is 1, 'smooth' is drawn from U(0.55, 0.85): U-Ones
    with label smoothing (Pham et al. 2019, arXiv:1911.06475). A draw depends on (seed, row index, class index) only,
    so call it once with the whole dataset index's labels, not with a split's.
    Raises DataError for another policy or another code.
    """
    if policy not in UNCERTAIN_POLICIES:
        hint = nearest(str(policy), UNCERTAIN_POLICIES)
        raise DataError(f"unknown uncertain_labels {policy!r}{hint} (allowed: {', '.join(UNCERTAIN_POLICIES)})")
    unknown, uncertain = np.isnan(labels), labels == UNCERTAIN
    if not (unknown | uncertain | (labels == 0) | (labels == 1)).all():
        raise DataError("labels must be 1, 0, -1 or NaN")
    targets = np.where(unknown | uncertain, 0.0, labels).astype(np.float32)
    if policy == "ones":
        targets[uncertain] = 1.0
    elif policy == "smooth":
        targets[uncertain] = _smooth_ones(uncertain, seed)
    return targets, ~unknown & ~uncertain if policy == "ignore" else ~unknown


def default_groups(class_names: Sequence[str]) -> tuple[CoarseGroup, ...]:
    """'any finding' and 'no finding' over all classes but one that itself means 'No Finding'."""
    members = tuple(index for index, name in enumerate(class_names) if not is_no_finding(name))
    return CoarseGroup("any finding", members), CoarseGroup("no finding", members, negated=True)


def coarse_targets(
    targets: np.ndarray, mask: np.ndarray, groups: Sequence[tuple[str, Sequence[int], bool]]
) -> tuple[np.ndarray, np.ndarray]:
    """Targets of coarse classes from those of their members.

    targets: float32 [N, K]; mask: bool [N, K], True where known; groups: G CoarseGroups, or tuples like them.
    A group is the maximum of its known members. It is known if one of them is positive (above 0), or if all are
    known; otherwise masked, with target 0. A negated group is one minus that, known in the same cases.
    Returns (float32 [N, G], bool [N, G]). Raises DataError for a group without members or with one out of range.
    """
    coarse = np.zeros((len(targets), len(groups)), np.float32)
    known = np.zeros(coarse.shape, bool)
    for column, (name, members, negated) in enumerate(groups):
        index = _member_index(name, members, targets.shape[1])
        highest = np.where(mask[:, index], targets[:, index], 0.0).max(axis=1)
        known[:, column] = (highest > 0) | mask[:, index].all(axis=1)
        coarse[:, column] = np.where(known[:, column], 1.0 - highest if negated else highest, 0.0)
    return coarse, known


def _member_index(name: str, members: Sequence[int], num_classes: int) -> np.ndarray:
    index = np.asarray(members, np.int64).reshape(-1)
    if not index.size:
        raise DataError(f"coarse group {name!r} has no members")
    if index.min() < 0 or index.max() >= num_classes:
        raise DataError(f"coarse group {name!r} has members {index.tolist()}; classes are 0 to {num_classes - 1}")
    return index


def _smooth_ones(where: np.ndarray, seed: int) -> np.ndarray:
    """One draw from U(*SMOOTH_RANGE) for each True of where, float32, by a counter-based generator."""
    rows, columns = np.nonzero(where)
    state = _mix(np.full(rows.shape, seed % 2**64, np.uint64))
    state = _mix(state ^ _mix(rows.astype(np.uint64)))
    state = _mix(state ^ _mix(columns.astype(np.uint64) + np.uint64(2**32)))
    unit = (state >> np.uint64(11)).astype(np.float64) / 2.0**53
    low, high = SMOOTH_RANGE
    return (low + (high - low) * unit).astype(np.float32)


def _mix(state: np.ndarray) -> np.ndarray:
    """splitmix64's step and finalizer (Steele et al. 2014), modulo 2**64."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
