"""The figures of localisation: trained network, random network and chance side by side, as plain values and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NotRequired, Required, TypedDict

from explain.localization import DRAWS, MAP_FRACTION, TOLERANCE, Ends, Finding, MeanAndInterval, Summary, summarise
from explain.sanity import LIMIT, Check
from utils.text import printable

ALL: Final = "all"


class TrainedAndRandom(TypedDict):
    """The figures of the trained network, and of one with random weights."""

    trained: Summary
    random: Summary


class Localization(TypedDict):
    """all: of every map. classes: name → of its own; those without a region are left out."""

    all: TrainedAndRandom
    classes: dict[str, TrainedAndRandom]


class StageRecord(TypedDict):
    """A Stage: what was randomised, how like the maps then are, and of how many maps that is."""

    randomised: str
    spearman: float
    ssim: float
    compared: int
    maps: int


class SanityRecord(TypedDict):
    """A Check."""

    passed: bool
    limit: float
    stages: list[StageRecord]


class MethodResults(TypedDict, total=False):
    """What localization.json says of a method: figures where regions are annotated, or why there are none."""

    level: Required[str]
    all: TrainedAndRandom
    classes: dict[str, TrainedAndRandom]
    sanity: SanityRecord
    error: str


class About(TypedDict):
    """What the figures are of. studies: where these have several images. regions: 'boxes' or 'masks'; None where
    nothing is annotated."""

    checkpoint: str
    studies: NotRequired[int]
    images: int
    annotated_images: int
    regions: str | None


@dataclass(frozen=True)
class Measured:
    """The findings of one class in one image, by the trained and by the random network. group: whose image."""

    class_name: str
    group: str
    trained: Finding
    random: Finding


def localization(measured: Sequence[Measured], class_names: Sequence[str]) -> Localization:
    """{"classes": {name: {"trained": …, "random": …}}, "all": …}, each as `summarise` has it; classes without a region
    are left out. 'all' counts every map once, so that frequent findings weigh more."""
    found = [name for name in class_names if any(m.class_name == name for m in measured)]
    rows = {name: _both([m for m in measured if m.class_name == name]) for name in found}
    return {ALL: _both(measured), "classes": rows}


def _both(measured: Sequence[Measured]) -> TrainedAndRandom:
    groups = [m.group for m in measured]
    return {
        "trained": summarise([m.trained for m in measured], groups),
        "random": summarise([m.random for m in measured], groups),
    }


_HEAD = ("class", "maps", "hit", "95 %", "random", "chance", "centre", "IoU ≥ half", "IoU area", "random", "chance")


def format_localization(title: str, results: Localization) -> str:
    """A table for people; '–' where a figure is undefined."""
    rows = [_cells(name, row) for name, row in results["classes"].items()]
    rows.append(_cells(f"all {results[ALL]['trained']['maps']:,} maps", results[ALL]))
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in [_HEAD, *rows]
    ]
    rule = "-" * len(lines[0])
    return "\n".join([title, lines[0], rule, *lines[1:-1], rule, lines[-1], *_notes()])


def _notes() -> list[str]:
    return [
        f"hit: the maximum lies in a region or within {TOLERANCE:.0%} of the longest side of it.",
        f"95 %: the wider of Wilson's interval and that of {DRAWS:,} draws of patients.",
        "random: a network of the same architecture with random weights. chance: the share of places that would hit; "
        "centre: how often the image's centre would.",
        f"IoU ≥ half: places from {MAP_FRACTION:g} of the maximum on. IoU area: of as many places as the region has.",
    ]


def _cells(name: str, row: TrainedAndRandom) -> tuple[str, ...]:
    trained, random = row["trained"], row["random"]
    hit = trained["hit"]
    return (
        printable(name),
        f"{trained['maps']:,}",
        _number(hit["value"]),
        _interval(hit, trained["hit_wilson"]),
        _number(random["hit"]["value"]),
        _number(trained["chance"]),
        _number(trained["centre"]),
        _number(trained["iou"]["value"]),
        _number(trained["iou_area"]["value"]),
        _number(random["iou_area"]["value"]),
        _number(trained["chance_iou_area"]),
    )


def _interval(drawn: MeanAndInterval, wilson: Ends) -> str:
    """Draws of patients know that images of one are alike; Wilson's knows that none of ten is not never."""
    return f"[{_number(min(drawn['low'], wilson['low']))}, {_number(max(drawn['high'], wilson['high']))}]"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def sanity_values(check: Check) -> SanityRecord:
    """The check as plain values."""
    return {
        "passed": check.passed,
        "limit": LIMIT,
        "stages": [
            {
                "randomised": stage.name,
                "spearman": stage.correlation,
                "ssim": stage.ssim,
                "compared": stage.compared,
                "maps": stage.maps,
            }
            for stage in check.stages
        ],
    }


def format_sanity(check: Check) -> str:
    """A line a stage, and the verdict."""
    width = max(len(stage.name) for stage in check.stages)
    lines = ["randomised, head first (all before it too)    Spearman  SSIM  maps compared"]
    lines += [
        f"  {stage.name.ljust(max(width, 42))}  {_number(stage.correlation):>8}  {_number(stage.ssim):>4}  "
        f"{stage.compared} of {stage.maps}"
        for stage in check.stages
    ]
    last = check.stages[-1].correlation
    verdict = (
        "passed: the maps of a network of random weights are others"
        if check.passed
        else f"FAILED: random weights give nearly the same maps (rank correlation {last:.2f} > {LIMIT}): they show the "
        "image, not what the network learned"
    )
    return "\n".join([*lines, f"sanity check {verdict}"])
