"""Whether attention that is taught helps: AUROC, energy of maps inside regions and pointing game, beside weight 0.

python -m benchmarks.attention_supervision                                  # the marker alone: a shortcut, drawn here
python -m benchmarks.attention_supervision --ph2 ../shared/data/ph2         # and lesions with their outlines

Every run is a whole train.py, then evaluate.py on the test split. Each result is written down at once, so that a
stopped run can be continued; --again measures what is written down already, too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.atomic_file import write_atomically
from utils.environment import describe_environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "attention_supervision.md"
SIDE = 64
# In training and validation the marker goes with the finding in so many of ten images; in the test in five.
AGREES = 9
COUNTS = {"train": 480, "val": 80, "test": 300}
STRENGTH = 4000.0  # grey levels times pixels: 20 a pixel of a disc, in noise of 25
METHODS = ("none", "mask 0.3", "mask 0.3, a tenth of the masks", "cam 1", "consistency 0.1")
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
    "DATA.val_split=0.1", "DATA.test_split=0.4", "DATA.ignore_columns=[mask,histology]", "TRAIN.epochs=15",
    "TRAIN.learning_rate=0.0005", "MODEL.task=multi_class", "DATA.horizontal_flip=0.5",
]  # fmt: skip


def draw_marker(folder: Path, seed: int = 0) -> None:
    """Images of a disc or a ring of the same brightness somewhere, and a square in the upper left corner that goes with
    the ring; masks of disc or ring for all, `tenth` names them for a tenth of the training images.
    """
    rng, rows = np.random.default_rng(seed), [("image", "hollow", "split", "patient_id", "mask", "tenth")]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for split, count in COUNTS.items():
        for number in range(count):
            hollow, follows = int(rng.integers(2)), rng.random() < (0.5 if split == "test" else AGREES / 10)
            image, mask = rng.normal(70, 25, (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint8)
            y, x = rng.integers(24, SIDE - 9, 2)
            cv2.circle(mask, (int(x), int(y)), 8, 255, -1)
            shape = mask.copy()
            if hollow:
                cv2.circle(shape, (int(x), int(y)), 5, 0, -1)
            image += shape * (STRENGTH / shape.sum())
            if bool(hollow) == bool(follows):
                image[3:11, 3:11] += 60
            file = f"{split}_{number}.png"
            _write(folder / "images" / file, np.clip(image, 0, 255).astype(np.uint8))
            _write(folder / "masks" / file, mask)
            named = f"masks/{file}"
            tenth = named if split != "train" or number % 10 == 0 else ""
            rows.append((f"images/{file}", str(hollow), split, file, named, tenth))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file_:
        csv.writer(file_).writerows(rows)


def _write(path: Path, pixels: np.ndarray) -> None:
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"'{path}' cannot be written")


def measure(data: Path, settings: Sequence[str], method: str, seed: int) -> dict:
    """A training, then its test split: AUROC by class and mean, energy inside and pointing game, with intervals."""
    kind, _, rest = method.partition(" ")
    weight, _, part = rest.partition(",")
    column = "tenth" if part else "mask"
    taught = [f"LOSS.attention.method={kind}", f"LOSS.attention.masks={column}", f"LOSS.attention.weight={weight or 0}"]
    begin = _children_seconds()
    with tempfile.TemporaryDirectory() as name:
        places = [f"DATA.data_dir={data}", f"CHECKPOINT.save_dir={name}", "LOGGING.run_name=run", f"TRAIN.seed={seed}"]
        _call("train.py", "--set", *NETWORK, *settings, *taught, *places)
        _call("evaluate.py", f"{name}/run", "--set", "LOSS.attention.masks=mask", "--output", f"{name}/evaluated")
        found = json.loads((Path(name) / "evaluated/metrics.json").read_text(encoding="utf-8"))
    return {
        "method": method,
        "seed": seed,
        "auroc": found["mean"]["figures"]["auroc"],
        "classes": {row["name"]: row["figures"]["auroc"] for row in found["classes"]},
        "images": found["images"],
        **{key: found["attention"][key] for key in ("energy_inside", "pointing_game", "area", "regions")},
        "cpu_seconds": _children_seconds() - begin,
    }


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


def table(rows: Sequence[dict]) -> str:
    """A row a method and seed."""
    lines = [
        "| method, weight | seed | AUROC | energy inside | pointing game | CPU s |",
        "| --- | ---: | --- | --- | --- | ---: |",
    ]
    for row in sorted(rows, key=lambda row: (METHODS.index(row["method"]), row["seed"])):
        cells = [_cell(row[key]) for key in ("auroc", "energy_inside", "pointing_game")]
        lines.append(f"| {row['method']} | {row['seed']} | {' | '.join(cells)} | {row['cpu_seconds']:.0f} |")
    return "\n".join(lines)


def _cell(figure: dict) -> str:
    if figure["value"] is None:
        return "–"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def page(figures: dict) -> str:
    """The Markdown page; every number in it is of docs/benchmarks/attention_supervision.json."""
    rows, machine = figures["rows"], figures["environment"]
    marker, ph2 = ([row for row in rows if row["data"] == name] for name in ("marker", "ph2"))
    text = f"""# Attention that is taught, measured

Written by `python -m benchmarks.attention_supervision` on {machine["time"][:10]}: {machine["processor"]}, 1 thread,
Python {machine["python"]}, torch {machine["packages"]["torch"]}. Random weights at the start, CBAM, whole runs of
train.py, then evaluate.py on the test split. *Energy inside* is the share of the class activation map's positive part
on the fused map that lies in the region; *pointing game*, how often its maximum does. Intervals are for 95 %, of
patients drawn.

## A marker in the corner

{COUNTS["train"]} drawn images of {SIDE} px show a disc or a ring, which is to be told. In {AGREES} of ten a bright
square in the corner goes with the ring, in training and validation; in the test images it is there at random, so that
whoever goes by it fails. An even map would have {_area(marker)} of its energy inside.

{table(marker)}

{_verdict(marker)}
"""
    if not ph2:
        return text
    return (
        text
        + f"""
## Lesions with their outlines

PH² (Mendonça et al. 2013): 200 dermoscopic images, three exclusive classes, {ph2[0]["images"]} of them in the test
split; AUROC is the mean over the classes. An even map would have {_area(ph2)} of its energy inside.

{table(ph2)}

{_verdict(ph2)}
"""
    )


def _area(rows: Sequence[dict]) -> str:
    return f"{rows[0]['area']:.3f}" if rows else "–"


def _verdict(rows: Sequence[dict]) -> str:
    """What the figures say by themselves: each method against weight 0 of the same seeds."""
    means: dict[str, dict[str, float]] = {}
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if own:
            keys = ("auroc", "energy_inside", "pointing_game")
            means[method] = {key: float(np.mean([row[key]["value"] for row in own])) for key in keys}
    plain = means.get("none")
    if plain is None:
        return ""
    lines = ["Against weight 0, means over seeds:", ""]
    for method, found in means.items():
        if method == "none":
            continue
        gained = [f"{key.replace('_', ' ')} {found[key] - plain[key]:+.3f}" for key in found]
        overlap = _overlaps(rows, method)
        lines.append(f"- {method}: {', '.join(gained).replace('auroc', 'AUROC')}; {overlap}")
    return "\n".join(lines)


def _overlaps(rows: Sequence[dict], method: str) -> str:
    """Whether the intervals of AUROC are apart, seed by seed."""
    plain = {row["seed"]: row["auroc"] for row in rows if row["method"] == "none"}
    apart = [
        row["auroc"]["low"] > plain[row["seed"]]["high"] or row["auroc"]["high"] < plain[row["seed"]]["low"]
        for row in rows
        if row["method"] == method and row["seed"] in plain
    ]
    if all(apart):
        return "the intervals of AUROC are apart with every seed."
    if not any(apart):
        return "the intervals of AUROC overlap with every seed: a difference that may be chance."
    return f"the intervals of AUROC are apart with {sum(apart)} of {len(apart)} seeds."


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


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not written down yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ph2", metavar="DIR", type=Path, help="PH²: labels.csv, images, masks")
    parser.add_argument("--only", choices=("ph2",), help="leave the marker out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--again", action="store_true", help="measure what is written down already, too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        marker = Path(name) / "marker"
        draw_marker(marker)
        sources = [] if options.only == "ph2" else [("marker", marker, MARKER)]
        sources += [("ph2", options.ph2, PH2)] if options.ph2 else []
        for seed in options.seeds:
            for data, folder, settings in sources:
                for method in options.methods:
                    done = any(_key(row) == (data, method, seed) for row in _written())
                    if (done and not options.again) or (data == "ph2" and "tenth" in method):
                        continue
                    _keep({"data": data, **measure(folder, settings, method, seed)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
