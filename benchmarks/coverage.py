"""How often the 95 % intervals of evaluate.py hold the true figure, on samples drawn from populations that are known.

python -m benchmarks.coverage                 # writes docs/benchmarks/coverage.{md,json}; 11 minutes, one core
python -m benchmarks.coverage --groups 20     # fewer samples; --no-write prints only
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri

from benchmarks.coverage_page import PAGE, Cell, Tally, page, verdicts_of
from benchmarks.coverage_truth import (
    CALIBRATIONS,
    VALUES,
    Floats,
    Population,
    separation,
    truths,
)
from benchmarks.pages import report
from evaluation.bootstrap import bootstrap
from evaluation.figure_table import (
    AT_THRESHOLD,
    RANKING,
    RELIABILITY,
    CalibrationErrors,
    FigureTable,
    drawn_figures,
    figure_table,
)
from evaluation.operating_points import NOT_CHOSEN, OperatingPoint
from evaluation.results import compare_scores, evaluate_scores
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from evaluation.subgroups import subgroup_figures
from utils.environment import describe_environment
from utils.intervals import Interval, IntervalRecord

# Classes of one task, whose mean is taken; a part of their noise is the same.
CLASSES = 4
SHARED = 0.4
# Of scores and of labels (before they are cut into 0 and 1) of one patient's images.
SCORE_CORRELATION, LABEL_CORRELATION = 0.5, 0.8
# Of the noise of two models that are compared.
SHARED_BY_MODELS = 0.6
# How much of its separation the other model of a comparison, and the other group of a gap, has in every second sample.
LESS = 0.8
SETTINGS = BootstrapSettings(draws=200, threads=1)
# For figures that need no draws.
UNDRAWN = BootstrapSettings(draws=1, threads=1)


@dataclass(frozen=True)
class Design:
    """Patients with and without a finding, expected; images: of a patient in the mean, 1 … 2 images - 1 of them."""

    positives: int
    negatives: int
    images: int = 1

    @property
    def patients(self) -> int:
        return self.positives + self.negatives

    @property
    def prevalence(self) -> float:
        return self.positives / self.patients

    def __str__(self) -> str:
        several = f", {self.images} images each" if self.images > 1 else ""
        return f"{self.positives} + {self.negatives}{several}"


SINGLE = tuple(
    Design(*sides) for sides in ((2, 2), (5, 5), (10, 10), (20, 20), (50, 50), (10, 90), (20, 480), (200, 200))
)
SEVERAL = tuple(Design(*sides, 4) for sides in ((5, 5), (20, 20), (50, 50), (10, 90)))
COMPARED = (*SINGLE[1:5], SINGLE[6], SEVERAL[0], SEVERAL[1])
DIVIDED = (SINGLE[4], SINGLE[6], SINGLE[7], SEVERAL[1], SEVERAL[2])


def mixed(first: Floats, second: Floats, share: float) -> Floats:
    """Of two standard normal arrays one whose variance is by that share the first's."""
    return math.sqrt(share) * first + math.sqrt(1 - share) * second


def correlated(rng: np.random.Generator, patients: NDArray[np.intp], shape: tuple[int, ...], share: float) -> Floats:
    """Standard normal, [n, *shape]; share: the correlation of two images of a patient."""
    of_patients, of_images = (rng.normal(size=(size, *shape)) for size in (patients[-1] + 1, patients.size))
    return mixed(of_patients[patients], of_images, share)


@dataclass(frozen=True)
class Sample:
    """patients: of each image, [n]. labels, noise: [n, groups, CLASSES]."""

    patients: NDArray[np.intp]
    labels: Floats
    noise: Floats

    def scores(self, auroc: float) -> Floats:
        """N(d · label, 1), [n, groups, CLASSES]."""
        return self.noise + separation(auroc) * self.labels


def draw_patients(rng: np.random.Generator, design: Design) -> NDArray[np.intp]:
    """The patient of each image, rising."""
    return np.repeat(np.arange(design.patients), rng.integers(1, 2 * design.images, design.patients))


def draw_noise(rng: np.random.Generator, patients: NDArray[np.intp], groups: int) -> Floats:
    """[n, groups, CLASSES]: that of two images of a patient is correlated, and that of two classes of a group."""
    same, own = (correlated(rng, patients, (groups, k), SCORE_CORRELATION) for k in (1, CLASSES))
    return mixed(same, own, SHARED)


def draw_sample(rng: np.random.Generator, design: Design, groups: int) -> Sample:
    """Each group is a sample of its own, of labels and noise, with the same numbers of images of the patients."""
    patients = draw_patients(rng, design)
    labels = correlated(rng, patients, (groups, CLASSES), LABEL_CORRELATION) < ndtri(design.prevalence)
    return Sample(patients, labels.astype(np.float64), draw_noise(rng, patients, groups))


def scored(patients: NDArray[np.intp], probabilities: Floats, labels: Floats, other_class: str = "") -> ScoredSplit:
    """Everything known."""
    names = [f"{patient:05d}" for patient in patients]
    classes = tuple(map(str, range(labels.shape[1])))
    return ScoredSplit(probabilities, labels, np.ones(labels.shape, bool), names, classes, other_class=other_class)


def one_group(table: FigureTable, first: int) -> FigureTable:
    """The classes of one group as a table of their own: what `figure_table` of these alone would give."""
    k = slice(first, first + CLASSES)
    errors = table.errors and CalibrationErrors(table.errors.bins[k], table.errors.chance[k])
    return replace(
        table,
        values={name: values[k] for name, values in table.values.items()},
        draws={name: values[k] for name, values in table.draws.items()},
        positives=table.positives[k],
        negatives=table.negatives[k],
        confusion=table.confusion[:, k],
        classes=table.classes[k],
        errors=errors,
        learnt=table.learnt[k],
    )


def class_figures(tally: Tally, design: Design, value: float, groups: int, seed: int) -> None:
    """AUROC, average precision and the figures at the threshold of a class, and their means over four classes."""
    _figures(tally, design, Population(value, design.prevalence), (*RANKING, *AT_THRESHOLD), groups, seed)


def probability_figures(tally: Tally, design: Design, value: float, groups: int, seed: int) -> None:
    """Brier score and ECE of a class, and their means, of calibrated and of overconfident probabilities."""
    for calibration in CALIBRATIONS:
        of = Population(value, design.prevalence, calibration)
        _figures(tally, design, of, RELIABILITY, groups, seed, f", {calibration}")


def _figures(
    tally: Tally, design: Design, of: Population, names: Sequence[str], groups: int, seed: int, suffix: str = ""
) -> None:
    sample = draw_sample(np.random.default_rng(seed), design, groups)
    n, limit = sample.patients.size, float(of.probability(np.array(of.threshold)))
    p = of.probability(sample.scores(of.auroc))
    split = scored(sample.patients, p.reshape(n, -1), sample.labels.reshape(n, -1))
    thresholds = np.full(groups * CLASSES, limit)
    drawn = bootstrap(drawn_figures(split, thresholds, names), split.cluster_count, SETTINGS)
    table = figure_table(split, thresholds, drawn, SETTINGS)
    truth = truths(of)
    parts = [one_group(table, group * CLASSES) for group in range(groups)]
    for name in names:
        size = truth.images[name] * design.images * design.patients
        for part in parts:
            for k in range(CLASSES):
                tally.add(name + suffix, design, of.auroc, size, part.interval(name, k), truth.values[name])
            tally.add(f"mean {name}{suffix}", design, of.auroc, size, part.mean(name), truth.values[name])


def accuracy(tally: Tally, design: Design, value: float, groups: int, seed: int) -> None:
    """Of two exclusive classes, each as often right as the other."""
    d, limit = 2 * float(ndtri(value)), OperatingPoint((0.5,), NOT_CHOSEN, None, 0)
    rng, size = np.random.default_rng(seed), design.patients * design.images
    for _ in range(groups):
        sample = draw_sample(rng, design, 1)
        labels, z = (one[:, 0, :1] for one in (sample.labels, sample.noise))
        split = scored(sample.patients, expit(2 * (z + d * (labels - 0.5))), labels, "other")
        found = evaluate_scores(split, limit, None, UNDRAWN)
        tally.add("accuracy", design, value, size, _interval(found["accuracy"]), value)


def difference(tally: Tally, design: Design, value: float, groups: int, seed: int) -> None:
    """Of the AUROC of two models whose noise is in part the same: as good as each other, or one less so."""
    size = min(design.positives, design.negatives) * design.images
    rng = np.random.default_rng(seed)
    for group in range(groups):
        sample = draw_sample(rng, design, 1)
        lesser = less(value) if group % 2 else value
        other = replace(sample, noise=mixed(sample.noise, draw_noise(rng, sample.patients, 1), SHARED_BY_MODELS))
        split = scored(sample.patients, expit(sample.scores(value)[:, 0]), sample.labels[:, 0])
        found = compare_scores(split, expit(other.scores(lesser)[:, 0]), "other", SETTINGS)
        for one in found["classes"]:
            tally.add("difference", design, value, size, _interval(one["difference"]), value - lesser)
        interval = _interval(found["mean"]["difference"])
        tally.add("mean difference", design, value, size, interval, value - lesser)


def gap(tally: Tally, design: Design, value: float, groups: int, seed: int) -> None:
    """Between the mean AUROCs of two or four groups of patients: all of one AUROC, or the first of a lower one."""
    rng = np.random.default_rng(seed)
    for group, parts in product(range(groups), (2, 4)):
        sample = draw_sample(rng, design, 1)
        lesser = less(value) if group % 2 else value
        part = sample.patients % parts
        z = np.where((part == 0)[:, None], sample.scores(lesser)[:, 0], sample.scores(value)[:, 0])
        split = scored(sample.patients, expit(z), sample.labels[:, 0])
        found = subgroup_figures(split, np.full(CLASSES, 0.5), "part", [f"g{one}" for one in part], SETTINGS)["gap"]
        if found is None:
            continue
        of = {f"g{one}": value if one else lesser for one in range(parts)}
        size = min(design.positives, design.negatives) * design.images / parts
        truth = of[found["best"]] - of[found["worst"]]
        tally.add(f"gap of {parts} groups", design, value, size, _interval(found["auroc"]), truth)


def less(auroc: float) -> float:
    """The AUROC of scores that are less far apart."""
    return float(ndtr(LESS * ndtri(auroc)))


def _interval(record: IntervalRecord | None) -> Interval:
    """What `Interval.as_dict` was of."""
    assert record is not None
    value, low, high = (math.nan if end is None else end for end in (record["value"], record["low"], record["high"]))
    return Interval(value, low, high)


# What is measured: of which designs, and the share of the samples.
PARTS: tuple[tuple[Callable[[Tally, Design, float, int, int], None], tuple[Design, ...], float], ...] = (
    (class_figures, (*SINGLE, *SEVERAL), 1.0),
    (probability_figures, (*SINGLE, *SEVERAL), 0.5),
    (accuracy, (*SINGLE[1:5], SINGLE[7], *SEVERAL[:3]), 1.0),
    (difference, COMPARED, 1.0),
    (gap, DIVIDED, 0.5),
)


def measure(groups: int) -> list[Cell]:
    """All figures; groups: samples of each cell, with four classes each."""
    tally = Tally()
    for number, (part, designs, share) in enumerate(PARTS):
        for (i, design), value in product(enumerate(designs), VALUES):
            start = time.perf_counter()
            part(tally, design, value, max(round(groups * share), 1), 1000 * number + 10 * i + VALUES.index(value))
            print(f"{part.__name__}: {design}: {value}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return list(tally.cells())


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where coverage is not as wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=130, help="samples of four classes a cell; default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    start = time.process_time()
    cells, machine = measure(options.groups), describe_environment("cpu", "float64")
    seconds = time.process_time() - start
    text = page(cells, machine, options.groups, seconds)
    figures = {"environment": machine, "seconds": seconds, "cells": [asdict(cell) for cell in cells]}
    return report(None if options.no_write else PAGE, text, figures, verdicts_of(cells))


if __name__ == "__main__":
    sys.exit(main())
