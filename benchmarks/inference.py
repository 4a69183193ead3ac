"""Evaluator and Predictor against the bare forward passes of the same network over the same batches.

python -m benchmarks.inference                      # on CUDA where that is there; writes docs/benchmarks/inference.*
python -m benchmarks.inference --backbones resnet18 --size 64 --images 256 --no-write

Random weights and images. The bare passes find their batches on the device, in inference mode and the same precision,
and wait for the last one only; Evaluator and Predictor are given them in the computer's memory. All three take turns.
On a CPU times are of the process's own processor seconds, as others may use the machine; on CUDA of its clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.gradient_checkpointing import seconds_of
from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from benchmarks.training_loops import BatchesInMemory
from configs.default_config import Config
from inference.predictor import Predictor
from models import HybridMedNet
from training.evaluation import Evaluator
from training.losses import TrainingLoss, binary_cross_entropy
from training.precision import Precision, choose_memory_format, choose_precision
from utils.batch import Batch, Inputs, Targets
from utils.environment import EnvironmentRecord, describe_environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "inference.md"
BACKBONES = ("resnet18", "convnext_tiny")
CLASSES = 14
WANTED = 0.95  # of the bare passes' images per second


def in_memory(images: int, batch: int, size: int, pinned: bool) -> BatchesInMemory:
    """A loader of batches that are there already; the images are the same in each."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 3, size, size, generator=generator)
    image = image.pin_memory() if pinned else image
    target = torch.randint(0, 2, (images, CLASSES), generator=generator).float()
    known = torch.ones_like(target, dtype=torch.bool)
    return BatchesInMemory(
        [
            Batch(Inputs.of_images(image[: len(rows)]), Targets(target[rows], known[rows]), rows)
            for rows in torch.arange(images).split(batch)
        ]
    )


@dataclass(frozen=True)
class Row:
    """One network: images per second of each way, and the medians of what is left of the bare passes' in each turn."""

    backbone: str
    bare: float
    evaluator: float
    predictor: float
    evaluator_share: float
    predictor_fraction: float


def build(backbone: str, size: int, device: torch.device) -> HybridMedNet:
    """With the attention and fusion that a config of this backbone gets."""
    overrides = [f"MODEL.backbone={backbone}", "MODEL.pretrained=false", f"MODEL.num_classes={CLASSES}"]
    torch.manual_seed(0)
    return HybridMedNet(Config.from_overrides([*overrides, f"DATA.image_size={size}"])).eval().to(device)


def ways(
    model: HybridMedNet, loader: BatchesInMemory, precision: Precision, device: torch.device
) -> list[Callable[[], object]]:
    """The bare passes, the Evaluator's and the Predictor's; each runs the network over all batches."""
    layout = choose_memory_format("auto", model.backbone.prefers_channels_last)
    model.to(memory_format=layout)
    names = tuple(f"class {k + 1}" for k in range(CLASSES))
    evaluator = Evaluator(model, TrainingLoss(binary_cross_entropy), precision, names, layout, "plain")
    predictor = Predictor([model], precision, layout)
    there = loader.batches[0].inputs.image.to(device).contiguous(memory_format=layout)

    @torch.inference_mode()
    def bare() -> list:
        outputs = []
        for _, batch in loader.epoch(0):
            with precision.autocast():
                outputs.append(model(there[: len(batch)]))
        return [output.cpu() for output in outputs]

    return [bare, lambda: evaluator(loader, "test"), lambda: predictor.over(loader, "test", "plain")]


def measure(backbone: str, options: argparse.Namespace, device: torch.device, precision: Precision) -> Row:
    """Medians over rounds in which each way has its turn, after one that does not count."""
    loader = in_memory(options.images, options.batch, options.size, device.type == "cuda")
    runs = ways(build(backbone, options.size, device), loader, precision, device)
    rounds = [[seconds_of(run, device, time.process_time) for run in runs] for _ in range(options.repeats + 1)][1:]
    speeds = [options.images / statistics.median(seconds) for seconds in zip(*rounds)]
    fractions = [statistics.median(bare / other for bare, other in zip(*pair)) for pair in _pairs(rounds)]
    return Row(backbone, *speeds, *fractions)


def _pairs(rounds: list[list[float]]) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    bare, *others = zip(*rounds)
    return [(bare, other) for other in others]


def verdicts(rows: list[Row]) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough."""
    found = []
    for name in ("evaluator", "predictor"):
        least = min(getattr(row, f"{name}_share") for row in rows)
        found.append((f"{name.title()}: {WANTED:.0%} of the bare passes or more", f"{least:.1%}", least >= WANTED))
    return found


HEADINGS = "network | bare passes | Evaluator | Predictor | Evaluator / bare | Predictor / bare"


def cells(row: Row) -> list[str]:
    """A row of the table."""
    speeds = [f"{speed:,.1f}" for speed in (row.bare, row.evaluator, row.predictor)]
    return [row.backbone, *speeds, f"{row.evaluator_share:.1%}", f"{row.predictor_fraction:.1%}"]


def page(rows: list[Row], options: argparse.Namespace, machine: EnvironmentRecord) -> str:
    """The Markdown page; every number in it is of this run."""
    hardware = f"{machine['processor']}, 1 thread"
    if machine["device"] == "cuda":
        hardware = torch.cuda.get_device_name()
    seconds = "its own clock" if machine["device"] == "cuda" else "processor time"
    return f"""# Evaluation and prediction against bare forward passes

Written by `python -m benchmarks.inference` on {machine["time"][:10]}: {hardware}, {machine["precision"]}, Python
{machine["python"]}, torch {machine["packages"]["torch"]}, timm {machine["packages"]["timm"]}.

Images per second: whole HybridMedNets with {CLASSES} classes and random weights, {options.size} px, {options.images}
images in batches of {options.batch}. *Bare passes* find their batches on the device, in inference mode; Evaluator and
Predictor are given the same ones in the computer's memory, send them, and bring back scores, the loss and metrics, or
logits. All take turns; medians of {options.repeats} rounds after one that does not count, by {seconds}; the shares
are medians of each round's own.

{markdown_table(HEADINGS, map(cells, rows))}

{verdict_table(verdicts(rows))}
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where less than wanted was seen, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_cuda = torch.cuda.is_available()
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=128 if on_cuda else 16, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=8192 if on_cuda else 64, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = torch.device("cuda" if on_cuda else "cpu")
    precision = choose_precision("auto", device)
    rows = [measure(backbone, options, device, precision) for backbone in options.backbones]
    machine = describe_environment(device.type, precision.name)
    text = page(rows, options, machine)
    figures = {"environment": machine, "options": vars(options), "rows": [asdict(row) for row in rows]}
    return report(None if options.no_write else PAGE, text, figures, verdicts(rows))


if __name__ == "__main__":
    sys.exit(main())
