"""What int8, half types and the like cost and gain on a CPU: size, time, AUROC side by side.

python -m benchmarks.quantization checkpoints/<run>/best_model.pth
python -m benchmarks.quantization checkpoints/<run>/best_model.pth --beside retrained=checkpoints/<other>/best_model.pth

Writes docs/benchmarks/quantization.md and .json. The checkpoint's run folder must be there, with its data.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.pages import markdown_table, write_page
from configs.run_data import with_data_of_run
from data.builder import build_evaluation_loader, open_data, saved_preprocess, split_data
from deployment.exported_network import ExportedNetwork, ready_for_export
from deployment.onnx_format import export_onnx, open_onnx
from deployment.quantization import quantize_dynamic, quantize_static, to_half
from evaluation.results import compare_scores
from evaluation.scored_split import ScoredSplit
from models.saved_model import load_model
from training.precision import choose_precision
from utils.environment import describe_environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "quantization.md"
BATCH = 8
Run = Callable[[np.ndarray], np.ndarray]


@dataclass
class Variant:
    """A way to compute the network. megabytes: of its file, 1e6 bytes; run: [B, C, *spatial] → [B, K]."""

    name: str
    megabytes: float
    run: Run


@dataclass
class Split:
    """Images of the test split as the network sees them, and what is known of them; some of the training split's."""

    images: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    patients: list[str]
    calibration: np.ndarray


def read_split(path: Path, saved, calibration_count: int) -> Split:
    """The test split of the run beside a checkpoint, and `calibration_count` images of its training split."""
    config = with_data_of_run(saved.config, path.parent)
    config.DATA.num_workers = 0
    dataset_index = open_data(config)
    assignment = split_data(config, dataset_index, path.parent / "split.csv")
    backbone = saved.model.backbone
    preprocess = saved_preprocess(saved.preprocessing, saved.config, backbone.mean, backbone.std)
    train = np.flatnonzero(assignment == "train")
    rows = train[np.linspace(0, len(train) - 1, min(calibration_count, len(train))).round().astype(int)]
    parts = []
    for which in (rows, np.flatnonzero(assignment == "test")):
        loader = build_evaluation_loader(config, dataset_index, which, preprocess)
        parts.append([batch for _, batch in loader.epoch(0) if batch is not None])
    tested = [(batch.inputs.single_images(), batch.targets.labels, batch.targets.mask) for batch in parts[1]]
    images, targets, mask = (torch.cat(column).numpy() for column in zip(*tested))
    index = np.concatenate([batch.index.numpy() for batch in parts[1]])
    patients = [dataset_index.studies[i].patient_id for i in index]
    calibration = np.concatenate([batch.inputs.single_images().numpy() for batch in parts[0]])
    return Split(images, targets, mask, patients, calibration)


def torch_run(network: torch.nn.Module, autocast: bool) -> Run:
    """The network as it is, in float32 or under bf16 autocast."""

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = network(torch.from_numpy(images))
        return (outputs[0] if isinstance(outputs, tuple) else outputs).float().numpy()

    return run


def first_output(run: Callable) -> Run:
    """Of a network that may give coarse classes too, the fine ones."""

    def one(images: np.ndarray) -> np.ndarray:
        outputs = run(images)
        return outputs[0] if isinstance(outputs, list) else outputs

    return one


def onnx_variants(
    saved, folder: Path, name: str, calibration: np.ndarray, threads: int, all_of_them: bool
) -> list[Variant]:
    """The float32 ONNX file and what is made of it."""
    network = ExportedNetwork(saved.model, saved.config.MODEL.task == "multi_class")
    source = folder / f"{name}.onnx"
    if not source.is_file():
        with ready_for_export(network):
            shape = (saved.model.in_channels, *saved.model.image_size)
            export_onnx(network, shape, source, {}, output_names=network.output_names())
    batches = [calibration[i : i + BATCH] for i in range(0, len(calibration), BATCH)]
    makers: dict[str, Callable[[Path], object]] = {
        "int8 dynamic": lambda target: quantize_dynamic(source, target),
        "int8 static": lambda target: quantize_static(source, target, batches),
    }
    if all_of_them:
        makers |= {
            "fp16": lambda target: to_half(source, target),
            "int8 dynamic, 8-bit weights": lambda target: quantize_dynamic(source, target, seven_bits=False),
            "int8 static, 8-bit weights": lambda target: quantize_static(source, target, batches, seven_bits=False),
        }
    found = [Variant(f"{name}: ONNX fp32", size_of(source), first_output(open_onnx(source, threads)))]
    for kind, make in makers.items():
        target = folder / f"{name}-{kind}.onnx"
        if not target.is_file():
            make(target)
        found.append(Variant(f"{name}: ONNX {kind}", size_of(target), first_output(open_onnx(target, threads))))
    return found


def size_of(path: Path) -> float:
    """Of a file, in units of 10⁶ bytes."""
    return path.stat().st_size / 1e6


def all_variants(paths: dict[str, Path], split: Split, threads: int, folder: Path) -> list[Variant]:
    """PyTorch's and all ONNX variants of the first checkpoint, the main ones of the others."""
    found: list[Variant] = []
    first = next(iter(paths.values()))
    for name, path in paths.items():
        saved = load_model(path)
        if not found:
            network = ExportedNetwork(saved.model, saved.config.MODEL.task == "multi_class")
            megabytes = sum(p.numel() * 4 for p in saved.model.parameters()) / 1e6
            found.append(Variant(f"{name}: torch fp32", megabytes, torch_run(network, False)))
            if choose_precision("auto", torch.device("cpu")).dtype is torch.bfloat16:  # emulated it takes hours
                found.append(Variant(f"{name}: torch bf16 autocast", megabytes, torch_run(network, True)))
        found += onnx_variants(saved, folder, name, split.calibration, threads, path == first)
    return found


def scores_of(run: Run, images: np.ndarray) -> np.ndarray:
    """Probabilities, float64 [N, K]."""
    return np.concatenate([run(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]).astype(np.float64)


def timed(variants: Sequence[Variant], images: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per image, all variants in turn: medians of wall time and of CPU time over all threads."""
    taken: dict[str, list[tuple[float, float]]] = {variant.name: [] for variant in variants}
    for number in range(rounds + 1):
        for variant in variants:
            wall, cpu = time.perf_counter(), time.process_time()
            variant.run(images)
            pair = time.perf_counter() - wall, time.process_time() - cpu
            if number:  # the first is a warm-up
                taken[variant.name].append(pair)
    scale = 1e3 / len(images)
    return {
        name: {
            kind: statistics.median(pair[i] for pair in pairs) * scale for i, kind in enumerate(("wall_ms", "cpu_ms"))
        }
        for name, pairs in taken.items()
    }


def measure(paths: dict[str, Path], calibration_count: int, rounds: int, threads: int, kept: Path | None) -> dict:
    """All figures, as plain values; the first variant is what others are compared with."""
    torch.set_num_threads(threads)
    first = next(iter(paths.values()))
    saved = load_model(first)
    split = read_split(first, saved, calibration_count)
    names = saved.class_names or tuple(map(str, range(split.targets.shape[1])))
    with tempfile.TemporaryDirectory() as folder:
        variants = all_variants(paths, split, threads, kept or Path(folder))
        scores = {variant.name: scores_of(variant.run, split.images) for variant in variants}
        times = timed(variants, split.images[:BATCH], rounds)
    reference = variants[0].name
    rows = []
    for variant in variants:
        scored = ScoredSplit(scores[variant.name], split.targets, split.mask, split.patients, tuple(names))
        against = compare_scores(scored, scores[reference], reference)["mean"]
        apart = np.abs(scores[variant.name] - scores[reference])
        rows.append(
            {
                "name": variant.name,
                "megabytes": variant.megabytes,
                **times[variant.name],
                "auroc": against["auroc"],
                "difference": against["difference"],
                "largest_change": float(apart.max()),
                "mean_change": float(apart.mean()),
            }
        )
    return {
        "environment": describe_environment("cpu", "fp32"),
        "model": {"backbone": saved.config.MODEL.backbone, "attention": saved.model.attention_mode},
        "image_size": list(saved.model.image_size),
        "images": len(split.images),
        "patients": len(set(split.patients)),
        "calibration_images": len(split.calibration),
        "rounds": rounds,
        "threads": threads,
        "busy": load_average(),
        "rows": rows,
    }


def load_average() -> float | None:
    """Processes that want a core, mean of the last minute: others' work shows in it."""
    path = Path("/proc/loadavg")
    return float(path.read_text().split()[0]) if path.is_file() else None


HEADING = "variant | MB | wall ms | CPU ms | speed by CPU time | AUROC | ΔAUROC (95 %) | largest Δp | mean Δp"


def table(rows: Sequence[dict]) -> str:
    """Markdown, a line a variant."""
    base = next(row for row in rows if row["name"].endswith("ONNX fp32"))["cpu_ms"]
    lines = []
    for row in rows:
        d = row["difference"]
        cells = [row["name"], f"{row['megabytes']:.1f}", f"{row['wall_ms']:.1f}", f"{row['cpu_ms']:.1f}"]
        cells += [f"{base / row['cpu_ms']:.2f}×", f"{row['auroc']:.4f}"]
        cells += [f"{d['value']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"]
        cells += [f"{row['largest_change']:.4f}", f"{row['mean_change']:.4f}"]
        lines.append(cells)
    return markdown_table(HEADING, lines)


def page(figures: dict) -> str:
    """The Markdown page; every number in it is of this run."""
    machine, model = figures["environment"], figures["model"]
    size = "×".join(map(str, figures["image_size"]))
    bf16 = any("bf16" in row["name"] for row in figures["rows"])
    return f"""# int8 and half types on a CPU, measured

Written by `python -m benchmarks.quantization` on {machine["time"][:10]}: {machine["processor"]}, threads used:
{figures["threads"]}, Python {machine["python"]}, torch {machine["packages"]["torch"]}.

{model["backbone"]} (attention: {model["attention"]}) at {size} px, {figures["images"]} test images of
{figures["patients"]} patients. Static int8 was calibrated with {figures["calibration_images"]} training images.
Milliseconds are for an image, in batches of {BATCH}: medians of {figures["rounds"]} rounds in which all variants take
turns. The machine's load was {figures["busy"]}, others' work included, so that CPU time, of all threads, says more than
wall time. bf16 is measured where the processor has it; this one has {"it" if bf16 else "not"}. ΔAUROC is against the
first line: mean over classes, with a paired bootstrap over patients. Δp is a change of a probability. Variants not
called *trained* are of other weights: their ΔAUROC has the effect of their training too, and what int8 does to them is
the difference from their own fp32 line.

{table(figures["rows"])}
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a .pth file in its run's folder")
    parser.add_argument("--beside", metavar="NAME=CHECKPOINT", nargs="+", default=[], help="others for the same split")
    parser.add_argument("--calibration-count", type=int, default=64, help="training images; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--folder", type=Path, help="where ONNX files are kept; those that are there are used again")
    options = parser.parse_args(arguments)
    others = dict(text.split("=", 1) for text in options.beside)
    paths = {"trained": options.checkpoint, **{name: Path(path) for name, path in others.items()}}
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    figures = measure(paths, options.calibration_count, options.rounds, options.threads, options.folder)
    text = page(figures)
    print(text)
    if not options.no_write:
        write_page(PAGE, text, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
