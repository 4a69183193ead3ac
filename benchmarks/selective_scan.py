"""The selective scan on a CPU, measured against the loops that one would write first: time, memory and error.

python -m benchmarks.selective_scan             # writes docs/benchmarks/selective_scan.{md,json}
python -m benchmarks.selective_scan --no-write  # print only

One thread, float32, forward and backward; the scans take turns in one run and times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from models.backbones.selective_scan import plain_scan
from utils.environment import describe_environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "selective_scan.md"
BATCH, LENGTH, WIDTH, STATES = 2, 197, 384, 16  # a mixer of vim_tiny at 224 px
LENGTHS = (LENGTH, 394, 788, 1576)
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
WANTED_SPEED, WANTED_ERROR = 20, 2e-6
# Time a step of the sequence may grow by from the shortest to the longest.
WANTED_GROWTH = 1.25


def textbook_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Discretise all steps at once, [batch, L, d, N], then loop over slices; gradients by plain autograd."""
    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
    entering = torch.einsum("bld,bln,bld->bldn", delta, B, u)
    h, y = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + entering[:, t]
        y.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return torch.stack(y, 1) + u * D


def length_first_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The same, the sequence first and unbound once, and one addcmul per step; gradients by plain autograd."""
    delta = F.softplus(delta + delta_bias)
    steps = delta.transpose(0, 1).unsqueeze(-1)
    decay = torch.exp(steps * A)
    entering = (steps * u.transpose(0, 1).unsqueeze(-1)) * B.transpose(0, 1).unsqueeze(2)
    h, states = u.new_zeros(u.shape[0], *A.shape), []
    for a_t, x_t in zip(decay.unbind(0), entering.unbind(0)):
        h = torch.addcmul(x_t, a_t, h)
        states.append(h)
    y = torch.matmul(torch.stack(states), C.transpose(0, 1).unsqueeze(-1)).squeeze(-1)
    return y.transpose(0, 1) + u * D


SCANS: dict[str, Callable[..., Tensor]] = {
    "textbook loop": textbook_scan,
    "length-first addcmul loop": length_first_scan,
    "ours": plain_scan,
}
TEXTBOOK, LENGTH_FIRST, OURS = SCANS


def inputs(length: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """The seven arguments, and dy; the same numbers in every type."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    sequences = [normal(BATCH, length, n) for n in (WIDTH, WIDTH, STATES, STATES, WIDTH)]
    u, delta, B, C, dy = sequences
    A = -torch.arange(1.0, STATES + 1).repeat(WIDTH, 1) * torch.exp(0.1 * normal(WIDTH, STATES))
    arguments = [u, 0.5 * delta - 3, A, B, C, normal(WIDTH), 0.1 * normal(WIDTH)]
    return [x.to(dtype).requires_grad_() for x in arguments], dy.to(dtype)


def step(scan: Callable[..., Tensor], arguments: list[Tensor], dy: Tensor) -> list[Tensor]:
    """y and the seven gradients."""
    y = scan(*arguments)
    return [y.detach(), *torch.autograd.grad(y, arguments, dy)]


def seconds(runs: dict[str, tuple[str, int]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every step of every run (scan, length), all in turn; one more of each goes before, untimed."""
    prepared = {key: (SCANS[scan], *inputs(length)) for key, (scan, length) in runs.items()}
    taken: dict[str, list[float]] = {key: [] for key in runs}
    for number in range(repeats + 1):
        for key, (scan, arguments, dy) in prepared.items():
            begin = time.perf_counter()
            step(scan, arguments, dy)
            if number:
                taken[key].append(time.perf_counter() - begin)
    return taken


def saved_bytes(scan: Callable[..., Tensor], length: int) -> int:
    """Bytes of different storages that autograd keeps, the arguments' own left out."""
    arguments, _ = inputs(length)
    own, kept = {x.untyped_storage().data_ptr() for x in arguments}, {}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        y = scan(*arguments)
    assert y.requires_grad
    return sum(kept.values())


def errors(scan: Callable[..., Tensor]) -> dict[str, float]:
    """Largest deviation of y and of each gradient from the textbook loop in float64, over the largest value."""
    exact = step(textbook_scan, *inputs(LENGTH, torch.float64))
    found = step(scan, *inputs(LENGTH))
    return {n: ((x.double() - e).abs().max() / e.abs().max()).item() for n, x, e in zip(("y", *NAMES), found, exact)}


def measure(repeats: int) -> dict:
    """All figures, as plain values."""
    runs = {f"{name}, L {LENGTH}": (name, LENGTH) for name in SCANS}
    runs |= {f"{OURS}, L {length}": (OURS, length) for length in LENGTHS}
    runs |= {f"{TEXTBOOK}, L {2 * LENGTH}": (TEXTBOOK, 2 * LENGTH)}
    taken = seconds(runs, repeats)
    return {
        "environment": describe_environment("cpu", "fp32"),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "median_seconds": {key: statistics.median(times) for key, times in taken.items()},
        "fastest_seconds": {key: min(times) for key, times in taken.items()},
        "saved_bytes": {key: saved_bytes(SCANS[name], length) for key, (name, length) in runs.items()},
        "errors": {name: errors(scan) for name, scan in SCANS.items()},
    }


def verdicts(figures: dict) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough."""
    median = figures["median_seconds"]
    ours = median[f"{OURS}, L {LENGTH}"]
    speed = median[f"{TEXTBOOK}, L {LENGTH}"] / ours
    growth = median[f"{OURS}, L {LENGTHS[-1]}"] / ours / (LENGTHS[-1] / LENGTH)
    worst = max(figures["errors"][OURS].values())
    return [
        (f"at least {WANTED_SPEED}× the textbook loop's speed", f"{speed:.1f}×", speed >= WANTED_SPEED),
        (
            f"time linear in L: a step of L {LENGTHS[-1]} takes at most {WANTED_GROWTH}× one of L {LENGTH}",
            f"{growth:.2f}×",
            growth <= WANTED_GROWTH,
        ),
        (f"error below {WANTED_ERROR:g}, y and every gradient", f"{worst:.1e}", worst < WANTED_ERROR),
    ]


def rows(figures: dict) -> list[list[str]]:
    """A row a scan and length."""
    reference = figures["median_seconds"][f"{TEXTBOOK}, L {LENGTH}"]
    found = []
    for key, median in figures["median_seconds"].items():
        name, length = key.split(", L ")
        error = figures["errors"][name] if int(length) == LENGTH else None
        cells = [name, length, f"{median * 1e3:.1f} ms", f"{figures['fastest_seconds'][key] * 1e3:.1f} ms"]
        cells.append(f"{median / int(length) * 1e6:.0f} µs")
        cells.append(f"{reference / median:.1f}×" if error else "")
        cells.append(f"{figures['saved_bytes'][key] / 2**20:.1f} MiB")
        cells += [f"{error['y']:.1e}", f"{max(error[n] for n in NAMES):.1e}"] if error else ["", ""]
        found.append(cells)
    return found


HEADING = "scan | L | median | fastest | a step of the sequence | speed | saved | error of y | worst gradient's error"


def page(figures: dict) -> str:
    """The Markdown page; every number in it is of this run."""
    machine = figures["environment"]
    return f"""# The selective scan, measured

Written by `python -m benchmarks.selective_scan` on {machine["time"][:10]}: {machine["processor"]},
{figures["threads"]} thread, Python {machine["python"]}, torch {machine["packages"]["torch"]}.

Batch {BATCH}, L {LENGTH}, d {WIDTH}, N {STATES}: a mixer of `vim_tiny` at 224 px. Float32, forward and backward. All
lines take turns in one run, {figures["repeats"]} times, on a machine that others use too. *Speed* is the textbook
loop's median over that line's. *Saved* is what autograd keeps, the arguments left out. *Errors* are against the
textbook loop in float64: largest deviation over largest value.

{markdown_table(HEADING, rows(figures))}

{verdict_table(verdicts(figures))}

- The textbook loop discretises all steps at once and takes slices, each of whose gradients is a tensor of full length:
  its time grows with L².
- The length-first loop unbinds once and makes each step one `addcmul`, but keeps every state.
- Ours keeps one state in sixteen, recomputes the others, and has gradients written out by hand.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where a limit was missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each kind; default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = measure(options.repeats)
    text = page(figures)
    return report(None if options.no_write else PAGE, text, figures, verdicts(figures))


if __name__ == "__main__":
    sys.exit(main())
