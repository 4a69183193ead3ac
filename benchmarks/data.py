"""Reading images, measured: images per second from files and from a cache, beside torchvision and MONAI.

python -m benchmarks.data                                 # writes docs/benchmarks/data.{md,json}
python -m benchmarks.data --images 64 --repeats 1 --no-write
pip install -r benchmarks/requirements.txt                # MONAI, for the comparison

Images are drawn images of 1,024 px (the .npz: of 224 px), made in a temporary folder and thrown away. An epoch is one
of training: decoded, fitted to 224 px, lightly augmented, normalised, three channels, batches of 16.
The pipelines of one format take turns; first epochs of caches, in which processes start, are not counted.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from benchmarks.data_pipelines import (
    DISTINCT,
    SIZE,
    Epoch,
    Source,
    import_monai,
    our_epoch,
    our_reader,
    with_monai,
    with_pillow,
    write_sources,
)
from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from configs.errors import HybridMedNetError
from data.readers.images import read_image, read_reduced
from data.transforms.images import Preprocess
from utils.environment import EnvironmentRecord, describe_environment

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "data.md"
WORKERS = (0, 1, 2)
FILES, DISK, RAM, PILLOW = "ours, files", "ours, cache: disk", "ours, cache: ram", "PIL + torchvision, files"
CACHED_MONAI, PERSISTENT_MONAI = "MONAI CacheDataset", "MONAI PersistentDataset"
FILES_ONLY, DISK_ONLY = "ours, files, not augmented", "ours, cache: disk, not augmented"
CACHES = (DISK, RAM, DISK_ONLY, CACHED_MONAI, PERSISTENT_MONAI)
WANTED_READBACK, WANTED_GAIN, WANTED_DIFFERENCE = 20_000, 10, 1.0


class PipelineRates(TypedDict):
    """Images per second of a pipeline's epochs. filling_seconds: of its cache, None without one."""

    source: str
    pipeline: str
    workers: int
    rates: list[float]
    filling_seconds: float | None


class Figures(TypedDict):
    """All that is measured. readback, reduction: see `measure_readback` (by source) and `measure_reduction`."""

    environment: EnvironmentRecord
    versions: dict[str, str | None]
    images: int
    repeats: int
    threads: int
    rows: list[PipelineRates]
    readback: dict[str, dict[str, list[float]]]
    reduction: dict[str, float]


def pipelines(source: Source, monai: bool, location: Path) -> Iterator[tuple[str, int, Callable[[], Epoch]]]:
    """(name, workers, what makes and fills it) of all that can read a source."""
    for workers in WORKERS:
        for name, cache in ((FILES, "none"), (DISK, "disk"), (RAM, "ram")):
            yield name, workers, partial(our_epoch, source, workers, cache)
        if source.name in ("JPEG", "PNG") and not workers:
            yield FILES_ONLY, workers, partial(our_epoch, source, workers, "none", False)
            yield DISK_ONLY, workers, partial(our_epoch, source, workers, "disk", False)
        if source.name in ("JPEG", "PNG"):
            yield PILLOW, workers, partial(with_pillow, source, workers)
        if monai and source.files:
            yield CACHED_MONAI, workers, partial(with_monai, source, workers, None)
            yield PERSISTENT_MONAI, workers, partial(with_monai, source, workers, location / source.name)


def rate(epoch: Epoch, numbers: Iterator[int], least_seconds: float) -> float:
    """Images per second over whole epochs, as many as take so long."""
    begin, done = time.perf_counter(), 0
    while not done or time.perf_counter() - begin < least_seconds:
        done += sum(len(batch) for batch in epoch(next(numbers)))
    return done / (time.perf_counter() - begin)


def measure_source(source: Source, monai: bool, location: Path, repeats: int) -> list[PipelineRates]:
    """One row per pipeline: rates of its epochs, seconds to fill it."""
    rows: list[PipelineRates] = []
    running: list[tuple[Epoch, Iterator[int]]] = []
    for name, workers, make in pipelines(source, monai, location):
        begin = time.perf_counter()
        epoch = make()
        filling = time.perf_counter() - begin if name in CACHES else None
        rows.append(
            {"source": source.name, "pipeline": name, "workers": workers, "rates": [], "filling_seconds": filling}
        )
        running.append((epoch, iter(range(10**9))))
        if name in CACHES:
            rate(epoch, running[-1][1], 0.0)
    for _ in range(repeats):
        for row, (epoch, numbers) in zip(rows, running):
            row["rates"].append(rate(epoch, numbers, 1.0 if row["pipeline"] in CACHES else 0.0))
            print(
                f"{row['source']}, {row['pipeline']}, {row['workers']} workers: {row['rates'][-1]:,.0f}/s", flush=True
            )
    return rows


def measure_readback(source: Source, repeats: int) -> dict[str, list[float]]:
    """Images per second of the caches' readers alone, in this process: with checksums, as at first, and without."""
    found: dict[str, list[float]] = {"disk, first": [], "disk": [], "ram, first": [], "ram": []}
    readers = {cache: our_reader(source, cache) for cache in ("disk", "ram")}
    for _ in range(repeats):
        for cache, reader in readers.items():
            reader._checked[:] = False
            order = np.random.default_rng(0).permutation(len(reader._checked)).tolist()
            found[f"{cache}, first"].append(_read_all(reader, order, 1))
            found[cache].append(_read_all(reader, order, -(-5000 // len(order))))
    return found


def _read_all(reader: Callable[[int], object], order: list[int], passes: int) -> float:
    begin = time.perf_counter()
    for _ in range(passes):
        for index in order:
            reader(index)
    return passes * len(order) / (time.perf_counter() - begin)


def measure_reduction(source: Source) -> dict[str, float]:
    """What decoding a JPEG at half its size saves, in ms of the median image, and changes, in grey levels of 255."""
    preprocess = Preprocess((SIZE, SIZE), 1, [0.0], [1 / 255])
    readers: dict[str, Callable[[Path], np.ndarray | None]] = {
        "full": read_image,
        "reduced": partial(read_reduced, least=(2 * SIZE, 2 * SIZE)),
    }
    seconds: dict[str, list[float]] = {"full": [], "reduced": []}
    differences = []
    for path in source.files[:DISTINCT]:
        inputs = []
        for name, read in readers.items():
            begin = time.perf_counter()
            image = read(path)
            seconds[name].append(time.perf_counter() - begin)
            assert image is not None, "a JPEG file of 1,024 px is decoded at half its size"
            inputs.append(preprocess(image))
        differences.append(np.abs(inputs[0] - inputs[1]))
    times = {f"{name}_ms": 1000 * statistics.median(values) for name, values in seconds.items()}
    return {**times, "mean": float(np.mean(differences)), "most": float(np.max(differences))}


def measure(count: int, repeats: int, monai: bool) -> Figures:
    """All figures, as plain values."""
    rates: list[PipelineRates] = []
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder) / "sources", count)
        environment = describe_environment("cpu", "float32")
        for source in sources:
            rates += measure_source(source, monai, Path(folder) / "monai", repeats)
            gc.collect()  # ends the workers
        return {
            "environment": environment,
            "versions": {"monai": metadata.version("monai") if monai else None},
            "images": count - 4,
            "repeats": repeats,
            "threads": torch.get_num_threads(),
            "rows": rates,
            "readback": {source.name: measure_readback(source, repeats) for source in (sources[1], sources[2])},
            "reduction": measure_reduction(sources[0]),
        }


def median(figures: Figures, source: str, pipeline: str, workers: int) -> float | None:
    """Images per second; None where that was not measured."""
    for row in figures["rows"]:
        if (row["source"], row["pipeline"], row["workers"]) == (source, pipeline, workers):
            return statistics.median(row["rates"])
    return None


def verdicts(figures: Figures) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough; of rates the median counts."""
    found: list[Verdict] = []
    for cache in ("disk", "ram"):
        rates = figures["readback"]["PNG"][cache]
        enough = statistics.median(rates) >= WANTED_READBACK
        found.append(
            (
                f"{WANTED_READBACK:,} images/s read back on one core, {cache}",
                f"{statistics.median(rates):,.0f}",
                enough,
            )
        )
    for source in ("JPEG", "PNG"):
        files, cached = (median(figures, source, name, 0) or 0.0 for name in (FILES_ONLY, DISK_ONLY))
        wanted = f"a cached epoch {WANTED_GAIN} times as fast, {source}, not augmented"
        found.append((wanted, f"{cached / files:.1f} times", cached >= WANTED_GAIN * files))
        files = median(figures, source, FILES, 0) or 0.0
        plain = median(figures, source, PILLOW, 0) or 0.0
        found.append(
            (f"files no slower than PIL + torchvision, {source}", f"{files / plain:.2f} times", files >= plain)
        )
        for other in (CACHED_MONAI, PERSISTENT_MONAI):
            theirs = median(figures, source, other, 0)
            if theirs is not None:
                mine = median(figures, source, RAM if other == CACHED_MONAI else DISK, 0) or 0.0
                found.append(
                    (f"a cache no slower than {other}, {source}", f"{mine / theirs:.2f} times", mine >= theirs)
                )
    change = figures["reduction"]
    wanted = f"JPEG at half its size within {WANTED_DIFFERENCE:g} grey level on average"
    found.append((wanted, f"{change['mean']:.2f}, at most {change['most']:.0f}", change["mean"] < WANTED_DIFFERENCE))
    return found


def rows(figures: Figures) -> list[list[str]]:
    """One line per source and pipeline: images per second by workers, gain over our files, seconds to fill."""
    found = []
    for source, pipeline in dict.fromkeys((row["source"], row["pipeline"]) for row in figures["rows"]):
        rates = [median(figures, source, pipeline, workers) for workers in WORKERS]
        files = FILES_ONLY if pipeline == DISK_ONLY else FILES
        gain = (rates[0] or 0.0) / (median(figures, source, files, 0) or 1.0)
        mine = [row for row in figures["rows"] if (row["source"], row["pipeline"]) == (source, pipeline)]
        filling = max((row["filling_seconds"] for row in mine if row["filling_seconds"] is not None), default=None)
        cells = [source, pipeline, *("" if value is None else f"{value:,.0f}" for value in rates), f"{gain:.1f}"]
        found.append([*cells, "" if filling is None else f"{filling:.1f} s"])
    return found


def page(figures: Figures) -> str:
    """The Markdown page; every number in it is of this run."""
    machine = figures["environment"]
    packages = {**machine["packages"], "monai": figures["versions"]["monai"]}
    named = ("torch", "torchvision", "pillow", "opencv-python-headless", "monai")
    versions = ", ".join(f"{name} {packages[name]}" for name in named if packages[name])
    readback = [
        [source, *(f"{statistics.median(values):,.0f}" for values in found.values())]
        for source, found in figures["readback"].items()
    ]
    change = figures["reduction"]
    return f"""# Reading images, measured

Written by `python -m benchmarks.data` on {machine["time"][:10]}: {machine["processor"]}, {machine["cores"]} cores,
{figures["threads"]} threads, Python {machine["python"]}, {versions}.

{figures["images"]} drawn images of 1,024 px (8 bits; DICOM: 12 bits, uncompressed; .npz: 224 px, in memory), fitted to
{SIZE} px, lightly augmented, normalised, three channels. Images per second of the training loader, medians of
{figures["repeats"]} rounds in which the pipelines took turns; on a machine with fewer free cores than workers more of
these do not help. Files are in the page cache. *gain*: over our files with no workers, augmented or not as they are: a
cache spares decoding, while augmentation takes its time with it too. *filling*: of ours once, with the workers of that
column, later ones open the file; MONAI's CacheDataset fills by threads.

{markdown_table("source | pipeline | 0 workers | 1 | 2 | gain | filling, the longest", rows(figures))}

{verdict_table(verdicts(figures))}

## The reader of a cache alone

Images per second on one core; *first*: with the checksum that each process compares once. PNG: uint8, one channel.
DICOM: uint16, turned into float32.

{markdown_table("source | " + " | ".join(next(iter(figures["readback"].values()))), readback)}

## JPEG at half its size

For an input of {SIZE} px an image of 1,024 px is decoded at 512: {change["reduced_ms"]:.1f} ms instead of
{change["full_ms"]:.1f}. The input differs by {change["mean"]:.2f} grey levels of 255 on average,
{change["most"]:.0f} at most.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where a limit was missed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=196, help="of each format; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; default: %(default)s")
    parser.add_argument("--without-monai", action="store_true", help="leave out the comparison with MONAI")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    try:
        if not options.without_monai:
            import_monai()
        figures = measure(options.images, options.repeats, not options.without_monai)
    except HybridMedNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        logging.disable(logging.NOTSET)
    text = page(figures)
    return report(None if options.no_write else PAGE, text, figures, verdicts(figures))


if __name__ == "__main__":
    sys.exit(main())
