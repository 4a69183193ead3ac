"""The training loop measured: what it adds to the bare step, where the time goes, and timm's and Lightning's beside it.

python -m benchmarks.loop             # writes docs/benchmarks/loop.{md,json}
python -m benchmarks.loop --quick     # fewer and smaller epochs, printed only
python -m benchmarks.loop --device cuda

Needs benchmarks/requirements.txt. Loops take turns in one run; a ratio is of two epochs of the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from benchmarks.loop_parts import PARTS, WAITING, Drawn, measure_waiting, watch
from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from benchmarks.training_loops import (
    BatchesInMemory,
    Loop,
    Work,
    bare_loop,
    lightning_loop,
    make_work,
    our_trainer,
    timm_loop,
)
from training.loop import TrainingLoop
from utils.environment import EnvironmentRecord, describe_environment
from utils.process import prepare_process
from utils.runs.folder import RunFolder
from utils.runs.recorder import Recorder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "loop.md"
WANTED_OVERHEAD, WANTED_WAITING, WANTED_REST, WANTED_DEVIATION = 0.03, 0.05, 0.03, 0.05
VERSIONS = ("torch", "timm", "lightning")
BARE, AGAIN, OURS, TIMM, LIGHTNING = "bare step", "bare step again", "ours", "timm", "Lightning"
# As in configs/quickstart.yaml: fusion of 256 channels at stride 32.
SMALL = ["MODEL.fpn=false", "MODEL.fusion_channels=256", "MODEL.fusion_stride=32"]
NETWORKS = {
    "resnet18": ["MODEL.backbone=resnet18", "MODEL.attention=none", *SMALL],
    "resnet18, CBAM": ["MODEL.backbone=resnet18", "MODEL.attention=cbam", *SMALL],
    "convnext_tiny": ["MODEL.backbone=convnext_tiny", "MODEL.attention=none", *SMALL],
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured: copies of each network, turns with each, steps of an epoch, images of a batch, their
    edges; and drawn images."""

    copies: int
    turns: int
    steps: int
    batch: int
    pixels: int
    drawn: int
    drawn_pixels: int
    networks: tuple[str, ...] = tuple(NETWORKS)

    def as_dict(self) -> SizesRecord:
        """Plain values for JSON."""
        return {
            "copies": self.copies,
            "turns": self.turns,
            "steps": self.steps,
            "batch": self.batch,
            "pixels": self.pixels,
            "drawn": self.drawn,
            "drawn_pixels": self.drawn_pixels,
            "networks": list(self.networks),
        }


class SizesRecord(TypedDict):
    """Sizes in plain values."""

    copies: int
    turns: int
    steps: int
    batch: int
    pixels: int
    drawn: int
    drawn_pixels: int
    networks: list[str]


FULL = Sizes(copies=3, turns=2, steps=10, batch=8, pixels=96, drawn=160, drawn_pixels=224)
QUICK = Sizes(copies=1, turns=2, steps=4, batch=4, pixels=64, drawn=60, drawn_pixels=96, networks=("resnet18",))
ON_CUDA = Sizes(copies=2, turns=4, steps=40, batch=64, pixels=224, drawn=1200, drawn_pixels=224)


class NetworkFigures(TypedDict):
    """Of one network. seconds: loop → those of its epochs. parts: of each of our epochs, by part.

    deviations: loop → how far its weights are from the bare step's.
    """

    seconds: dict[str, list[float]]
    parts: list[dict[str, float]]
    deviations: dict[str, float]


class Figures(TypedDict):
    """All that is measured. waiting: see `measure_waiting`."""

    environment: EnvironmentRecord
    device_name: str
    versions: dict[str, str]
    threads: int
    sizes: SizesRecord
    networks: dict[str, NetworkFigures]
    waiting: dict[str, dict[str, float]]


def measure_network(settings: list[str], sizes: Sizes, device: torch.device) -> NetworkFigures:
    """Seconds of the epochs of all loops, parts of ours, how far their weights are from the bare step's.

    Where a copy of the network lies in memory stays as it is, and is worth up to a tenth of a step on a CPU; so each
    loop gets several copies.
    """
    seconds: dict[str, list[float]] = {}
    parts: list[dict[str, float]] = []
    deviations: dict[str, float] = {}
    for number in range(sizes.copies):
        with tempfile.TemporaryDirectory() as name:
            work = make_work(
                [*settings, f"LOGGING.log_dir={name}/logs"], sizes.pixels, sizes.batch, sizes.steps, device
            )
            trainer, loops, deviations = prepare_loops(work, Path(name))
            measured = partial(measure_parts, trainer, BatchesInMemory(work.batches), parts)
            first = number * sizes.turns
            taken = take_turns(loops, range(first, first + sizes.turns), measured)
        for title, epochs in taken.items():
            seconds.setdefault(title, []).extend(epochs)
    return {"seconds": seconds, "parts": parts, "deviations": deviations}


def prepare_loops(work: Work, folder: Path) -> tuple[TrainingLoop, dict[str, Loop], dict[str, float]]:
    """Our trainer, all loops after an untimed epoch each, and how far that has brought each from the bare step's."""
    recorder = Recorder(RunFolder.create(str(folder), "run"), work.config, {})  # which writes TensorBoard's scalars
    trainer, ours = our_trainer(work, [recorder])
    models, loops = {OURS: trainer.model}, {OURS: ours}
    for title, build in ((BARE, bare_loop), (AGAIN, bare_loop), (TIMM, timm_loop), (LIGHTNING, lightning_loop)):
        models[title], loops[title] = build(work)
    for loop in loops.values():
        loop()
    return trainer, loops, {title: deviation(model, models[BARE], work.model) for title, model in models.items()}


def measure_parts(trainer: TrainingLoop, batches: BatchesInMemory, parts: list[dict[str, float]]) -> None:
    """Append those of an epoch of ours."""
    parts.append(watch(trainer, batches))


def take_turns(loops: dict[str, Loop], turns: Iterable[int], between: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of every epoch; who begins changes from turn to turn. between() is called after each turn."""
    taken: dict[str, list[float]] = {title: [] for title in loops}
    order = list(loops)
    for turn in turns:
        shift = turn % len(order)
        for title in order[shift:] + order[:shift]:
            taken[title].append(loops[title]())
        between()
    return taken


def deviation(model: torch.nn.Module, reference: torch.nn.Module, start: torch.nn.Module) -> float:
    """How far the weights are from the reference's, over how far those have come from the start."""

    def vector(network: torch.nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten().double() for parameter in network.parameters()])

    return ((vector(model) - vector(reference)).norm() / (vector(reference) - vector(start)).norm()).item()


def measure(sizes: Sizes, device: torch.device) -> Figures:
    """All figures, as plain values."""
    networks = {}
    for title in sizes.networks:
        networks[title] = measure_network(NETWORKS[title], sizes, device)
        print(title, {k: round(ratio(networks[title], k), 4) for k in networks[title]["seconds"]}, flush=True)
    return {
        "environment": describe_environment(device.type, "auto" if device.type == "cuda" else "fp32"),
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else "",
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "threads": torch.get_num_threads(),
        "sizes": sizes.as_dict(),
        "networks": networks,
        "waiting": measure_waiting(NETWORKS["resnet18"], Drawn(sizes.drawn, sizes.drawn_pixels, sizes.batch), device),
    }


def ratio(network: NetworkFigures, title: str, reference: str = BARE) -> float:
    """Median over turns of a loop's seconds by the reference's of the same turn."""
    seconds = network["seconds"]
    return statistics.median(a / b for a, b in zip(seconds[title], seconds[reference]))


def noise(network: NetworkFigures) -> float:
    """Median over turns of how far the bare step's time is from its own, measured twice."""
    seconds = network["seconds"]
    return statistics.median(abs(a / b - 1) for a, b in zip(seconds[AGAIN], seconds[BARE]))


def fraction(parts: dict[str, float], part: str) -> float:
    """A part of the whole; 'rest' is what no part has."""
    seconds = parts["whole"] - sum(parts[name] for name in PARTS) if part == "rest" else parts[part]
    return seconds / parts["whole"]


def median_share(network: NetworkFigures, part: str) -> float:
    """Of a part in an epoch, the median over turns."""
    return statistics.median(fraction(parts, part) for parts in network["parts"])


def verdicts(figures: Figures) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough."""
    found = [verdict for title, network in figures["networks"].items() for verdict in network_verdicts(title, network)]
    return [*found, waiting_verdict(figures["waiting"])]


def network_verdicts(title: str, network: NetworkFigures) -> list[Verdict]:
    """Those of one network."""
    overhead, spread = ratio(network, OURS) - 1, noise(network)
    rest, apart = median_share(network, "rest"), max(network["deviations"].values())
    found = [
        (f"{title}: at most {WANTED_OVERHEAD:.0%} over the bare step", f"{overhead:+.1%}", overhead <= WANTED_OVERHEAD)
    ]
    for other in (TIMM, LIGHTNING):
        against = ratio(network, OURS, other)
        found.append(
            (f"{title}: as fast as {other}, within noise (±{spread:.1%})", f"{against:.3f}×", against <= 1 + spread)
        )
    found.append(
        (f"{title}: parts add up to the whole but for {WANTED_REST:.0%}", f"{rest:.1%}", abs(rest) <= WANTED_REST)
    )
    wanted = f"{title}: an epoch of each loop ends within {WANTED_DEVIATION:.0%} of the bare step's way"
    return [*found, (wanted, f"{apart:.2%}", apart <= WANTED_DEVIATION)]


def waiting_verdict(waiting: dict[str, dict[str, float]]) -> Verdict:
    """Of the epochs that were read from a cache, the one that waited longest."""
    wanted = f"at most {WANTED_WAITING:.0%} of an epoch spent waiting for data, with DATA.cache"
    cached = [fraction(parts, WAITING) for key, parts in waiting.items() if not key.startswith("none")]
    return wanted, f"{max(cached):.1%}", max(cached) <= WANTED_WAITING


def speed_rows(figures: Figures) -> list[list[str]]:
    """A row a loop of each network."""
    images, steps, rows = figures["sizes"]["batch"], figures["sizes"]["steps"], []
    for title, network in figures["networks"].items():
        for name, seconds in network["seconds"].items():
            step = statistics.median(seconds) / steps
            apart = network["deviations"].get(name, 0.0)
            cells = [title, name, f"{step * 1e3:.1f} ms", f"{min(seconds) / steps * 1e3:.1f} ms"]
            rows.append([*cells, f"{images / step:,.1f}", f"{ratio(network, name):.3f}×", f"{apart:.2%}"])
    return rows


def part_row(title: str, fractions: dict[str, float], whole: float) -> list[str]:
    """The cells of one epoch: shares of its parts, and its seconds."""
    return [title, *(f"{fractions[part]:.1%}" for part in (*PARTS, "rest")), f"{whole:.2f} s"]


def part_rows(figures: Figures) -> list[list[str]]:
    """A row a network, medians over turns, and one for each way of reading images."""
    rows = []
    for title, network in figures["networks"].items():
        fractions = {part: median_share(network, part) for part in (*PARTS, "rest")}
        whole = statistics.median(parts["whole"] for parts in network["parts"])
        rows.append(part_row(f"{title}, in memory", fractions, whole))
    for key, parts in figures["waiting"].items():
        cache, workers = key.split(", ")
        fractions = {part: fraction(parts, part) for part in (*PARTS, "rest")}
        rows.append(part_row(f"resnet18, files, cache {cache}, {workers} workers", fractions, parts["whole"]))
    return rows


SPEEDS = "network | loop | a step | fastest | images/s | against the bare step | weights' deviation"
FRACTIONS = " | ".join(("epoch", *PARTS, "rest", "whole"))


def page(figures: Figures) -> str:
    """The Markdown page; every number in it is of this run."""
    machine, sizes = figures["environment"], figures["sizes"]
    versions = ", ".join(f"{name} {figures['versions'][name]}" for name in VERSIONS)
    return f"""# The training loop, measured

Written by `python -m benchmarks.loop` on {machine["time"][:10]}: {figures["device_name"] or machine["processor"]},
{figures["threads"]} threads, Python {machine["python"]}, {versions}; {machine["precision"]}.

Whole epochs of {sizes["steps"]} steps of {sizes["batch"]} images of {sizes["pixels"]} px that are in memory.
All loops have copies of one network, fused AdamW, clipping to norm 1 and the same batches. They take turns,
{sizes["turns"]} times with each of {sizes["copies"]} copies, as a copy's place in memory counts. *Against the bare
step* is the median over turns of an epoch's time by that of the bare step in the same turn. *Weights' deviation*:
how far the weights are from the bare step's after an epoch, over how far those
have come; AdamW's division makes much of rounding.

{markdown_table(SPEEDS, speed_rows(figures))}

- *bare step*: transfer, forward, loss, backward, clip, optimizer. *Again* is the same once more, for the noise.
- *ours*: `TrainingLoop.train_epoch` of `build_loop`, with TensorBoard's scalars and log lines.
- *timm*: the inner loop of its training script: task, optimizer, scheduler, clipping, meters, log interval of 50.
- *Lightning*: `Trainer.fit` without logger, checkpoints, bar and summary, from the start of an epoch to its end.

Where the time of our epoch goes, by timers around its parts; *rest* is what no timer saw: the loss, counting, checks.
On a GPU these are the host's times, which runs ahead of the device.

{markdown_table(FRACTIONS, part_rows(figures))}

Files are drawn chests of {sizes["drawn_pixels"]} px (PNG), augmented; the epoch is a run's second.

{verdict_table(verdicts(figures))}
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--turns", type=int, help="timed epochs of each copy in each loop")
    parser.add_argument("--quick", action="store_true", help="small sizes, printed only")
    parser.add_argument("--no-write", action="store_true", help="print only")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 where something that was wanted is missed."""
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: there is no CUDA device here", file=sys.stderr)
        return 2
    if find_spec("lightning") is None:
        print("error: lightning is missing: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        return 2
    prepare_process(torch.device("cpu"))  # as train.py does
    sizes = QUICK if options.quick else ON_CUDA if options.device == "cuda" else FULL
    sizes = replace(sizes, turns=options.turns or sizes.turns)
    figures = measure(sizes, torch.device(options.device))
    text = page(figures)
    target = PAGE if options.device == "cpu" else PAGE.with_stem("loop_cuda")
    return report(None if options.no_write or options.quick else target, text, figures, verdicts(figures))


if __name__ == "__main__":
    sys.exit(main())
