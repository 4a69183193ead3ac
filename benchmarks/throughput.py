"""Training and inference throughput on a CUDA device: bare backbone and HybridMedNet, bf16, with and without compile.

python -m benchmarks.throughput              # writes docs/benchmarks/throughput.{md,json}
python -m benchmarks.throughput --backbone resnet50 --compile --batch 256 --no-write

Images are random and on the device already, so that the loader has no part in it; in the column "with the loader" the
same network is trained by our loop on drawn images, DATA.cache=ram, augmented on the device. Model-FLOP utilisation
counts the multiplications of a plain step (a multiply-add as two operations, no recomputation) against `--peak`
TFLOP/s.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gradient_checkpointing import build, seconds_of
from benchmarks.pages import markdown_table, write_page
from benchmarks.training_loops import trainer_of
from configs.default_config import Config
from data.builder import build_loaders, open_data, split_data
from data.phantom.radiographs import FINDINGS, write_phantom
from models import HybridMedNet
from utils.environment import describe_environment
from utils.kernels import prepare_kernels
from utils.process import prepare_process

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "throughput.md"
NAMES = ("resnet50", "convnext_base", "swin_base", "vit_base", "vim_small")
SIZE = 224
# Dense bf16 of an H100 or H200 by its data sheet.
PEAK_TFLOPS = 989.0
# Images for the loader, of which so many are drawn; they lie in memory decoded.
IMAGES, DRAWN, CLASSES, EPOCHS = 2560, 320, 14, 4
# Utilisation that is wanted on an H200, of the bare network or the whole.
WANTED = {"resnet50": 0.20, "convnext_base": 0.30, "swin_base": 0.30, "vit_base": 0.45}


@dataclass(frozen=True)
class Row:
    """One network: images per second in training and inference, utilisation and peak memory in training.

    loader: images per second of the TrainingLoop with images from a loader, None where that was not measured.
    """

    name: str
    compiled: bool
    batch: int
    training: float
    inference: float
    utilisation: float
    gib: float
    loader: float | None = None


def write_images(folder: Path) -> None:
    """A sample in which every drawn image is there several times, as a patient of its own."""
    write_phantom(folder, DRAWN, SIZE)
    head, *rows = list(csv.reader((folder / "labels.csv").open(newline="")))
    image, patient = head.index("image"), head.index("patient_id")
    with (folder / "labels.csv").open("a", newline="") as table:
        for number, row in product(range(1, IMAGES // DRAWN), rows):
            again = list(row)
            again[image] = row[image].replace("images/", f"images/{number}_")
            again[patient] = f"{number}_{row[patient]}"
            shutil.copyfile(folder / row[image], folder / again[image])
            csv.writer(table).writerow(again)


def rate_with_loader(
    name: str, batch: int, compiled: bool, images: str, device: torch.device, size: int = SIZE
) -> float:
    """Images per second of a TrainingLoop from its second epoch on, with the images in a folder."""
    config = Config.from_overrides(
        [
            f"DATA.data_dir={images}",
            f"DATA.class_names=[{','.join(FINDINGS)}]",
            f"DATA.image_size={size}",
            "DATA.cache=ram",
            f"DATA.num_workers={min(8, os.cpu_count() or 1)}",
            "DATA.train_split=0.8",
            "DATA.val_split=0.1",
            "DATA.test_split=0.1",
            f"TRAIN.batch_size={batch}",
            "TRAIN.learning_rate=1e-5",
            f"TRAIN.mixed_precision={'bf16' if device.type == 'cuda' else 'false'}",
            f"TRAIN.compile={compiled}",
            "LOGGING.progress=plain",
        ]
    )
    dataset_index = open_data(config)
    config = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    built = build(name, size)
    backbone = built.backbone if isinstance(built, HybridMedNet) else built
    network: nn.Module = built
    if built is backbone:
        network = nn.Sequential(backbone, nn.Linear(backbone.feature_dim, CLASSES))
    config.TRAIN.channels_last = backbone.prefers_channels_last
    split = split_data(config, dataset_index)
    loaders = build_loaders(config, dataset_index, split, backbone.mean, backbone.std, device.type)
    trainer = trainer_of(config, network.to(device), len(loaders.train), loaders.train_labels())
    trained, seconds = 0, 0.0
    for epoch in range(EPOCHS):
        trainer.train_epoch(loaders.train)
        if epoch > 0:  # the first one fills the cache, starts the workers and compiles
            trained, seconds = trained + trainer.state.sums.images, seconds + trainer.state.sums.seconds
        trainer.next_epoch()
    return trained / seconds


def loss_of(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean square of what `forward` gives: a vector per image of a backbone, logits of a whole network."""
    with torch.autocast("cuda", torch.bfloat16):
        y = network(x)
    return y.float().square().mean()


def flops_of_step(model: nn.Module, x: Tensor) -> float:
    """Operations of forward and backward an image, counted on a batch of two."""
    with FlopCounterMode(display=False) as counter:
        loss_of(model, x[:2]).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2


def measure(name: str, batch: int, compiled: bool, repeats: int, peak: float, images: str | None) -> Row:
    """Median over repeats of ten steps each, after a warm-up; images: for the loader, None without."""
    model = build(name, SIZE).cuda()
    backbone = model.backbone if isinstance(model, HybridMedNet) else model
    layout = torch.channels_last if backbone.prefers_channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    x = torch.randn(batch, 3, SIZE, SIZE, device="cuda").to(memory_format=layout)
    flops = flops_of_step(model, x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    network: Callable[[Tensor], Tensor] = model
    if compiled:
        prepare_kernels(model, x.device, (torch.float32, torch.bfloat16))
        network = torch.compile(model)

    def train() -> None:
        for _ in range(10):
            loss_of(network, x).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def infer() -> None:
        for _ in range(10):
            loss_of(network, x)

    torch.cuda.reset_peak_memory_stats()
    speeds = []
    for run, training in ((train, True), (infer, False)):
        model.train(training)
        run()
        seconds = statistics.median(seconds_of(run, x.device) for _ in range(repeats))
        speeds.append(10 * batch / seconds)
    gib = torch.cuda.max_memory_allocated() / 2**30
    loader = rate_with_loader(name, batch, compiled, images, x.device) if images else None
    return Row(name, compiled, batch, speeds[0], speeds[1], speeds[0] * flops / (peak * 1e12), gib, loader)


HEADINGS = (
    "network | compiled | batch | training, images/s | with the loader | inference, images/s | utilisation | "
    "wanted | peak memory"
)


def cells(row: Row) -> str:
    """A row of the table."""
    loader = "–" if row.loader is None else f"{row.loader:,.0f}"
    wanted = WANTED.get(row.name.partition("+")[0])
    verdict = "–" if wanted is None else f"≥ {wanted:.0%}{'' if row.utilisation >= wanted else ', missed'}"
    return (
        f"{row.name} | {'yes' if row.compiled else 'no'} | {row.batch} | {row.training:,.0f} | {loader} | "
        f"{row.inference:,.0f} | {row.utilisation:.1%} | {verdict} | {row.gib:.1f} GiB"
    )


def page(rows: list[Row], peak: float, missed: list[str]) -> str:
    """The Markdown page."""
    machine = describe_environment("cuda", "bf16")
    versions = ", ".join(f"{key} {machine['packages'][key]}" for key in ("torch", "timm"))
    table = markdown_table(HEADINGS, map(cells, rows))
    left_out = f"\nNot measured: {'; '.join(missed)}.\n" if missed else ""
    return f"""# Throughput on a GPU

Written by `python -m benchmarks.throughput` on {machine["time"][:10]}: {torch.cuda.get_device_name()}, {versions}.
{SIZE} px, bf16 autocast, AdamW (fused), channels_last for convolutional networks; random images on the device.
Utilisation: operations of a plain step against {peak:g} TFLOP/s. `+cbam` and the like are whole HybridMedNets.

{table}
{left_out}"""


def main(arguments: list[str] | None = None) -> int:
    """Measure what time allows, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", metavar="NAME[+ATTENTION]", help="only these")
    parser.add_argument("--batch", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="both", help="default: %(default)s")
    parser.add_argument("--peak", type=float, default=PEAK_TFLOPS, help="TFLOP/s of the device; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after this time")
    parser.add_argument("--no-loader", action="store_true", help="leave out the training with images from a loader")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device", file=sys.stderr)
        return 2
    prepare_process(torch.device("cuda"))  # cuDNN as in training
    modes = {"no": (False,), "yes": (True,), "both": (False, True)}[options.compile]
    names = options.backbone or [*NAMES, *(f"{n}+{'cbam' if n == 'resnet50' else 'cross_scale'}" for n in NAMES)]
    rows: list[Row] = []
    missed: list[str] = []
    folder = tempfile.TemporaryDirectory()
    images = None if options.no_loader else f"{folder.name}/images"
    if images:
        write_images(Path(images))
    begin = time.perf_counter()
    for compiled, name in ((c, n) for c in modes for n in names):
        title = f"{name}{' compiled' if compiled else ''}"
        if time.perf_counter() - begin > options.seconds:
            missed.append(f"{title} (time was up)")
            continue
        try:
            rows.append(measure(name, options.batch, compiled, options.repeats, options.peak, images))
            print(cells(rows[-1]), flush=True)
        except RuntimeError as error:  # what the compiler cannot do is a result too
            missed.append(f"{title} ({type(error).__name__})")
            print(missed[-1], str(error)[:500], flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()
        if not options.no_write:  # after each, as a run may be ended before the last
            write_page(PAGE, page(rows, options.peak, missed), [asdict(row) for row in rows])
    folder.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main())
