"""The page of benchmarks.coverage: what each cell held, a summary of each figure, and whether it is as wanted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import scipy

from benchmarks.coverage_truth import VALUES
from benchmarks.pages import Verdict, markdown_table, verdict_table
from utils.environment import EnvironmentRecord
from utils.intervals import Interval

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "coverage.md"
LEAST, LOW, HIGH, ENOUGH = 0.90, 0.93, 0.97, 20
# A cell misses a limit where it does by more than so many standard errors of the simulation.
ERRORS = 2.0
# Of fewer intervals a cell says nothing.
FEWEST = 40
# Fewer images than that on either side of a proportion: no method has 95 % exactly, see the page.
FEWEST_EVENTS = 5


@dataclass(frozen=True)
class Cell:
    """A figure in one design.

    auroc: that the population has. truth: what the figure is (the mean where it differs between samples). n: images
    that it is of. samples: in which it is defined. intervals: how many of these have one. held: how many of them
    hold the truth. width: their mean; None without any.
    """

    figure: str
    design: str
    auroc: float
    truth: float
    n: float
    samples: int
    intervals: int
    held: int
    width: float | None

    @property
    def coverage(self) -> float:
        """The share of intervals that hold the truth."""
        return self.held / self.intervals if self.intervals else math.nan

    @property
    def judged(self) -> bool:
        """Whether there are intervals enough."""
        return self.intervals >= FEWEST

    @property
    def inner(self) -> bool:
        """Whether a proportion of so many images is one of events enough on both sides."""
        return min(self.truth, 1 - self.truth) * self.n >= FEWEST_EVENTS

    def below(self, limit: float) -> bool:
        """Whether coverage lies below by more than chance."""
        return self.judged and self.coverage < limit - ERRORS * math.sqrt(limit * (1 - limit) / self.intervals)

    def above(self, limit: float) -> bool:
        """Whether coverage lies above by more than chance."""
        return self.judged and self.coverage > limit + ERRORS * math.sqrt(limit * (1 - limit) / self.intervals)


class Tally:
    """Counts what intervals held, a cell for each figure, design and true AUROC."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, float], list[tuple[Interval, float]]] = {}
        self.sizes: dict[tuple[str, str, float], float] = {}

    def add(self, figure: str, design: object, value: float, n: float, interval: Interval, truth: float) -> None:
        """design: shown as text. n: images that the figure is of."""
        if not math.isnan(interval.value):
            key = (figure, str(design), value)
            self.found.setdefault(key, []).append((interval, truth))
            self.sizes[key] = n

    def cells(self) -> Iterator[Cell]:
        """In the order in which their first came."""
        for (figure, design, value), pairs in self.found.items():
            some = [(one, truth) for one, truth in pairs if one.defined]
            held = sum(one.low - 1e-9 <= truth <= one.high + 1e-9 for one, truth in some)
            width = math.fsum(one.high - one.low for one, _ in some) / len(some) if some else None
            truth = statistics.fmean(truth for _, truth in pairs)
            n = self.sizes[figure, design, value]
            yield Cell(figure, design, value, truth, n, len(pairs), len(some), held, width)


def figures_of(cells: Iterable[Cell]) -> list[str]:
    """Those that occur, in order."""
    return list(dict.fromkeys(cell.figure for cell in cells))


WANTED = (
    "never under 90 %",
    "at least 93 % where n ≥ 20",
    "at most 97 % where n ≥ 20 and 5 images or more are expected on both sides of the figure",
)


def judged_by(cells: Iterable[Cell]) -> list[tuple[list[Cell], list[Cell]]]:
    """For each of WANTED the cells that it is about, and those of them that miss it."""
    judged = [cell for cell in cells if cell.judged]
    large = [cell for cell in judged if cell.n >= ENOUGH]
    inner = [cell for cell in large if cell.inner]
    return [
        (judged, [cell for cell in judged if cell.below(LEAST)]),
        (large, [cell for cell in large if cell.below(LOW)]),
        (inner, [cell for cell in inner if cell.above(HIGH)]),
    ]


def verdicts_of(cells: Sequence[Cell]) -> list[Verdict]:
    """What the intervals were to hold, and did."""
    return [_verdict(wanted, *found) for wanted, found in zip(WANTED, judged_by(cells))]


def _verdict(wanted: str, cells: Sequence[Cell], missed: Sequence[Cell]) -> Verdict:
    if not cells:
        return wanted, "no cell", None
    return wanted, f"{len(cells) - len(missed)} of {len(cells)} cells", not missed


def page(cells: Sequence[Cell], machine: EnvironmentRecord, groups: int, seconds: float) -> str:
    """The page as Markdown."""
    error = math.sqrt(0.95 * 0.05 / (4 * groups))
    return PAGE_TEXT.format(
        environment=f"{machine['time'][:10]}: {machine['processor']}, {machine['cores']} cores, "
        f"Python {machine['python']}, NumPy {machine['packages']['numpy']}, SciPy {scipy.__version__}",
        verdicts=verdict_table(verdicts_of(cells)),
        summary=markdown_table(
            "figure | cells, n ≥ 20 | least | median | most | under 93 % | over 97 % | least, n < 20 | no interval",
            [_summary(name, [cell for cell in cells if cell.figure == name]) for name in figures_of(cells)],
        ),
        tables="\n\n".join(_table(name, [cell for cell in cells if cell.figure == name]) for name in figures_of(cells)),
        missed=_missed(cells),
        groups=groups,
        error=f"{100 * error:.1f}",
        mean_error=f"{100 * 2 * error:.1f}",
        minutes=f"{seconds / 60:.0f}",
    )


def _missed(cells: Sequence[Cell]) -> str:
    """A line for each cell under a limit, the lowest first; a line for each figure that is above one."""
    lines = []
    least, low, high = (missed for _, missed in judged_by(cells))
    for wanted, missed in zip(WANTED, (least, low)):
        for cell in sorted(missed, key=lambda one: one.coverage):
            seen = f"{_percent(cell.coverage)} % of {cell.intervals} intervals"
            lines.append(f"- *{wanted}*: {cell.figure}, {cell.design}, AUROC {cell.auroc:g}: {seen}")
    for figure in figures_of(high):
        covered = [cell.coverage for cell in high if cell.figure == figure]
        lines.append(f"- *at most 97 %*: {figure}: in {len(covered)}, up to {_percent(max(covered))} %")
    return "\n".join(lines) or "None."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _summary(name: str, cells: Sequence[Cell]) -> list[str]:
    large = [cell for cell in cells if cell.judged and cell.n >= ENOUGH]
    small = [cell.coverage for cell in cells if cell.judged and cell.n < ENOUGH]
    covered = [cell.coverage for cell in large]
    least, middle, most = (f(covered) if covered else None for f in (min, statistics.median, max))
    without = 1 - sum(cell.intervals for cell in cells) / max(sum(cell.samples for cell in cells), 1)
    counts = (sum(cell.below(LOW) for cell in large), sum(cell.above(HIGH) for cell in large))
    return [
        name,
        str(len(large)),
        *map(_percent, (least, middle, most)),
        *map(str, counts),
        _percent(min(small, default=None)),
        _percent(without),
    ]


def _table(name: str, cells: Sequence[Cell]) -> str:
    found = {(cell.design, cell.auroc): cell for cell in cells}
    designs = list(dict.fromkeys(cell.design for cell in cells))
    heading = "patients | " + " | ".join(f"{value:g}" for value in VALUES)
    rows = [[design, *(_shown(found.get((design, value))) for value in VALUES)] for design in designs]
    return f"### {name[0].upper()}{name[1:]}\n\n{markdown_table(heading, rows)}"


def _shown(cell: Cell | None) -> str:
    if cell is None or not cell.judged or cell.width is None:
        return "–"
    mark = "**" if cell.below(LOW if cell.n >= ENOUGH else LEAST) else ""
    return f"{mark}{_percent(cell.coverage)}{mark} ({cell.width:.2f})"


PAGE_TEXT = """# Coverage of the intervals

Written by `python -m benchmarks.coverage --groups {groups}` on
{environment}.
The whole took {minutes} minutes of one core.

Samples are drawn from populations whose figures are known, evaluated as `evaluate.py` does, and it is counted how
often the 95 % interval holds the true figure. The methods, with sources:
[../evaluation.md](../evaluation.md#intervals).

{verdicts}

**n** is the number of images that a figure is of, as expected: the rarer of positives and negatives for AUROC,
average precision, differences and gaps (of a gap in one group); positives for sensitivity and F1, negatives for
specificity, what is called for PPV, what is not for NPV; all images for Brier score, ECE and accuracy. Images of one
patient count one each. A cell is one figure, design and true AUROC, and is judged where it has at least 40 intervals;
it misses a limit where it does by more than two standard errors of the simulation, which are {error} points each for
a figure of a class at 95 % ({groups} samples of four classes; for Brier and ECE 1.4 times as much) and {mean_error}
for means and accuracy (gaps 1.4 times as much). Of several hundred cells two or three in a hundred lie beyond two
errors by chance alone, on either side.

**Over 97 %** is no error but width to spare. Of a proportion near 0 or 1 no method can avoid it: of 20 images at 0.98
all are right in 67 % of samples, and the interval of that one result either holds 0.98 or does not. The limit of 97 %
is judged where 5 or more images are expected on both sides of the true figure: not for most differences and gaps, nor
for the ECE of calibrated probabilities, whose truth is 0.

## Each figure

Coverage in percent. *No interval*: the share of samples in which the figure has a value but no interval, of all
designs; nearly all of these are designs with a few patients.

{summary}

## Cells that miss something

{missed}

## Populations

Scores are normal and 1 wide, with and without the finding (binormal), so far apart that AUROC is 0.5 … 0.999; the
threshold lies where sensitivity is that number too. The true figures are formulas or integrals of these. Each patient
has the finding with the design's prevalence, so that numbers of positives vary about what the design says. *4 images
each*: 1 to 7, of which scores are correlated by 0.5, labels by 0.8 before they are cut into yes and no. Four classes,
whose mean is taken, share 0.4 of their noise. *Calibrated* probabilities are what they say; *overconfident* ones have
2.5 times the logit, moved by 0.5. Differences: two models that share 0.6 of the noise, equal in every second sample,
else the other's scores 0.8 as far apart. Gaps: all groups equal in every second sample, else one with 0.8 of the
distance. Accuracy: two exclusive classes of the design's prevalence, each right with that chance. 200 draws of
patients where a method takes draws (`evaluate.py` takes 2,000).

## Cells

Coverage in percent (mean width), by true AUROC; bold: under 93 %, or under 90 % where n < 20, by more than chance. –:
fewer than 40 intervals. True values, n and numbers of intervals are in [coverage.json](coverage.json).

{tables}
"""
