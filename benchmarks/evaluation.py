"""Evaluation of a split as large as NIH's test list, measured: time, memory, and agreement with scikit-learn.

python -m benchmarks.evaluation             # writes docs/benchmarks/evaluation.{md,json}
python -m benchmarks.evaluation --no-write  # print only

The scores are made up: no image and no network is needed. Every run is a process of its own, so that its peak memory
is its own too; that includes Python, NumPy, SciPy and the made-up scores.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from evaluation.bootstrap import bootstrap
from evaluation.figure_table import drawn_figures
from evaluation.operating_points import OperatingPoint, choose_thresholds, parse_rule
from evaluation.results import compare_scores, evaluate_scores
from evaluation.scored_split import BootstrapSettings, ScoredSplit
from utils.environment import describe_environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "evaluation.md"
IMAGES, PATIENTS, DRAWS = 25_596, 2_797, 2_000
# Positives in NIH's official test list.
POSITIVES = {
    "Atelectasis": 3279,
    "Cardiomegaly": 1069,
    "Consolidation": 1815,
    "Edema": 925,
    "Effusion": 4658,
    "Emphysema": 1093,
    "Fibrosis": 435,
    "Hernia": 86,
    "Infiltration": 6112,
    "Mass": 1748,
    "Nodule": 1623,
    "Pleural_Thickening": 1143,
    "Pneumonia": 555,
    "Pneumothorax": 2665,
}
WANTED_TOTAL, WANTED_BOOTSTRAP, WANTED_MEMORY, WANTED_ERROR = 30.0, 20.0, 2.0, 1e-12


def made_up_split(seed: int = 0) -> tuple[ScoredSplit, dict[str, list[str]]]:
    """Scores of AUROC about 0.8 with NIH's prevalences and patients of very unequal numbers of images; columns."""
    rng = np.random.default_rng(seed)
    prevalence = np.array(list(POSITIVES.values())) / IMAGES
    patients = np.minimum(rng.geometric(1 / 900, IMAGES), PATIENTS) - 1
    patients[:PATIENTS] = np.arange(PATIENTS)
    # Images of a patient share a part of their findings' causes and of the scores' errors.
    shared, alone = rng.normal(size=(PATIENTS, 14))[patients], rng.normal(size=(IMAGES, 14))
    cause = 0.6 * shared + 0.8 * alone
    targets = cause > [np.quantile(column, 1 - fraction) for column, fraction in zip(cause.T, prevalence)]
    errors = 0.5 * rng.normal(size=(PATIENTS, 14))[patients] + 0.9 * rng.normal(size=(IMAGES, 14))
    logits = np.log(prevalence / (1 - prevalence)) + 1.2 * targets + errors
    mask = np.ones(targets.shape, bool)
    names = [f"{n:08d}" for n in patients]
    scored = ScoredSplit(1 / (1 + np.exp(-logits)), targets.astype(float), mask, names, tuple(POSITIVES))
    columns = {
        "sex": rng.choice(["F", "M"], PATIENTS)[patients].tolist(),
        "age": rng.integers(1, 95, PATIENTS)[patients].astype(str).tolist(),
        "view": rng.choice(["AP", "PA"], IMAGES).tolist(),
    }
    return scored, columns


Parts = dict[str, Callable[[ScoredSplit, OperatingPoint, dict[str, list[str]]], object]]
SETTINGS = BootstrapSettings(draws=DRAWS)


def _bootstrap(scored: ScoredSplit, point: OperatingPoint, columns: dict[str, list[str]]) -> object:
    figures = drawn_figures(scored, np.asarray(point.thresholds))
    return bootstrap(figures, scored.cluster_count, SETTINGS)


def _compare(scored: ScoredSplit, point: OperatingPoint, columns: dict[str, list[str]]) -> object:
    noise = np.random.default_rng(1).normal(0, 0.02, scored.probabilities.shape)
    return compare_scores(scored, np.clip(scored.probabilities + noise, 0, 1), "noisier", SETTINGS)


PARTS: Parts = {
    "bootstrap of all figures": _bootstrap,
    "evaluate_scores": lambda scored, point, columns: evaluate_scores(scored, point, settings=SETTINGS),
    "evaluate_scores by sex, age and view": lambda scored, point, columns: evaluate_scores(
        scored, point, columns, SETTINGS
    ),
    "compare_scores": _compare,
}
BOOTSTRAP, TOTAL, SUBGROUPS, COMPARE = PARTS


def run_part(name: str) -> dict[str, float]:
    """Seconds and peak bytes of one part, in this process; making the scores up is not counted as time."""
    scored, columns = made_up_split()
    thresholds = choose_thresholds(scored.probabilities, scored.targets, scored.mask, parse_rule("youden"))
    point = OperatingPoint(thresholds, "youden", "val", IMAGES)
    begin, processor = time.perf_counter(), time.process_time()
    PARTS[name](scored, point, columns)
    return {
        "seconds": time.perf_counter() - begin,
        "processor_seconds": time.process_time() - processor,
        # Linux counts KiB, macOS bytes.
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def in_own_process(name: str) -> dict[str, float]:
    """`run_part`, where nothing else has used memory before."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "--part", name]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def deviations() -> dict[str, float]:
    """The largest difference of our AUROC and average precision from scikit-learn's over the 14 classes."""
    from sklearn import metrics as oracle

    from utils.metrics import classification_metrics

    scored, _ = made_up_split()
    ours = classification_metrics(scored.probabilities, scored.targets, scored.mask, scored.class_names).per_class
    pairs = [(scored.targets[:, k], scored.probabilities[:, k]) for k in range(len(ours))]
    return {
        "AUROC": max(abs(one.auroc - oracle.roc_auc_score(y, p)) for one, (y, p) in zip(ours, pairs)),
        "average precision": max(
            abs(one.average_precision - oracle.average_precision_score(y, p)) for one, (y, p) in zip(ours, pairs)
        ),
    }


def measure(repeats: int) -> dict:
    """All figures, as plain values; parts take turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PARTS}
    for _ in range(repeats):
        for name, done in runs.items():
            done.append(in_own_process(name))
    return {
        "environment": describe_environment("cpu", "float64"),
        "threads": SETTINGS.threads,
        "draws": DRAWS,
        "repeats": repeats,
        "runs": runs,
        "deviations": deviations(),
    }


def verdicts(figures: dict) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough; of times the median counts."""
    seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in figures["runs"].items()}
    memory = max(run["peak_bytes"] for runs in figures["runs"].values() for run in runs) / 1e9
    error = max(figures["deviations"].values())
    found = [
        (f"the bootstrap in under {WANTED_BOOTSTRAP:g} s", seconds[BOOTSTRAP], WANTED_BOOTSTRAP),
        (f"evaluate_scores in under {WANTED_TOTAL:g} s", seconds[TOTAL], WANTED_TOTAL),
    ]
    return [
        *((wanted, f"{value:.1f} s", value < limit) for wanted, value, limit in found),
        (f"under {WANTED_MEMORY:g} GB, all parts", f"{memory:.2f} GB", memory < WANTED_MEMORY),
        (f"AUROC and AP within {WANTED_ERROR:g} of scikit-learn's", f"{error:.1e}", error < WANTED_ERROR),
    ]


def rows(figures: dict) -> list[list[str]]:
    """A line a part: name, median, fastest and processor seconds, memory."""
    found = []
    for name, runs in figures["runs"].items():
        seconds = [run["seconds"] for run in runs]
        processor = statistics.median(run["processor_seconds"] for run in runs)
        memory = max(run["peak_bytes"] for run in runs) / 1e6
        times = [f"{x:.1f} s" for x in (statistics.median(seconds), min(seconds), processor)]
        found.append([name, *times, f"{memory:.0f} MB"])
    return found


def page(figures: dict) -> str:
    """The Markdown page; every number in it is of this run."""
    machine = figures["environment"]
    return f"""# Evaluation, measured

Written by `python -m benchmarks.evaluation` on {machine["time"][:10]}: {machine["processor"]},
{machine["cores"]} cores, Python {machine["python"]}, NumPy {machine["packages"]["numpy"]}.

{IMAGES:,} images of {PATIENTS:,} patients and {len(POSITIVES)} classes, as in NIH's official test list, with its
prevalences and made-up scores; {figures["draws"]:,} draws of patients, {figures["threads"]} threads. Each part ran
{figures["repeats"]} times, in processes of their own, on a machine that others use too: *processor* time is what the
work takes, the rest is waiting for a core. Memory is the whole process at its peak.

{markdown_table("part | median | fastest | processor | peak memory", rows(figures))}

{verdict_table(verdicts(figures))}

- *{BOOTSTRAP}*: AUROC, average precision, sensitivity, specificity, PPV, NPV, F1, Brier score and ECE of
  every class in every draw.
- *{TOTAL}*: that, the figures themselves, DeLong's intervals clustered by patient, and the means.
- *{SUBGROUPS}*: two sexes, four age bands and two views beside it, each with AUROC,
  sensitivity, specificity and their intervals, and three gaps.
- *{COMPARE}*: DeLong's clustered test of every class, and the paired bootstrap of the mean.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where a limit was missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each part; default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--part", choices=list(PARTS), help="measure one part here and print JSON")
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(run_part(options.part)))
        return 0
    figures = measure(options.repeats)
    text = page(figures)
    return report(None if options.no_write else PAGE, text, figures, verdicts(figures))


if __name__ == "__main__":
    sys.exit(main())
