"""What a study costs over its images alone: the time of a training step, and bytes kept for the backward pass.

python -m benchmarks.study_cost             # writes docs/benchmarks/study_cost.{md,json}
python -m benchmarks.study_cost --no-write --repeats 3

The same images go through the same network as so many studies of one image (the network of the images alone), as
studies of V views, and as studies of V views with a table of ten columns, a quarter of its cells unknown. All of a row
alternate in one run; times are medians of processor time, which other work on the machine disturbs less than the clock.
What joins views and adds the table is also measured by itself, on vectors and maps that are there: its share of a step.
Bytes are counted, not measured: the peak of what autograd keeps, the input and the weights left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gradient_checkpointing import loss_of, saved_bytes, seconds_of
from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from configs.default_config import Config
from models import HybridMedNet
from utils.batch import Inputs
from utils.environment import describe_environment
from utils.gradient_checkpointing.activation_memory import SavedActivations
from utils.process import prepare_process

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "study_cost.md"
AGGREGATORS = ("max", "mean", "attention", "cross_attention", "learned_weight")
FUSIONS = ("concatenate", "gated", "attention", "cross_attention", "bilinear")
COLUMNS: dict[str, str | int] = {**{f"number{i}": "numeric" for i in range(6)}, **{f"category{i}": 4 for i in range(4)}}
MOST_OVER_IMAGES, MOST_SHARE = 1.1, 0.03
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One kind of study. own_seconds: of what joins views and adds the table alone, forward and backward."""

    name: str
    image_seconds: float
    seconds: float
    own_seconds: float
    image_bytes: int
    bytes: int

    @property
    def time_ratio(self) -> float:
        return self.seconds / self.image_seconds

    @property
    def bytes_ratio(self) -> float:
        return self.bytes / self.image_bytes

    @property
    def share(self) -> float:
        """Of the step, what joins views and adds the table."""
        return self.own_seconds / self.seconds


def network(options: argparse.Namespace, aggregator: str | None, fusion: str | None) -> HybridMedNet:
    """The network of these settings, in training mode; both None: of the images alone."""
    own = {
        "aggregator": aggregator and {"MODEL.views.aggregator": aggregator, "MODEL.view_kinds": ["frontal", "lateral"]},
        "fusion": fusion and {"MODEL.table.fusion": fusion, "MODEL.table_columns": COLUMNS},
    }
    settings = {"MODEL.backbone": options.backbone, "MODEL.pretrained": False, "DATA.image_size": options.size}
    for chosen in own.values():
        settings |= chosen or {}
    torch.manual_seed(0)
    return HybridMedNet(Config.from_overrides([f"{key}={value}" for key, value in settings.items()])).train()


def studies(images: Tensor, views: int, table: bool) -> Inputs:
    """[M, C, H, W] as M / views studies, with or without a table."""
    count, generator = len(images) // views, torch.Generator().manual_seed(0)
    mask = torch.rand(count, len(COLUMNS) if table else 0, generator=generator) > 0.25
    numbers = torch.randn(mask.shape, generator=generator)
    codes = torch.randint(1, 5, mask.shape, generator=generator).float()
    categorical = torch.tensor([kind != "numeric" for kind in COLUMNS.values()])[: mask.shape[1]]
    cells = torch.where(mask, torch.where(categorical, codes, numbers), 0.0)
    kinds = torch.arange(views).expand(count, views)
    return Inputs(images, torch.ones(count, views, dtype=torch.bool), kinds, cells, mask)


def step(model: nn.Module, x: Tensor | Inputs) -> None:
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    loss_of(model, x).backward()  # type: ignore[arg-type]


def study_bytes(model: HybridMedNet, inputs: Inputs) -> int:
    """`saved_bytes` for studies."""
    model.zero_grad(set_to_none=True)
    with SavedActivations(model, *inputs) as memory:
        loss = loss_of(model, inputs)  # type: ignore[arg-type]
        memory.start_backward()
        loss.backward()
    return memory.peak


def mixer_step(model: HybridMedNet, inputs: Inputs) -> tuple[nn.Module, Tensor, Tensor, Inputs]:
    """What the mixer of a network is given in a step."""
    mixer = model.classifier.study
    assert isinstance(mixer, nn.Module)
    caught: list[tuple[Tensor, Tensor]] = []
    handle = mixer.register_forward_pre_hook(lambda _, given: caught.append((given[0].detach(), given[1].detach())))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    vectors, fused = (tensor.requires_grad_() for tensor in caught[0])
    return mixer, vectors, fused, inputs


def own_step(mixer: nn.Module, vectors: Tensor, fused: Tensor, inputs: Inputs) -> None:
    """Forward and backward of the mixer alone, to its inputs as well."""
    mixer.zero_grad(set_to_none=True)
    vectors.grad = fused.grad = None
    mixer(vectors, fused, inputs).square().mean().backward()


def cases() -> Iterator[tuple[str, str | None, str | None]]:
    """Name, aggregator, fusion."""
    for aggregator in AGGREGATORS:
        yield f"views: {aggregator}", aggregator, None
    for fusion in FUSIONS:
        yield f"views: attention, table: {fusion}", "attention", fusion


def measure(options: argparse.Namespace) -> list[Row]:
    """All cases, each beside the network of the images alone."""
    images = torch.randn(options.images, 3, options.size, options.size, generator=torch.Generator().manual_seed(1))
    one = torch.randn(options.views, 3, options.size, options.size)
    bare = network(options, None, None)
    bare_bytes, rows = saved_bytes(bare, one), []
    for name, aggregator, fusion in cases():
        model = network(options, aggregator, fusion)
        inputs = studies(images, options.views, fusion is not None)
        runs = {
            "images": partial(step, bare, images),
            "studies": partial(step, model, inputs),
            "own": partial(own_step, *mixer_step(model, inputs)),
        }
        taken: dict[str, list[float]] = {key: [] for key in runs}
        for number in range(options.repeats + 1):
            for key, run in runs.items():
                seconds = seconds_of(run, CPU, time.process_time)
                if number:
                    taken[key].append(seconds)
        median = {key: statistics.median(times) for key, times in taken.items()}
        kept = study_bytes(model, studies(one, options.views, fusion is not None))
        rows.append(Row(name, median["images"], median["studies"], median["own"], bare_bytes, kept))
        print(cells(rows[-1]), flush=True)
    return rows


HEADINGS = "network | images alone | studies | time | joining and table | share | bytes"


def cells(row: Row) -> str:
    """A row of the table."""
    return (
        f"{row.name} | {row.image_seconds:.3f} s | {row.seconds:.3f} s | {row.time_ratio:.2f} | "
        f"{1000 * row.own_seconds:.1f} ms | {100 * row.share:.1f} % | {row.bytes_ratio:.3f}"
    )


def verdicts(rows: list[Row]) -> list[Verdict]:
    """The largest of each."""
    worst = [max(rows, key=lambda row: figure(row)) for figure in (_time, _bytes, _share)]
    return [
        (f"time over the images alone ≤ {MOST_OVER_IMAGES}", *_seen(worst[0], worst[0].time_ratio, MOST_OVER_IMAGES)),
        (f"bytes over the images alone ≤ {MOST_OVER_IMAGES}", *_seen(worst[1], worst[1].bytes_ratio, MOST_OVER_IMAGES)),
        (f"joining and table ≤ {MOST_SHARE:.0%} of the step", *_seen(worst[2], worst[2].share, MOST_SHARE)),
    ]


def _time(row: Row) -> float:
    return row.time_ratio


def _bytes(row: Row) -> float:
    return row.bytes_ratio


def _share(row: Row) -> float:
    return row.share


def _seen(row: Row, value: float, most: float) -> tuple[str, bool]:
    return f"at most {value:.3f} ({row.name})", value <= most


def page(rows: list[Row], options: argparse.Namespace) -> str:
    """The Markdown page."""
    machine = describe_environment("cpu", "fp32")
    versions = ", ".join(f"{key} {machine['packages'][key]}" for key in ("torch", "timm"))
    return f"""# What a study costs over its images

Written by `python -m benchmarks.study_cost` on {machine["time"][:10]}: {machine["processor"]}, {versions}; \
{options.backbone}, {options.size} px, {options.images} images as {options.images // options.views} studies of \
{options.views} views; medians of {options.repeats} steps in turn, processor time on {torch.get_num_threads()} threads.

{verdict_table(verdicts(rows))}

{markdown_table(HEADINGS, map(cells, rows))}

Time and bytes are those of a step of the studies over a step of as many single images. Nothing is computed for a view
that is missing, so that a step's time goes with the number of images that are there, not with the largest study.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where something wanted was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="pixels; default: %(default)s")
    parser.add_argument("--images", type=int, default=16, help="in a step; default: %(default)s")
    parser.add_argument("--views", type=int, default=2, help="of a study; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    prepare_process(CPU)  # as train.py does
    rows = measure(options)
    return report(
        None if options.no_write else PAGE, page(rows, options), [asdict(row) for row in rows], verdicts(rows)
    )


if __name__ == "__main__":
    sys.exit(main())
