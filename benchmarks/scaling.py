"""Time and memory of a training step by image size and batch, and by tokens of attention and of Vision Mamba.

python -m benchmarks.scaling             # writes docs/benchmarks/scaling.{md,json}; under 12 minutes on 2 cores
python -m benchmarks.scaling --quick     # three sizes, under 3 minutes

Forward and backward of networks with cross-scale attention, of that attention alone, and of Vision Mamba. All take
turns in one run and times are medians. On a CPU in float32, memory counted by looking at which storages live
(utils.gradient_checkpointing.activation_memory); on CUDA in bf16, memory by torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from benchmarks.gradient_checkpointing import allocated_bytes, build, saved_bytes, seconds_of, step
from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from models.attention.cross_scale import CrossScaleAttention
from training.precision import choose_device
from utils.environment import EnvironmentRecord, describe_environment
from utils.process import prepare_process

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "scaling.md"
NETWORKS = ("resnet18", "resnet50", "convnext_tiny")
SIZES, BATCHES = (128, 224, 384, 512, 768, 1024), (1, 2, 4, 8)
QUICK_NETWORKS, QUICK_SIZES, QUICK_BATCHES = ("resnet18", "convnext_tiny"), (128, 224, 384), (1, 2, 4)
SIZE = 224  # of the images in the table by batch
ATTENTION, MAMBA = "cross-scale attention alone", "vim_tiny"
CHANNELS, STRIDES = (96, 192, 384, 768), (4, 8, 16, 32)  # convnext_tiny's pyramid
# Exponent of time in the number of tokens: 1 is linear.
WANTED_EXPONENT = 1.1


class AttentionAlone(nn.Module):
    """Cross-scale attention over random levels that a backbone with convnext_tiny's pyramid would give."""

    def __init__(self, size: int, batch: int) -> None:
        super().__init__()
        self.attention = CrossScaleAttention(CHANNELS)
        sides = [size // stride for stride in STRIDES]
        # As parameters, so that they get gradients, as a backbone's maps do, and do not count as saved.
        self.levels = nn.ParameterList(torch.randn(batch, c, side, side) for c, side in zip(CHANNELS, sides))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The levels after attention; x is not used."""
        return self.attention(list(self.levels))


@dataclass
class Point:
    """One size and batch of a series. amount: pixels or tokens of a step; bytes: saved for the backward pass."""

    series: str
    size: int
    batch: int
    amount: int
    seconds: float = math.nan
    bytes: int = 0


class Figures(TypedDict):
    """All that is measured. points: each a Point's fields."""

    environment: EnvironmentRecord
    device_name: str
    command: str
    cuda: bool
    threads: int
    repeats: int
    points: list[dict[str, Any]]  # Any: the fields of a Point are of several types, and become one again by name


Work = tuple[Point, nn.Module, Tensor]


def works(
    networks: tuple[str, ...], sizes: tuple[int, ...], batches: tuple[int, ...], device: torch.device
) -> list[Work]:
    """All that is measured: (point, network, input)."""
    found: list[Work] = []
    for name in networks:
        model = build(f"{name}+cross_scale", SIZE).to(device)
        for size, batch in [*((size, 1) for size in sizes), *((SIZE, batch) for batch in batches if batch > 1)]:
            point = Point(f"{name}, by {'size' if batch == 1 else 'batch'}", size, batch, batch * size * size)
            found.append((point, model, torch.randn(batch, 3, size, size, device=device)))
    for size in sizes:
        tokens = sum((size // stride) ** 2 for stride in STRIDES)
        found.append(
            (Point(ATTENTION, size, 1, tokens), AttentionAlone(size, 1).to(device), torch.empty(0, device=device))
        )
        x = torch.randn(1, 3, size, size, device=device)
        found.append((Point(MAMBA, size, 1, (size // 16) ** 2 + 1), build(MAMBA, size).to(device), x))
    return found


def measure(found: list[Work], repeats: int) -> list[Point]:
    """Bytes and median seconds of each, all in turn; the step whose bytes are counted goes before and is not timed."""
    taken: list[list[float]] = [[] for _ in found]
    for number in range(repeats + 1):
        for (point, model, x), times in zip(found, taken):
            cuda = x.device.type == "cuda"
            autocast = torch.bfloat16 if cuda else None
            if number:
                times.append(seconds_of(partial(step, model, x, autocast), x.device))
            else:
                point.bytes = allocated_bytes(model, x, autocast) if cuda else saved_bytes(model, x)
            model.zero_grad(set_to_none=True)
        print(f"round {number} of {repeats}", flush=True)
    for (point, _, _), times in zip(found, taken):
        point.seconds = statistics.median(times)
    return [point for point, _, _ in found]


def exponent(amounts: list[float], values: list[float]) -> float:
    """The slope of a least-squares line through log(values) over log(amounts): values grow as amounts to its power."""
    return statistics.linear_regression(list(map(math.log, amounts)), list(map(math.log, values))).slope


def by_series(points: list[Point]) -> dict[str, list[Point]]:
    """Points in their order; a series by batch begins with the single image of its network's series by size."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.series, []).append(point)
    for name, series in found.items():
        if name.endswith(", by batch"):
            single = found[name.replace("by batch", "by size")]
            series[:0] = [point for point in single if point.size == SIZE]
    return found


def exponents(series: list[Point]) -> tuple[float, float, float]:
    """(of time, of time among the larger points, of bytes), in pixels or tokens."""
    amounts, seconds = [float(p.amount) for p in series], [p.seconds for p in series]
    half = len(series) // 2
    kept = [float(p.bytes) for p in series]
    return exponent(amounts, seconds), exponent(amounts[half - 1 :], seconds[half - 1 :]), exponent(amounts, kept)


def verdicts(points: list[Point]) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough."""
    found = by_series(points)
    rows: list[Verdict] = []
    for name in (ATTENTION, MAMBA):
        time, late, kept = exponents(found[name])
        rows.append(
            (f"{name}: time grows with tokens^{WANTED_EXPONENT} at most", f"{time:.2f}", time <= WANTED_EXPONENT)
        )
        rows.append((f"{name}: the larger sizes too", f"{late:.2f}", late <= WANTED_EXPONENT))
        rows.append((f"{name}: so does memory", f"{kept:.2f}", kept <= WANTED_EXPONENT))
    return rows


# ---- the page


def cells(point: Point) -> list[str]:
    """A row of a table."""
    return [
        f"{point.size} px",
        str(point.batch),
        f"{point.amount:,}",
        f"{1e3 * point.seconds:,.1f} ms",
        f"{point.batch / point.seconds:.2f}",
        f"{1e6 * point.seconds / point.amount:,.2f} µs",
        f"{point.bytes / 2**20:,.1f} MiB",
        f"{point.bytes / point.amount:,.0f}",
    ]


def table(series: list[Point], unit: str) -> str:
    """A table of one series and the exponents under it."""
    heading = f"size | batch | {unit}s | step | images/s | time a {unit} | saved | bytes a {unit}"
    time, late, kept = exponents(series)
    rows = markdown_table(heading, map(cells, series))
    powers = f"Time grows as {unit}s to the power {time:.2f} ({late:.2f} among the larger ones), memory {kept:.2f}."
    return f"{rows}\n\n{powers}"


_MEMORY = {
    False: "the peak of what is kept for the backward pass",
    True: "the peak of allocated memory beyond weights and input",
}


def page(figures: Figures) -> str:
    """The Markdown page; every number in it is of this run."""
    machine, points = figures["environment"], [Point(**row) for row in figures["points"]]
    parts = [
        f"## {name}\n\n{table(series, 'token' if name in (ATTENTION, MAMBA) else 'pixel')}"
        for name, series in by_series(points).items()
    ]
    body = "\n\n".join(parts)
    return f"""# Scaling

Written by `{figures["command"]}` on {machine["time"][:10]}: {figures["device_name"]},
{figures["threads"]} threads, Python {machine["python"]}, torch {machine["packages"]["torch"]}.

Forward and backward, {"bf16" if figures["cuda"] else "float32"}; whole networks with cross-scale attention, at
{SIZE} px where the batch varies. All sizes and batches take turns in one run,
{figures["repeats"]} times after a first one; medians. *Saved* is {_MEMORY[figures["cuda"]]}.

{verdict_table(verdicts(points))}

{body}
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where something wanted was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer networks, sizes and batches")
    add("--sizes", type=int, nargs="+", metavar="PX", help="only these; three at least, multiples of 32")
    add("--backbone", nargs="+", metavar="NAME", help="only these networks")
    add("--repeats", type=int, help="timed steps of each; default: 3, with --quick 2")
    add("--device", default="auto", help="default: %(default)s")
    add("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if options.sizes and (len(options.sizes) < 3 or any(size < 64 or size % 32 for size in options.sizes)):
        parser.error("--sizes: three at least, multiples of 32 from 64 on")
    device = choose_device(options.device)
    prepare_process(device)
    networks = tuple(options.backbone or (QUICK_NETWORKS if options.quick else NETWORKS))
    sizes = tuple(sorted(options.sizes or (QUICK_SIZES if options.quick else SIZES)))
    repeats = options.repeats or (2 if options.quick else 3)
    points = measure(works(networks, sizes, QUICK_BATCHES if options.quick else BATCHES, device), repeats)
    figures = describe(points, device, repeats, options.quick)
    text = page(figures)
    return report(None if options.no_write else PAGE, text, figures, verdicts(points))


def describe(points: list[Point], device: torch.device, repeats: int, quick: bool) -> Figures:
    """All figures, as plain values."""
    cuda = device.type == "cuda"
    machine = describe_environment(str(device), "bf16" if cuda else "fp32")
    return {
        "environment": machine,
        "device_name": torch.cuda.get_device_name(device) if cuda else machine["processor"],
        "command": f"python -m benchmarks.scaling{' --quick' if quick else ''}",
        "cuda": cuda,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "points": [asdict(point) for point in points],
    }


if __name__ == "__main__":
    sys.exit(main())
