"""Whether attention that is taught helps: AUROC, energy of maps inside regions and pointing game, beside weight 0.

python -m benchmarks.attention_supervision                                  # the marker alone: a shortcut, drawn here
python -m benchmarks.attention_supervision --ph2 ../shared/data/ph2         # and lesions with their outlines

Every run is a whole train.py; its test split is scored as evaluate.py does it. Each result is written down at once. A
seed of one data set that is not complete is measured anew, as differences are paired; --again: all of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from configs.followed import EVALUATE
from configs.run_data import with_data_of_run
from data.builder import build_evaluation_loader, saved_preprocess, taught_regions
from data.evaluation_data import open_evaluation_data
from evaluation.attention import attention_results
from evaluation.bootstrap import bootstrap
from evaluation.calibration import uncalibrated
from evaluation.operating_points import NOT_CHOSEN, OperatingPoint
from evaluation.results import compare_scores, evaluate_scores
from evaluation.scored_split import DEFAULT_BOOTSTRAP, ScoredSplit
from inference.predictor import Predictor
from models.saved_model import load_models
from training.precision import Precision
from training.region_figures import RegionFigures, score_regions
from utils.atomic_file import write_atomically
from utils.environment import describe_environment
from utils.intervals import Interval, IntervalRecord
from utils.runs.folder import model_file

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "attention_supervision.md"
SIDE = 64
AGREES = 0.95  # how often the marker goes with the finding in training and validation
COUNTS = {"train": 480, "val": 80, "test": 300}
STRENGTH = 4000.0  # grey levels times pixels: 20 a pixel of a disc, in noise of 25
MARKER_STRENGTH = 60.0
METHODS = ("none", "mask 0.3", "mask 0.3, a tenth of the masks", "cam 1", "consistency 0.1")
OF_PH2 = ("none", "mask 0.3", "cam 1")
NETWORK = [
    "MODEL.pretrained=false", "MODEL.attention=cbam", "MODEL.fpn=false", "MODEL.fusion_channels=64",
    "MODEL.dropout=0.1", "DATA.num_workers=0", "TRAIN.device=cpu", "TRAIN.mixed_precision=false",
    "TRAIN.channels_last=false", "TRAIN.batch_size=16", "LOGGING.progress=plain", "LOGGING.tensorboard=false",
]  # fmt: skip
MARKER = [
    "MODEL.backbone=timm/test_resnet", "MODEL.fusion_stride=8", f"DATA.image_size={SIDE}", "DATA.class_names=[hollow]",
    "TRAIN.epochs=9", "TRAIN.learning_rate=0.003",
]  # fmt: skip
PH2 = [
    "MODEL.backbone=resnet18", "MODEL.fusion_stride=16", "DATA.image_size=96", "DATA.train_split=0.5",
    "DATA.val_split=0.1", "DATA.test_split=0.4", "DATA.ignore_columns=[mask,histology]", "TRAIN.epochs=8",
    "TRAIN.learning_rate=0.0005", "MODEL.task=multi_class", "DATA.horizontal_flip=0.5",
]  # fmt: skip

NOTES = """
## What was tried besides, and why it is as it is

By hand, in a loop of its own on the drawing without augmentation and with the marker in 90 % of training (weights at
the end, 300 test images): AUROC with the marker at random; two numbers are two seeds.

| teaching of CBAM's gates | weight 0.3 | weight 1 | a tenth of the masks, 0.3 and 1 |
| --- | --- | --- | --- |
| none | 0.768, 0.780 | | |
| cross-entropy with the region, as it was | 0.746 | | |
| cross-entropy, inside and outside weighed alike | 0.959 | 0.963 | |
| KL(region ‖ gates' share of their sum) | 0.978, 0.980 | 0.999 | 0.940, 0.888 |
| **KL(region ‖ softmax of the gates before their sigmoid)**, as it is | 0.998, 0.998 | 1.000 | 0.981, 0.990 |

- Cross-entropy closed all gates: 0.03 to 0.17 on the region at the four levels, no more than elsewhere. It is least
  with every gate near the region's share of the image, and gates multiply the features.
- With the divergence gates are open at the region (0.9 to 1.0), closed about the marker at the coarse levels (0.05 to
  0.2) and not at the fine ones (0.7 to 0.9). Better AUROC does not come with better maps throughout: weight 1 had the
  best AUROC and less energy inside than weight 0.3 (0.178 against 0.200).
- `cam` has no gradient from a map that is positive nowhere in the region. By the end that were 85 % of the maps of a
  training with weight 1 and, in evaluation, all: energy inside 0.000 in two seeds of two, though AUROC at random rose
  (0.910, 0.987). Two terms with a gradient there did worse and were dropped (one seed): the mean inside, in units of
  the map's mean size, gave energy 0.692 and AUROC 0.497, a network that goes by the marker alone and shows its map on
  the region; a softmax over places 0.338 and 0.792.
- In a toy of two convolutions whose map is averaged behind one gate a place (marker in 90 % of training, one seed), the
  term changed nothing: AUROC at random 0.922 after 0.928. Where attention shares out one, it went from 0.827 and 0.683
  to 0.999 and 0.998.
- A marker with the finding in 90 % of training, with augmentation, is no test: without teaching the network finds the
  finding by itself (AUROC at random 0.987). The share of 95 % was chosen with weight 0 alone.
"""


class Measured(NamedTuple):
    """A network on a test split. marked: bool [N], whether the images have the marker."""

    scored: ScoredSplit
    marked: np.ndarray
    regions: RegionFigures
    of_regions: list[str]  # the patients


def draw_marker(folder: Path, seed: int = 0) -> None:
    """Images of a disc or a ring of the same brightness somewhere, and a square in the upper left corner that goes with
    the ring; masks of disc or ring for all, `tenth` names them for a tenth of the training images.

    A test image is there twice, with and without the square, as one patient.
    """
    rng, rows = np.random.default_rng(seed), [("image", "hollow", "split", "patient_id", "mask", "tenth")]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for split, count in COUNTS.items():
        for number in range(count):
            hollow, follows = int(rng.integers(2)), rng.random() < AGREES
            image, mask = rng.normal(70, 25, (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint8)
            y, x = rng.integers(24, SIDE - 9, 2)
            cv2.circle(mask, (int(x), int(y)), 8, 255, -1)
            shape = mask.copy()
            if hollow:
                cv2.circle(shape, (int(x), int(y)), 5, 0, -1)
            image += shape * (STRENGTH / shape.sum())
            named = f"masks/{split}_{number}.png"
            _write(folder / named, mask)
            tenth = named if split != "train" or number % 10 == 0 else ""
            for marked in (True, False) if split == "test" else (bool(hollow) == bool(follows),):
                shown = image.copy()
                shown[3:11, 3:11] += MARKER_STRENGTH * marked
                file = f"images/{split}_{number}_{'marked' if marked else 'plain'}.png"
                _write(folder / file, np.clip(shown, 0, 255).astype(np.uint8))
                rows.append((file, str(hollow), split, f"{split}_{number}", named, tenth))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file_:
        csv.writer(file_).writerows(rows)


def _write(path: Path, pixels: np.ndarray) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"'{path}' cannot be written")


def train_and_score(data: Path, settings: Sequence[str], method: str, seed: int) -> tuple[Measured, float]:
    """(a training's test split, CPU seconds of the training)."""
    kind, _, rest = method.partition(" ")
    weight, _, part = rest.partition(",")
    column = "tenth" if part else "mask"
    taught = [f"LOSS.attention.method={kind}", f"LOSS.attention.masks={column}", f"LOSS.attention.weight={weight or 0}"]
    begin = _children_seconds()
    with tempfile.TemporaryDirectory() as name:
        places = [f"DATA.data_dir={data}", f"CHECKPOINT.save_dir={name}", "LOGGING.run_name=run", f"TRAIN.seed={seed}"]
        _call("train.py", "--set", *NETWORK, *settings, *taught, *places)
        seconds = _children_seconds() - begin
        return score(Path(name) / "run"), seconds


def score(run: Path) -> Measured:
    """A run's test split, with the masks of all its images."""
    masks = ["LOSS.attention.masks=mask"]
    (saved,) = load_models([model_file(run)], masks, EVALUATE)
    config = with_data_of_run(saved.config, run, None, None, masks)
    data = open_evaluation_data(config, saved.class_names, run, saved.description.get("split_sha256"), True, set())
    backbone, precision = saved.model.backbone, Precision("cpu", None)
    preprocess = saved_preprocess(saved.preprocessing, config, backbone.mean, backbone.std)
    regions = taught_regions(config, data.dataset_index)
    loader = build_evaluation_loader(config, data.dataset_index, data.split.rows("test"), preprocess, regions=regions)
    (logits,), rows = Predictor([saved.model], precision, torch.contiguous_format).over(loader, "test", "plain")
    task = saved.task(data.dataset_index.class_names)
    labels, known = data.known(rows)
    scored = ScoredSplit(
        uncalibrated(logits, task.exclusive), labels, known, data.groups(rows), task.class_names,
        exclusive=task.exclusive,
    )  # fmt: skip
    marked = np.array(["_marked" in name for name in data.images(rows)])
    found = score_regions(saved.model, loader, precision, torch.contiguous_format)
    assert found is not None, "every test image has a mask"
    order = np.argsort(found.index, kind="stable")
    found = RegionFigures(*(values[order] for values in (found.index, found.energy, found.hit, found.area)))
    return Measured(scored, marked, found, data.groups(found.index))


def figures_of(measured: Measured, plain: Measured) -> dict[str, dict[str, object]]:
    """Figure → {value, low, high, difference: of these three against weight 0, paired by patient}."""
    found: dict[str, dict[str, object]] = {}
    everything = np.ones(len(measured.marked), bool)
    goes_with = measured.marked == np.asarray(measured.scored.targets)[:, 0].astype(bool)
    parts = {"AUROC": everything}
    if measured.marked.any():
        parts = {"marker as in training": goes_with, "marker at random": everything, "marker against": ~goes_with}
    for name, rows in parts.items():
        mine, theirs = (_part(one.scored, rows) for one in (measured, plain))
        nowhere = OperatingPoint((math.nan,) * len(mine.class_names), NOT_CHOSEN, None, 0)
        auroc = evaluate_scores(mine, nowhere)["mean"]["figures"]["auroc"]
        paired = compare_scores(mine, theirs.probabilities, "weight 0")["mean"]["difference"]
        found[name] = {key: auroc[key] for key in ("value", "low", "high")} | {"difference": paired}
    own_maps, other = measured.regions, plain.regions
    assert np.array_equal(own_maps.index, other.index), "the same regions"
    hits = [one.hit.astype(float) for one in (own_maps, other)]
    whole = attention_results(own_maps.energy, hits[0], own_maps.area, measured.of_regions)
    for name, key, one in (
        ("energy inside", "energy_inside", own_maps.energy - other.energy),
        ("pointing game", "pointing_game", hits[0] - hits[1]),
    ):
        found[name] = {**whole[key], "difference": mean_difference(one, measured.of_regions)}  # type: ignore[literal-required]
    return found


def mean_difference(differences: np.ndarray, patients: Sequence[str]) -> IntervalRecord:
    """The mean over regions; its interval are percentiles over draws of patients."""
    names, member = np.unique(np.asarray(patients, str), return_inverse=True)
    counts, sums = np.bincount(member), np.bincount(member, differences)
    figures = [lambda weights: {"mean": (sums @ weights)[None] / (counts @ weights)}]
    (drawn,) = bootstrap(figures, len(names), DEFAULT_BOOTSTRAP)
    low, high = np.percentile(drawn["mean"][0], (2.5, 97.5))
    return Interval(float(differences.mean()), float(low), float(high)).as_dict()


def _part(scored: ScoredSplit, rows: np.ndarray) -> ScoredSplit:
    patients = [name for name, taken in zip(scored.patients, rows) if taken]
    return ScoredSplit(
        scored.probabilities[rows], scored.targets[rows], scored.mask[rows], patients, scored.class_names,
        exclusive=scored.exclusive,
    )  # fmt: skip


def _call(script: str, *arguments: str) -> None:
    """As a user would. SystemExit where it fails, which it has said why."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments], env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def _children_seconds() -> float:
    """CPU time of the processes that were called and are over."""
    times = os.times()
    return times.children_user + times.children_system


def tables(rows: Sequence[dict]) -> str:
    """A row a method and seed: the figures, then their differences to weight 0."""
    names = list(rows[0]["figures"])
    heads = [f"| method, weight | seed | {' | '.join(names)} |", f"| --- | ---: |{' --- |' * len(names)}"]
    values, differences = [*heads], [*heads]
    values[0], values[1] = f"{values[0]} CPU s |", f"{values[1]} ---: |"
    for row in sorted(rows, key=lambda row: (METHODS.index(row["method"]), row["seed"])):
        begin, found = f"| {row['method']} | {row['seed']} | ", [row["figures"][name] for name in names]
        values.append(f"{begin}{' | '.join(_cell(one, '') for one in found)} | {row['cpu_seconds']:.0f} |")
        if row["method"] != "none":
            differences.append(f"{begin}{' | '.join(_cell(one['difference'], '+') for one in found)} |")
    return "\n".join([*values, "", "Difference to weight 0 of the same seed, paired by patient:", "", *differences])


def _cell(figure: dict, sign: str) -> str:
    return f"{figure['value']:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"


def verdict(rows: Sequence[dict]) -> str:
    """What the intervals of the differences say by themselves: a line a method."""
    lines = []
    for method in METHODS[1:]:
        own = [row["figures"] for row in rows if row["method"] == method]
        if own:
            said = [f"{name} {_said([figures[name]['difference'] for figures in own])}" for name in own[0]]
            lines.append(f"- {method}: {'; '.join(said)}.")
    return "\n".join(lines)


def _said(differences: Sequence[dict]) -> str:
    better, worse = (sum(one["low"] > 0 for one in differences), sum(one["high"] < 0 for one in differences))
    mean, many = float(np.mean([one["value"] for one in differences])), len(differences)
    words = [f"{word} with {count} of {many} seeds" for word, count in (("better", better), ("worse", worse)) if count]
    return f"{mean:+.3f} ({', '.join(words) or 'may be chance'})"


def page(figures: dict) -> str:
    """The Markdown page; every number of its tables is of docs/benchmarks/attention_supervision.json."""
    rows, machine = figures["rows"], figures["environment"]
    marker, ph2 = ([row for row in rows if row["data"] == name] for name in ("marker", "ph2"))
    text = f"""# Attention that is taught, measured

Written by `python -m benchmarks.attention_supervision` on {machine["time"][:10]}: {machine["processor"]}, 1 thread,
Python {machine["python"]}, torch {machine["packages"]["torch"]}. Random weights at the start, CBAM, whole runs of
train.py, scored as evaluate.py does it, with the weights that were best in validation. *Energy inside* is the share of
the class activation map's positive part on the fused map that lies in the region; *pointing game*, how often its
maximum does. Intervals are for 95 %, of patients; they hold for one trained network each, and seeds differ beside that.
"""
    if marker:
        text += f"""
## A marker in the corner

{COUNTS["train"]} drawn images of {SIDE} px show a disc or a ring, which is to be told. In {AGREES:.0%} of them a bright
square in the corner goes with the ring, in training and in validation, which therefore chooses weights by the marker
too. {COUNTS["test"]} test images are there with and without it. AUROC *as in training*: it goes with the ring in all;
*at random*: all images, so that it says nothing; *against*: it goes with the disc in all, where a network that goes by
it alone has 0. An even map would have {_area(marker)} of its energy inside.

{tables(marker)}

Over the seeds, and of how many the interval is above or below 0:

{verdict(marker)}
"""
    if ph2:
        text += f"""
## Lesions with their outlines

PH² (Mendonça et al. 2013): 200 dermoscopic images, three exclusive classes, half of them to train with,
{ph2[0]["images"]} in the test split; AUROC is the mean over the classes. No shortcut is known, and the lesion is large:
an even map would have {_area(ph2)} of its energy inside.

{tables(ph2)}

Over the seeds, and of how many the interval is above or below 0:

{verdict(ph2)}
"""
    return text + NOTES


def _area(rows: Sequence[dict]) -> str:
    return f"{rows[0]['area']:.3f}"


def _written() -> list[dict]:
    data = PAGE.with_suffix(".json")
    return json.loads(data.read_text(encoding="utf-8"))["rows"] if data.is_file() else []


def _key(row: dict) -> tuple[str, str, int]:
    return row["data"], row["method"], row["seed"]


def _keep(row: dict) -> None:
    """Put a row in the place of the one that it repeats, and make the page anew."""
    rows = [other for other in _written() if _key(other) != _key(row)] + [row]
    figures = {"environment": describe_environment("cpu", "fp32"), "rows": rows}
    write_atomically(PAGE.with_suffix(".json"), (json.dumps(figures, indent=1) + "\n").encode())
    write_atomically(PAGE, page(figures).encode())


def measure(data: str, folder: Path, settings: Sequence[str], methods: Sequence[str], seed: int) -> None:
    """Weight 0, then the others beside it."""
    plain: Measured | None = None
    for method in ("none", *(method for method in methods if method != "none")):
        measured, seconds = train_and_score(folder, settings, method, seed)
        plain = measured if plain is None else plain
        _keep(
            {
                "data": data,
                "method": method,
                "seed": seed,
                "images": len(measured.marked),
                "area": float(measured.regions.area.mean()),
                "figures": figures_of(measured, plain),
                "cpu_seconds": seconds,
            }
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not written down yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ph2", metavar="DIR", type=Path, help="PH²: labels.csv, images, masks")
    parser.add_argument("--only", choices=("ph2",), help="leave the marker out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--again", action="store_true", help="measure what is written down already, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        marker = Path(name) / "marker"
        draw_marker(marker)
        sources: list[tuple[str, Path, list[str], tuple[str, ...]]] = []
        sources += [] if options.only == "ph2" else [("marker", marker, MARKER, METHODS)]
        sources += [("ph2", options.ph2, PH2, OF_PH2)] if options.ph2 else []
        for seed in options.seeds:
            for data, folder, settings, known in sources:
                methods = [method for method in known if method in options.methods]
                there = {_key(row) for row in _written()}
                if options.again or not {(data, method, seed) for method in methods} <= there:
                    measure(data, folder, settings, methods, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
