"""Training steps in float32 and bf16, contiguous and channels_last, and compiled; and which of them `auto` takes.

python -m benchmarks.precision                       # writes docs/benchmarks/precision.{md,json}
python -m benchmarks.precision --compile no --backbone resnet50 --repeats 3 --no-write

Whole HybridMedNets with their default attention on random images: forward, loss, backward, clipping, AdamW. All
variants of a network take turns in one run and times are medians. bf16 is measured where the hardware computes it; on
other CPUs it is emulated, which takes many times longer. The same probe that train.py makes says what auto takes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gradient_checkpointing import seconds_of
from benchmarks.pages import Verdict, exit_code, markdown_table, verdict_table, write_page
from configs.default_config import Config
from models import HybridMedNet
from training.builder import resolve_precision
from training.precision import Precision, choose_device, choose_precision, has_bf16
from training.probe import MARGIN, Candidate
from utils.environment import EnvironmentRecord, describe_environment
from utils.process import prepare_process

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "precision.md"
NAMES = ("resnet50", "convnext_tiny", "swin_tiny", "efficientnetv2_s", "vit_small", "densenet121")
COMPILED = "compiled"
# What is wanted of bf16 channels_last over float32, on CPUs with AMX.
WANTED_SPEED = 1.7
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def settings_of(name: str, size: int, batch: int, device: str) -> Config:
    """Of a run with this backbone that leaves both choices to the probe."""
    fixed = ["MODEL.pretrained=false", "TRAIN.mixed_precision=auto", "TRAIN.channels_last=auto"]
    own = [f"MODEL.backbone={name}", f"DATA.image_size={size}", f"TRAIN.batch_size={batch}", f"TRAIN.device={device}"]
    return Config.from_overrides([*fixed, *own]).resolve(tuple("abcdefghijklmn"))


def variants(device: torch.device) -> dict[str, Candidate]:
    """What is compared on a device, by name: float32, and the type that `true` would take, in both layouts."""
    precisions = dict.fromkeys((Precision(device.type, None), choose_precision(True, device)))
    candidates = [Candidate(precision, layout) for precision in precisions for layout in LAYOUTS]
    return {one.name: one for one in candidates}


def training_step(model: nn.Module, candidate: Candidate, images: Tensor, compiled: bool = False) -> Callable[[], None]:
    """A function that makes one training step of a copy of the model."""
    network = copy.deepcopy(model).to(memory_format=candidate.memory_format).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    forward: Callable[[Tensor], Tensor] = torch.compile(network) if compiled else network
    target = torch.zeros(len(images), 14, device=images.device)

    def step() -> None:
        with candidate.precision.autocast():
            logits = forward(images.to(memory_format=candidate.memory_format))
        F.binary_cross_entropy_with_logits(logits.float(), target).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def alternated(steps: dict[str, Callable[[], None]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of every step, all in turn after a first one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            taken[name].append(seconds_of(step, device))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


class Row(TypedDict):
    """Seconds per step by variant, what auto takes, and what its probe took, of one network."""

    name: str
    batch: int
    seconds: dict[str, float]
    auto: str
    probe_seconds: float
    compilation: str


class Figures(TypedDict):
    """All that is measured. bf16: a sentence on this hardware."""

    environment: EnvironmentRecord
    device_name: str
    threads: int
    size: int
    repeats: int
    bf16: str
    rows: list[Row]


def measure(name: str, options: argparse.Namespace, compiling: bool) -> Row:
    """Seconds a step by variant, what auto takes, and what its probe took, of one network."""
    device = choose_device(options.device)
    prepare_process(device)
    config = settings_of(name, options.size, options.batch, str(device))
    torch.manual_seed(0)
    model = HybridMedNet(config).to(device)
    begin = time.perf_counter()
    settled = resolve_precision(config, model, model.backbone.prefers_channels_last).TRAIN
    probe_seconds = time.perf_counter() - begin
    chosen = chosen_name(settled.mixed_precision, settled.channels_last)
    images = torch.randn(options.batch, config.MODEL.in_channels, options.size, options.size, device=device)
    candidates = variants(device)
    steps = {one: training_step(model, candidate, images) for one, candidate in candidates.items()}
    notes = "not compiled"
    if compiling:
        steps[COMPILED] = training_step(model, candidates[chosen], images, compiled=True)
        notes = compilation(steps[COMPILED])
        if not notes.endswith(" s"):
            del steps[COMPILED]
    seconds = alternated(steps, device, options.repeats)
    return {
        "name": name,
        "batch": options.batch,
        "seconds": seconds,
        "auto": chosen,
        "probe_seconds": probe_seconds,
        "compilation": notes,
    }


def chosen_name(mixed_precision: bool | str, channels_last: bool | str) -> str:
    """The variant that settled settings name."""
    kind = mixed_precision or "float32"
    return f"{kind} channels_last" if channels_last else str(kind)


def compilation(step: Callable[[], None]) -> str:
    """'12 s', what a first step took, or what the compiler could not do, which is a result too."""
    begin = time.perf_counter()
    try:
        step()
    except RuntimeError as error:
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return f"{time.perf_counter() - begin:.0f} s"


# ---- the page


def over_fastest(row: Row) -> float:
    """Time of what auto takes over that of the fastest variant that is not compiled."""
    eager = {name: taken for name, taken in row["seconds"].items() if name != COMPILED}
    return eager[row["auto"]] / min(eager.values())


def over_float32(row: Row) -> float:
    """Time of what auto takes over contiguous float32's."""
    return row["seconds"][row["auto"]] / row["seconds"]["float32"]


def verdicts(rows: list[Row]) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough; None where it could not be measured."""
    slowest, furthest = max(map(over_float32, rows)), max(map(over_fastest, rows))
    speeds = [row["seconds"]["float32"] / row["seconds"].get("bf16 channels_last", float("nan")) for row in rows]
    least, known = min(speeds), all("bf16 channels_last" in row["seconds"] for row in rows)
    return [
        ("auto never slower than float32 (5 % is noise)", f"{slowest:.2f}× its time at most", slowest <= 1 + MARGIN),
        (
            "auto within 10 % of the fastest that is not compiled",
            f"{furthest:.2f}× its time at most",
            furthest <= 1.1,
        ),
        (
            f"bf16 channels_last at least {WANTED_SPEED}× float32's speed on a CPU with AMX, every network",
            f"{least:.2f}× at least" if known else "no bf16 here",
            least >= WANTED_SPEED if known else None,
        ),
    ]


def cells(row: Row, columns: list[str]) -> list[str]:
    """A row of the table: milliseconds per image by variant, then what auto takes."""
    fastest = min(row["seconds"].values())
    times = []
    for name in columns:
        taken = row["seconds"].get(name)
        text = "–" if taken is None else f"{1e3 * taken / row['batch']:.1f}"
        times.append(f"**{text}**" if taken == fastest else text)
    notes = [f"{1 / over_float32(row):.2f}×", f"{over_fastest(row):.2f}×", f"{row['probe_seconds']:.1f} s"]
    return [row["name"], *times, row["auto"], *notes]


def columns_of(rows: list[Row]) -> list[str]:
    """All variants that were measured, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row["seconds"]))


def page(figures: Figures) -> str:
    """The Markdown page; every number in it is of this run."""
    machine, rows = figures["environment"], figures["rows"]
    columns = columns_of(rows)
    heading = " | ".join(["network", *columns, "auto takes", "speed over float32", "time over fastest", "probe"])
    compilations = "; ".join(f"{row['name']} {row['compilation']}" for row in rows)
    return f"""# Number format and memory format

Written by `python -m benchmarks.precision` on {machine["time"][:10]}: {figures["device_name"]},
{figures["threads"]} threads, Python {machine["python"]}, torch {machine["packages"]["torch"]}.

Milliseconds per image of a training step (forward, loss, backward, clipping, AdamW) of whole networks with their
default attention at {figures["size"]} px, in steps of {rows[0]["batch"]}. All variants of a network take turns,
{figures["repeats"]} times after a first one; medians. The fastest is bold.

{markdown_table(heading, [cells(row, columns) for row in rows])}

{verdict_table(verdicts(rows))}

*auto takes* what the probe of `TRAIN.mixed_precision=auto` and `TRAIN.channels_last=auto` finds, the same that train.py
makes as it begins; *probe* is what that took. *{COMPILED}* is the same with TRAIN.compile; its first step took:
{compilations}. The probe compiles nothing, and leaves float32 in the layout
that the backbone prefers for a gain of at least {MARGIN:.0%} only.
{figures["bf16"]}
"""


BF16_HERE = "\nbf16 is computed by this hardware."
NO_BF16 = """
This CPU has neither AMX nor AVX-512 bf16: bf16 is emulated here, takes many times longer, and was not measured; auto
does not try it. On a CPU that has it, the same command measures it: `python -m benchmarks.precision`."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where something wanted was missed."""
    options = parse(arguments)
    device = choose_device(options.device)
    prepare_process(device)
    options.batch = options.batch or (4 if device.type == "cpu" else 64)
    rows: list[Row] = []
    begin, text = time.perf_counter(), ""
    for name in options.backbone:
        compiling = options.compile == "yes" and time.perf_counter() - begin < options.compile_seconds
        rows.append(measure(name, options, compiling))
        figures = describe(options, device, rows)
        text = page(figures)
        print(f"{name}: {rows[-1]}", flush=True)
        if not options.no_write:  # after each, as a run may be ended before the last
            write_page(PAGE, text, figures)
        gc.collect()
        torch.compiler.reset()
    print(text)
    return exit_code(verdicts(rows))


def describe(options: argparse.Namespace, device: torch.device, rows: list[Row]) -> Figures:
    """All figures, as plain values."""
    machine = describe_environment(str(device), "each")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine["processor"]
    return {
        "environment": machine,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "size": options.size,
        "repeats": options.repeats,
        "bf16": BF16_HERE if has_bf16(device) else NO_BF16,
        "rows": rows,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", nargs="+", metavar="NAME", default=list(NAMES), help="only these")
    add("--size", type=int, default=224, help="pixels; default: %(default)s")
    add("--batch", type=int, help="images per step; default: 4 on a CPU, else 64")
    add("--repeats", type=int, default=7, help="timed steps of each variant; default: %(default)s")
    add("--device", default="auto", help="default: %(default)s")
    add("--compile", choices=("no", "yes"), default="yes", help="compile what auto takes too; default: %(default)s")
    add("--compile-seconds", type=float, default=600, help="compile nothing new after these; default: %(default)s")
    add("--no-write", action="store_true", help="print only")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
