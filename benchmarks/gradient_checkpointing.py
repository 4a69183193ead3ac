"""Gradient checkpointing, measured: memory, time, recomputation and exactness.

python -m benchmarks.gradient_checkpointing               # all; writes docs/benchmarks/gradient_checkpointing.{md,json}
python -m benchmarks.gradient_checkpointing --backbone resnet50 --segments 2 4 --no-write
python -m benchmarks.gradient_checkpointing --cuda-only   # the page's part about CUDA; what it says of CPUs stays

On a CPU: peak of saved activations counted by looking at which storages live
(utils.gradient_checkpointing.activation_memory), float32. On CUDA: torch.cuda.max_memory_allocated and events, bf16
with channels_last for convolutions, batch 64. Plain and checkpointed steps alternate in one run; times are medians.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.pages import markdown_table, write_page
from configs.default_config import Config
from models import HybridMedNet, create_backbone, list_backbones
from models.backbones import BaseVisionBackbone
from models.backbones.families import smallest_of_each_family
from utils.environment import describe_environment
from utils.gradient_checkpointing.activation_memory import FlopCount, SavedActivations
from utils.gradient_checkpointing.plan import Plan

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "gradient_checkpointing.md"
# What is measured at 224 px, and with how many segments; None is `auto`.
MEASURED: dict[str, tuple[int | None, ...]] = {
    "resnet50": (2, 4, 8, None),
    "convnext_tiny": (2, 4, 8, None),
    "convnext_base": (4, 8, None),
    "swin_tiny": (2, 4, 8, None),
    "swin_base": (4, 8, None),
    "efficientnetv2_s": (4, 8, None),
    "densenet121": (4, 8, None),
    "regnety_016": (4, 8, None),
    "maxvit_tiny": (4, 8, None),
    "vit_small": (4, 8, None),
    "vim_tiny": (4, 8, None),
    "efficientvim_m2": (4, None),
    "resnet50+cbam": (4, 8, None),
    "convnext_tiny+cross_scale": (4, 8, None),
    "swin_tiny+multi_scale": (4, 8, None),
}
CUDA_HEADING = "## CUDA\n\n"
# What the issue this page answers wanted: least reduction of saved bytes.
WANTED = {("resnet50", 4): 0.65, ("convnext_tiny", 4): 0.65, ("swin_tiny", 4): 0.65}
WANTED |= {("convnext_base", 8): 0.80, ("swin_base", 8): 0.80}


@dataclass(frozen=True)
class Row:
    """One network with one number of segments; bytes are of the whole batch."""

    name: str
    segments: str
    made: int
    recomputed_blocks: int
    blocks: int
    plain_bytes: int
    peak_bytes: int
    predicted_bytes: int
    extra_flops: float  # operations beyond the plain step's, counted, as a share of three forward passes
    plain_seconds: float
    seconds: float
    largest_difference: float

    @property
    def saving(self) -> float:
        return 1 - self.peak_bytes / self.plain_bytes


def build(name: str, size: int) -> BaseVisionBackbone | HybridMedNet:
    """A backbone, or with '+attention' the whole network, in training mode; volumes get depth size / 2."""
    torch.manual_seed(0)
    backbone, _, attention = name.partition("+")
    shape = (size // 2, size, size) if "3d" in backbone else (size, size)
    if not attention:
        return create_backbone(backbone, image_size=shape).train()
    settings = (f"MODEL.backbone={backbone}", f"MODEL.attention={attention}", "MODEL.pretrained=false")
    return HybridMedNet(Config.from_overrides([*settings, f"DATA.image_size={size}"])).train()


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """The mean square of all that the network gives."""
    found = model.forward_features(x) if isinstance(model, BaseVisionBackbone) else model(x)
    outputs = [found] if isinstance(found, Tensor) else found
    return torch.stack([y.float().square().mean() for y in outputs]).sum()


def step(model: nn.Module, x: Tensor, autocast: torch.dtype | None = None) -> Tensor:
    """Forward and backward; gradients are left in the model."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        loss = loss_of(model, x)
    loss.backward()
    return loss.detach()


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Peak bytes of saved activations of a step in float32 on the CPU."""
    model.zero_grad(set_to_none=True)
    with SavedActivations(model, x) as memory:
        loss = loss_of(model, x)
        memory.start_backward()
        loss.backward()
    return memory.peak


def allocated_bytes(model: nn.Module, x: Tensor, autocast: torch.dtype | None) -> int:
    """Peak bytes of a CUDA step beyond what was allocated before it, gradients among them."""
    step(model, x, autocast)
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(model, x, autocast)
    return torch.cuda.max_memory_allocated() - before


def seconds_of(
    run: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of one call, on CUDA by its own clock; clock: of other devices (process_time: processor seconds)."""
    if device.type != "cuda":
        begin = clock()
        run()
        return clock() - begin
    begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin_event.record()
    run()
    end_event.record()
    torch.cuda.synchronize()
    return begin_event.elapsed_time(end_event) / 1000


def alternated(plain: Callable[[], object], other: Callable[[], object], device: torch.device, repeats: int):
    """Median seconds of each, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, taken in zip((plain, other), times):
            taken.append(seconds_of(run, device))
    return statistics.median(times[0]), statistics.median(times[1])


def flops_of(model: nn.Module, x: Tensor, backward: bool = True) -> int:
    """Of a step, or of its forward pass alone. torch counts the backward pass of grouped convolutions too high."""
    with FlopCount() as counter:
        loss = loss_of(model, x)
        if backward:
            loss.backward()
    return counter.total


def state_after(model: nn.Module) -> list[Tensor]:
    """All gradients there are, and all buffers."""
    return [*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def largest_difference(model: nn.Module, plan_with: Callable[[nn.Module], Plan], x: Tensor, steps: int = 2) -> float:
    """Largest absolute difference of loss, gradients and buffers with and without, over steps of descent in a row."""
    plain, other, largest = copy.deepcopy(model), copy.deepcopy(model), 0.0
    plan_with(other)
    for number in range(steps):
        losses = []
        for network in (plain, other):
            torch.manual_seed(number)
            losses.append(step(network, x))
        pairs = zip([losses[0], *state_after(plain)], [losses[1], *state_after(other)], strict=True)
        largest = max(largest, *((a.double() - b.double()).abs().max().item() for a, b in pairs))
        for network in (plain, other):
            torch.optim.SGD(network.parameters(), lr=0.01).step()
    return largest


def measure(name: str, segments: tuple[int | None, ...], x: Tensor, repeats: int) -> Iterator[Row]:
    """A row for every number of segments."""
    cuda = x.device.type == "cuda"
    autocast = torch.bfloat16 if cuda else None
    model = build(name, x.shape[-1]).to(x.device)
    if cuda:
        backbone = getattr(model, "backbone", model)
        model.to(memory_format=torch.channels_last if backbone.prefers_channels_last else torch.contiguous_format)
    bytes_of = (lambda network: allocated_bytes(network, x, autocast)) if cuda else (lambda n: saved_bytes(n, x))
    other = copy.deepcopy(model)
    plain_bytes, plain_flops, forward_flops = bytes_of(model), flops_of(model, x), flops_of(model, x, backward=False)
    for count in segments:

        def plan_with(network, count=count):
            return network.enable_gradient_checkpointing(count, batch_size=len(x), autocast=autocast)

        plan = plan_with(other)
        times = alternated(lambda: step(model, x, autocast), lambda: step(other, x, autocast), x.device, repeats)
        yield Row(
            name=name,
            segments="auto" if count is None else str(count),
            made=plan.segments,
            recomputed_blocks=plan.cuts[-1],
            blocks=plan.blocks,
            plain_bytes=plain_bytes,
            peak_bytes=bytes_of(other),
            predicted_bytes=plan.peak_bytes,
            extra_flops=(flops_of(other, x) - plain_flops) / (3 * forward_flops),
            plain_seconds=times[0],
            seconds=times[1],
            largest_difference=largest_difference(model, plan_with, x),
        )


def exactness(size: int, counts: tuple[int | None, ...]) -> dict[str, float]:
    """The largest difference over all counts for the smallest member of every family, batch 2."""
    found = {}
    for name in smallest_of_each_family(list_backbones()):
        model = build(name, size)
        x = torch.randn(2, 3, *model.image_size)
        most = len(model.blocks(x))
        plans = [lambda net, count=count: net.enable_gradient_checkpointing(count) for count in counts]
        plans.append(lambda net, most=most: net.enable_gradient_checkpointing(most))
        found[name] = max(largest_difference(model, plan, x) for plan in plans)
        print(f"{name:<24} largest difference {found[name]:g}", flush=True)
        del model
        gc.collect()
    return found


HEADINGS = (
    "network | segments asked = made | blocks recomputed | saved, plain | saved, peak | saving | predicted | "
    "more operations | step, plain | step | time | largest difference"
)


def cells(row: Row) -> list[str]:
    """A row as the table shows it."""
    mib = 2**20
    return [
        row.name,
        f"{row.segments} = {row.made}",
        f"{row.recomputed_blocks} of {row.blocks}",
        f"{row.plain_bytes / mib:.0f} MiB",
        f"{row.peak_bytes / mib:.0f} MiB",
        f"−{row.saving:.1%}" + _wanted(row),
        f"{row.predicted_bytes / row.peak_bytes - 1:+.1%}",
        f"+{row.extra_flops:.1%}",
        f"{row.plain_seconds:.2f} s",
        f"{row.seconds:.2f} s",
        f"{row.seconds / row.plain_seconds - 1:+.0%}",
        f"{row.largest_difference:g}",
    ]


def _wanted(row: Row) -> str:
    wanted = WANTED.get((row.name, int(row.segments) if row.segments.isdigit() else 0))
    return "" if wanted is None else f" ({'met' if row.saving >= wanted else 'MISSED'}: {wanted:.0%})"


def table(rows: list[Row]) -> str:
    """Markdown."""
    return markdown_table(HEADINGS, map(cells, rows))


def page(rows: list[Row], exact: dict[str, float], cuda: list[Row], size: int, batch: int) -> str:
    """The Markdown page; nothing in it is estimated except the column with that title."""
    machine = describe_environment("cpu", "fp32")
    versions = ", ".join(f"{key} {machine['packages'][key]}" for key in ("torch", "torchvision", "timm"))
    where = f"{machine['processor']}, {torch.get_num_threads()} threads, Python {machine['python']}, {versions}"
    differences = ", ".join(f"{name} {value:g}" for name, value in exact.items())
    worst = max((abs(row.predicted_bytes / row.peak_bytes - 1) for row in rows), default=0.0)
    return f"""# Gradient checkpointing, measured

Written by `python -m benchmarks.gradient_checkpointing` on {machine["time"][:10]}: {where}.

## Memory, time and recomputation on the CPU

{size} px, batch {batch}, float32, forward and backward; plain and checkpointed steps alternate in one run and times are
medians, on a machine that others use too. *Saved* is the peak of activations kept for the backward pass, counted by
looking at which storages live. *Predicted* is what the plan predicted on fake tensors, against that count; the largest
deviation here is {worst:.1%}. *More operations*: those done again, counted, not timed, over a plain step taken as three
forward passes; a third is the bound. *Largest difference*: of loss, gradients and buffers over two steps in a row.

{table(rows)}

## Exactness

Largest absolute difference of loss, every gradient and every buffer, with and without, over two steps of gradient
descent in a row, at 2, 4 and automatic segments and with one segment per block: {differences or "not run"}.

{cuda_part(cuda)}"""


def cuda_part(rows: list[Row]) -> str:
    """The page's last part; it names its own machine, as it may be written alone."""
    if not rows:
        return (
            f"{CUDA_HEADING}Not measured: no CUDA device was to be had. `--cuda-only` measures it where there is one.\n"
        )
    machine = describe_environment("cuda", "bf16")
    where = f"{torch.cuda.get_device_name()}, torch {machine['packages']['torch']}, {machine['time'][:10]}"
    return f"""{CUDA_HEADING}{where}; bf16, channels_last for convolutional networks. Bytes by
`torch.cuda.max_memory_allocated` beyond what was there before the step, gradients among them; times by events, medians.
*Predicted* leaves gradients out. *Largest difference* is of float32 steps, in which cuDNN may add in another order.

{table(rows)}
"""


def measure_all(options: argparse.Namespace, device: torch.device, batch: int) -> list[Row]:
    """All rows on one device, printed as they come."""
    names = options.backbone or [name for name in MEASURED if name.partition("+")[0] in list_backbones()]
    rows = []
    for name in names:
        x = torch.randn(batch, 3, options.image_size, options.image_size, device=device)
        for row in measure(name, tuple(options.segments or MEASURED.get(name, (4, None))), x, options.repeats):
            rows.append(row)
            print(" | ".join(cells(row)), flush=True)
        gc.collect()
    return rows


def measure_cuda(options: argparse.Namespace) -> int:
    """Measure on CUDA and write the page's part about it."""
    if not torch.cuda.is_available():
        print("error: --cuda-only needs a CUDA device", file=sys.stderr)
        return 2
    rows = measure_all(options, torch.device("cuda"), options.cuda_batch)
    if not options.no_write:
        before = PAGE.read_text(encoding="utf-8").partition(CUDA_HEADING)[0]
        figures = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
        write_page(PAGE, before + cuda_part(rows), figures | {"cuda": [asdict(row) for row in rows]})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where a saving was missed or anything differs, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", metavar="NAME[+ATTENTION]", help="only these")
    parser.add_argument("--segments", nargs="+", type=int, metavar="N", help="instead of the listed ones")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--batch", type=int, default=2, help="on the CPU; default: %(default)s")
    parser.add_argument("--cuda-batch", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each kind; default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--cuda-only", action="store_true", help="measure on CUDA alone")
    options = parser.parse_args(arguments)
    if options.cuda_only:
        return measure_cuda(options)
    print(HEADINGS)
    rows = measure_all(options, torch.device("cpu"), options.batch)
    cuda = measure_all(options, torch.device("cuda"), options.cuda_batch) if torch.cuda.is_available() else []
    exact = {} if options.backbone else exactness(64, (2, 4, None))
    if not options.no_write:
        figures = {"cpu": [asdict(r) for r in rows], "cuda": [asdict(r) for r in cuda], "largest_difference": exact}
        write_page(PAGE, page(rows, exact, cuda, options.image_size, options.batch), figures)
    failed = [row for row in rows if row.largest_difference or "MISSED" in _wanted(row)]
    return 1 if failed or any(exact.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
