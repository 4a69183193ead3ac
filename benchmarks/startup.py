"""How long a run takes to get going: imports, settings, data, network, probe, first batch, each in fresh processes.

python -m benchmarks.startup               # writes docs/benchmarks/startup.{md,json}
python -m benchmarks.startup --processes 3 --backbone resnet18 --no-write

A stage is timed as train.py goes through it, on drawn images that lie on the disk already. Processes with different
backbones take turns; times are medians over processes. Files are in the operating system's cache after the first ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from benchmarks.pages import markdown_table, write_page

if TYPE_CHECKING:
    from utils.environment import EnvironmentRecord

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "startup.md"
NAMES = (
    "resnet18",
    "resnet50",
    "convnext_tiny",
    "convnext_base",
    "swin_tiny",
    "efficientnetv2_s",
    "vit_small",
    "vim_tiny",
)
SCRIPTS = [path.name for path in sorted(ROOT.glob("*.py")) if "PYTHON_ARGCOMPLETE_OK" in path.read_text("utf-8")]
MODULES = ["evaluation", "explain", "inference.serve", "utils.checkpoint"]
HELP = {
    **{f"{name} --help": [name, "--help"] for name in SCRIPTS},
    **{f"python -m {name} --help": ["-m", name, "--help"] for name in MODULES},
}
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    **HELP,
    "import torch": ["-c", "import torch"],
    "import torch, torchvision": ["-c", "import torch, torchvision"],
    "import torch, torchvision, timm": ["-c", "import torch, torchvision, timm"],
}
STAGES = ("settings", "imports", "data", "network", "loaders", "probe", "trainer", "first batch", "first step")
WANTED_HELP, IMAGES = 0.5, 64


# ---- in the fresh process


class Stopwatch:
    """Seconds of what happens between calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now


def stages(overrides: list[str]) -> dict[str, float]:
    """Go through the beginning of train.py up to the first optimizer step; seconds by stage."""
    done = Stopwatch()
    from configs.default_config import Config

    config = Config.from_overrides(overrides)
    done("settings")

    from data.builder import build_loaders, open_data, split_data
    from models import create_model
    from training.builder import build_learner, build_loop, build_loss, resolve_precision
    from training.precision import choose_device
    from utils.process import prepare_process
    from utils.runs.recorder import Recorder  # noqa: F401 - train.py needs it, so its import counts

    done("imports")
    device = choose_device(config.TRAIN.device)
    prepare_process(device, config.TRAIN.seed)
    dataset_index = open_data(config)
    config = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    assignment = split_data(config, dataset_index, None)
    done("data")
    model = create_model(config, None).to(device)
    backbone = model.backbone
    done("network")
    loaders = build_loaders(config, dataset_index, assignment, backbone.mean, backbone.std, device.type)
    done("loaders")
    config = resolve_precision(config, model, backbone.prefers_channels_last)
    done("probe")
    loss = build_loss(config, loaders.train_labels(), loaders.coarse_groups, device)
    trainer = build_loop(config, build_learner(config, model, len(loaders.train)), loss)
    done("trainer")
    _, batch = next(iter(loaders.train.epoch(0)))
    assert batch is not None
    done("first batch")
    model.train()
    trainer.train_step([batch])
    done("first step")
    return done.seconds


# ---- around it


def run_seconds(arguments: Sequence[str]) -> tuple[float, subprocess.CompletedProcess]:
    """(seconds from start to end of `python …` in the project's folder, what it said). Raises where it fails."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, done


def command_seconds(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds of `python …` as {'all': …, 'cpu': …}: of the clock, and of the processor."""
    before = os.times()
    seconds = run_seconds(arguments)[0]
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"all": seconds, "cpu": cpu}


def stages_of(name: str, size: int, folder: Path) -> dict[str, float]:
    """Seconds by stage of one backbone, in a fresh process; 'all' from its start to its end."""
    overrides = [
        f"MODEL.backbone={name}",
        "MODEL.pretrained=false",
        f"DATA.data_dir={folder}",
        f"DATA.image_size={size}",
        "DATA.num_workers=0",
        "TRAIN.batch_size=8",
        "TRAIN.mixed_precision=auto",
    ]
    seconds, done = run_seconds(["-m", "benchmarks.startup", "--stages", *overrides])
    return {**json.loads(done.stdout.splitlines()[-1]), "all": seconds}


def heaviest_imports(most: int) -> list[tuple[str, float]]:
    """(package, seconds of its own modules), slowest first, of what the stage 'imports' loads."""
    code = (
        "import data.builder, models, training.builder, training.precision, training.resume, utils.checkpoint, "
        "utils.runs.recorder, utils.seed"
    )
    _, done = run_seconds(["-X", "importtime", "-c", code])
    return own_seconds(done.stderr)[:most]


def own_seconds(report: str) -> list[tuple[str, float]]:
    """The report of -X importtime as (top-level package, seconds spent in its modules themselves), slowest first."""
    seconds: dict[str, float] = {}
    for microseconds, package in re.findall(r"^import time:\s*(\d+) \|\s*\d+ \|\s*([^\s.]+)", report, re.MULTILINE):
        seconds[package] = seconds.get(package, 0) + int(microseconds) / 1e6
    return sorted(seconds.items(), key=lambda item: -item[1])


def medians(measure: Mapping[str, Callable[[], dict[str, float]]], times: int) -> dict[str, dict[str, float]]:
    """Medians by name of what the functions give, each called so many times, all in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in measure}
    for _ in range(times):
        for name, function in measure.items():
            found[name].append(function())
    return {n: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for n, rows in found.items()}


class Figures(TypedDict):
    """Seconds. commands, cpu: of each, by the clock and of the processor. stages: backbone → stage →
    seconds. imports: package, seconds of its own modules.
    """

    environment: EnvironmentRecord
    processes: int
    size: int
    commands: dict[str, float]
    cpu: dict[str, float]
    stages: dict[str, dict[str, float]]
    imports: list[tuple[str, float]]


def measure(names: Sequence[str], size: int, processes: int) -> Figures:
    """All figures, as plain values."""
    from data.phantom.radiographs import write_phantom
    from utils.environment import describe_environment

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        write_phantom(folder, IMAGES, 128)
        commands = {name: partial(command_seconds, arguments) for name, arguments in COMMANDS.items()}
        backbones = {name: partial(stages_of, name, size, folder) for name in names}
        taken = medians(commands | backbones, processes)
    return {
        "environment": describe_environment("auto", "auto"),
        "processes": processes,
        "size": size,
        "commands": {name: taken[name]["all"] for name in commands},
        "cpu": {name: taken[name]["cpu"] for name in commands},
        "stages": {name: taken[name] for name in backbones},
        "imports": heaviest_imports(8),
    }


# ---- the page


def page(figures: Figures) -> str:
    """The Markdown page; every number in it is of this run."""
    machine = figures["environment"]
    rows = [[name, *(f"{row[key]:.2f}" for key in (*STAGES, "all"))] for name, row in figures["stages"].items()]
    commands = [
        [f"`{name}`", f"{seconds:.2f}", f"{figures['cpu'][name]:.2f}"] for name, seconds in figures["commands"].items()
    ]
    imports = ", ".join(f"{name} {seconds:.2f}" for name, seconds in figures["imports"])
    slowest = max(figures["commands"][name] for name in HELP)
    return f"""# Start-up

Written by `python -m benchmarks.startup` on {machine["time"][:10]}: {machine["processor"]}, {machine["cores"]} cores,
Python {machine["python"]}, torch {machine["packages"]["torch"]}, timm {machine["packages"]["timm"]}.

Seconds, medians of {figures["processes"]} fresh processes each, which take turns.

{markdown_table("command | seconds | of the processor", commands)}

`--help` of every script in under {WANTED_HELP:g} s: {"met" if slowest < WANTED_HELP else "MISSED"}. Scripts take their
command line apart without torch, NumPy and pydantic; what a command needs is imported when it is known.

What train.py does until its first optimizer step, by backbone, random weights, {figures["size"]} px, a batch of 8,
{IMAGES} drawn images of 128 px, no data workers:

{markdown_table(" | ".join(["backbone", *STAGES, "all"]), rows)}

- *imports* are torch, torchvision, timm and OpenCV. Their own modules, by `-X importtime`, which itself takes time:
  {imports}.
  torchvision's operators import torch's compiler, which AdamW would import otherwise.
- *probe* is that of `TRAIN.mixed_precision=auto` and `TRAIN.channels_last=auto`; with both set it does not happen.
- *all* is the process from start to end.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 where something wanted was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", metavar="NAME", default=list(NAMES), help="only these")
    parser.add_argument("--size", type=int, default=224, help="pixels; default: %(default)s")
    parser.add_argument("--processes", type=int, default=5, help="of each kind; default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--stages", nargs="+", metavar="SECTION.key=value", help="time this process alone, as JSON")
    options = parser.parse_args(arguments)
    if options.stages:
        print(json.dumps(stages(options.stages)))
        return 0
    figures = measure(options.backbone, options.size, options.processes)
    text = page(figures)
    print(text)
    if not options.no_write:
        write_page(PAGE, text, figures)
    return 0 if max(figures["commands"][name] for name in HELP) < WANTED_HELP else 1


if __name__ == "__main__":
    sys.exit(main())
