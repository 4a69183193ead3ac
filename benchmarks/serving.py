"""What `python -m inference.serve` answers in a second, and how long an answer takes, beside the bare forward pass.

python -m benchmarks.serving                 # writes docs/benchmarks/serving.{md,json}
python -m benchmarks.serving --backbone convnext_tiny --requests 32 --no-write

A server in a process of its own, on the CPU, with a network of random weights; clients are threads that keep their
connection, each with one image a request. The bare passes are of the same network in this process, their input there
already. All take turns in each round. Both have one thread for the network.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.inference import CLASSES
from benchmarks.pages import Verdict, markdown_table, report, verdict_table
from configs.default_config import Config
from data.transforms.images import Preprocess
from models import HybridMedNet
from training.precision import choose_memory_format
from utils.checkpoint import save_checkpoint
from utils.environment import EnvironmentRecord, describe_environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "serving.md"
CLIENTS = (1, 4, 16)
BATCH = 16
WANTED = 0.8  # of the bare passes' images a second, at 16 clients


@dataclass(frozen=True)
class Run:
    """One way in one round: images a second, and milliseconds of a request (of a pass), median and 95th percentile.

    processor_ms: of the process that computes, an image; None where the system does not say it.
    """

    images_per_second: float
    median_ms: float
    p95_ms: float
    processor_ms: float | None


def save_network(folder: Path, backbone: str, size: int) -> HybridMedNet:
    """A network of random weights, and a checkpoint of it in float32."""
    names = [f"class {k + 1}" for k in range(CLASSES)]
    given = [f"MODEL.backbone={backbone}", "MODEL.pretrained=false", f"DATA.image_size={size}"]
    config = Config.from_overrides([*given, "TRAIN.mixed_precision=false"]).resolve(tuple(names))
    torch.manual_seed(0)
    network = HybridMedNet(config).eval()
    preprocess = Preprocess((size, size), network.in_channels, network.backbone.mean, network.backbone.std)
    described = {"class_names": names, "preprocessing": preprocess.as_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint({**described, "model": network.state_dict()}, folder / "best_model.pth")
    return network


@contextmanager
def serving(folder: Path) -> Iterator[tuple[int, int]]:
    """(port, number of the process) of a server."""
    command = [sys.executable, "-m", "inference.serve", str(folder), "--port", "0", "--device", "cpu"]
    command += ["--timeout", "600"]  # on a busy machine
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=environment) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if "127.0.0.1:" not in line:
            raise RuntimeError("the server did not start: python -m inference.serve says why")
        try:
            yield int(line.split("127.0.0.1:")[1].split()[0]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def processor_seconds(pid: int) -> float | None:
    """Of a process until now, all its threads; None but on Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, content: bytes, requests: int) -> list[float]:
    """One client: seconds of each of its requests."""
    connection, seconds = HTTPConnection("127.0.0.1", port, timeout=600), []
    for _ in range(requests):
        begin = time.perf_counter()
        connection.request("POST", "/predict", content, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        body = answer.read()
        seconds.append(time.perf_counter() - begin)
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}: {body[:200]!r}")
    connection.close()
    return seconds


def run_of(seconds: Sequence[float], images: int, wall: float, processor: float | None) -> Run:
    """Of the times of requests or passes, of so many images together in `wall` seconds."""
    ms = [1000 * one for one in seconds]
    spent = None if processor is None else 1000 * processor / images
    return Run(images / wall, statistics.median(ms), float(np.percentile(ms, 95)), spent)


def served(port: int, pid: int, content: bytes, clients: int, requests: int) -> Run:
    """`requests` of all clients together."""
    before, begin = processor_seconds(pid), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = max(1, requests // clients)
        seconds = [one for found in pool.map(lambda _: ask(port, content, each), range(clients)) for one in found]
    wall, after = time.perf_counter() - begin, processor_seconds(pid)
    return run_of(seconds, len(seconds), wall, None if before is None or after is None else after - before)


@torch.inference_mode()
def bare(network: HybridMedNet, size: int, batch: int, images: int) -> Run:
    """Forward passes over a batch that is there, in the memory format that the server has."""
    layout = choose_memory_format("auto", network.backbone.prefers_channels_last)
    x, seconds = torch.randn(batch, network.in_channels, size, size).contiguous(memory_format=layout), []
    network.to(memory_format=layout)
    processor, begin = time.process_time(), time.perf_counter()
    for _ in range(max(1, images // batch)):
        start = time.perf_counter()
        network(x)
        seconds.append(time.perf_counter() - start)
    wall = time.perf_counter() - begin
    return run_of(seconds, batch * len(seconds), wall, time.process_time() - processor)


def measure(options: argparse.Namespace) -> dict[str, Run]:
    """Medians over rounds in which each way has its turn, after one that does not count."""
    torch.set_num_threads(1)
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    side = options.image_size
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    content, rounds = buffer.getvalue(), []
    with tempfile.TemporaryDirectory() as name:
        network = save_network(Path(name), options.backbone, options.size)
        with serving(Path(name)) as (port, pid):
            for _ in range(options.repeats + 1):
                found = {f"bare, {n} at a time": bare(network, options.size, n, options.requests) for n in (1, BATCH)}
                for clients in CLIENTS:
                    found[f"served, {clients} clients"] = served(port, pid, content, clients, options.requests)
                rounds.append(found)
    return {way: middle([found[way] for found in rounds[1:]]) for way in rounds[0]}


def middle(runs: Sequence[Run]) -> Run:
    """The median of each figure."""
    spent = [run.processor_ms for run in runs if run.processor_ms is not None]
    return Run(
        statistics.median(run.images_per_second for run in runs),
        statistics.median(run.median_ms for run in runs),
        statistics.median(run.p95_ms for run in runs),
        statistics.median(spent) if spent else None,
    )


def verdicts(found: dict[str, Run]) -> list[Verdict]:
    """What was wanted, what came, and whether that is enough: by processor time, which others do not take."""
    ours, theirs = (found[way].processor_ms for way in (f"served, {CLIENTS[-1]} clients", f"bare, {BATCH} at a time"))
    if ours is None or theirs is None:
        return [(f"at 16 clients {WANTED:.0%} of the bare passes or more", "", None)]
    return [(f"at 16 clients {WANTED:.0%} of the bare passes or more", f"{theirs / ours:.0%}", theirs / ours >= WANTED)]


def cells(way: str, run: Run) -> list[str]:
    """A row of the table."""
    spent = "–" if run.processor_ms is None else f"{run.processor_ms:.0f}"
    return [way, f"{run.images_per_second:.1f}", f"{run.median_ms:.0f}", f"{run.p95_ms:.0f}", spent]


def page(found: dict[str, Run], options: argparse.Namespace, machine: EnvironmentRecord, load: float) -> str:
    """The Markdown page; every number in it is of this run."""
    heading = "way | images a second | median ms | 95th percentile ms | processor ms an image"
    side = f"{options.image_size} × {options.image_size} pixels"
    hardware = f"{machine['processor']}, {machine['cores']} cores"
    return f"""# The HTTP service against bare forward passes

Written by `python -m benchmarks.serving` on {machine["time"][:10]}: {hardware}, fp32, Python
{machine["python"]}, torch {machine["packages"]["torch"]}. **The machine is shared and noisy**: {load:.1f}
processes wanted a core (load average of 15 minutes, at the end). Times of a clock say what its other users left;
processor time, which is of the process that computes, says what an image costs, as far as that can be told there.

A whole HybridMedNet with {options.backbone}, {CLASSES} classes and random weights, {options.size} px. Each request has
one JPEG image of {side}, which the server decodes, resizes and measures; the input of the bare passes is there.
One thread for the network in both. {options.requests} images a way and round; all take turns; medians of
{options.repeats} rounds after one that does not count. Times of bare passes are of a pass, others of a request, on the
client's side. The server asks about at most {BATCH} images at once, of which the first waits 5 ms for others.

{markdown_table(heading, [cells(way, run) for way, run in found.items()])}

By processor time:

{verdict_table(verdicts(found))}
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where less than wanted was seen, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="of the network's input; default: %(default)s")
    parser.add_argument("--image-size", type=int, default=1024, help="of the images sent; default: %(default)s")
    parser.add_argument("--requests", type=int, default=32, help="a way and round; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    found, load, machine = measure(options), os.getloadavg()[2], describe_environment("cpu", "fp32")
    ways = {way: asdict(run) for way, run in found.items()}
    figures = {"environment": machine, "load_average": load, "options": vars(options), "ways": ways}
    return report(None if options.no_write else PAGE, page(found, options, machine, load), figures, verdicts(found))


if __name__ == "__main__":
    sys.exit(main())
