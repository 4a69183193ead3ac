"""Kill a training run again and again, resume it, and compare its end with that of an undisturbed run.

python tests/kill_harness.py --kills 200        (about 3 s a kill on two cores)

Each attempt is a process of its own: a fork of one that has imported everything and computed nothing, which saves the
seconds of importing torch. It is killed by SIGKILL, with its data workers, after a random time. Kills land anywhere:
in start-up, in a step, while a checkpoint is written, in evaluation, in the final report.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from configs.errors import CheckpointError
from data.phantom.radiographs import write_phantom
from utils.checkpoint import load_checkpoint

# What a run imports on its way, so that it is there before the fork.
for name in ("models", "data.builder", "training.resume", "utils.runs.recorder", "utils.runs.plots", "albumentations"):
    importlib.import_module(name)
for name in ("matplotlib.backends.backend_agg", "tensorboard.compat.proto.event_pb2"):
    importlib.import_module(name)

SETTINGS: dict[str, Any] = {
    "MODEL.backbone": "timm/test_resnet",  # few tensors: a run is saved and read more often than it steps
    "MODEL.pretrained": "false",
    "MODEL.attention": "cbam",
    "MODEL.fusion_channels": 16,
    "MODEL.drop_path": 0.1,
    "DATA.image_size": 32,
    "DATA.num_workers": 0,
    "TRAIN.epochs": 3,
    "TRAIN.batch_size": 4,
    "TRAIN.gradient_accumulation_steps": 2,
    "TRAIN.ema_decay": 0.9,
    "TRAIN.device": "cpu",
    "TRAIN.mixed_precision": "false",
    "TRAIN.channels_last": "true",
    "CHECKPOINT.save_freq": 2,
    "CHECKPOINT.save_every_steps": 2,
    "LOGGING.print_freq": 1,
    "LOGGING.progress": "plain",
}


def launch(arguments: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Fork a process, the leader of its own group, that runs train.py with these arguments; its number.

    prepare: called in the new process first.
    """
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
        torch.set_num_threads(1)
        prepare()
        code = train.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(number: int, seconds: float | None = None) -> int | None:
    """The exit code (negative: the signal that ended it), or None where it runs on after so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        finished, status = os.waitpid(number, 0 if end is None else os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill_group(number: int) -> None:
    """SIGKILL for a process and its workers; waits for its end."""
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(number, signal.SIGKILL)  # before it was the leader of a group
    wait(number)


def arguments_of(data: Path, folder: Path, settings: dict[str, Any]) -> list[str]:
    """The command line of a run in `folder`."""
    location = {
        "DATA.data_dir": data,
        "CHECKPOINT.save_dir": folder.parent,
        "LOGGING.log_dir": folder.parent / "logs",
        "LOGGING.run_name": folder.name,
    }
    return ["--set", *(f"{key}={value}" for key, value in {**SETTINGS, **settings, **location}.items())]


@dataclass
class Outcome:
    """What a disturbed run came to."""

    kills: int = 0
    attempts: int = 0
    unreadable: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    steps_at_kill: list[int] = field(default_factory=list)


def undisturbed(
    data: Path, folder: Path, settings: dict[str, Any], prepare: Callable[[], None] = lambda: None
) -> float:
    """Train once without a kill; the seconds it took."""
    started = time.monotonic()
    code = wait(launch(arguments_of(data, folder, settings), folder.parent / f"{folder.name}.txt", prepare))
    if code != 0:
        raise RuntimeError((folder.parent / f"{folder.name}.txt").read_text())
    return time.monotonic() - started


def killed(data: Path, folder: Path, settings: dict[str, Any], kills: int, span: float, rng: random.Random) -> Outcome:
    """Train with up to `kills` kills, each at a time drawn from 70 % of `span` seconds, then to the end."""
    outcome, log = Outcome(), folder.parent / f"{folder.name}.txt"
    while True:
        outcome.attempts += 1
        has_config = (folder / "config.yaml").is_file()
        if folder.exists() and not has_config:  # killed between the two: there is nothing to go on from
            shutil.rmtree(folder)
        arguments = ["--resume", str(folder)] if has_config else arguments_of(data, folder, settings)
        process = launch(arguments, log)
        code = wait(process, rng.uniform(0, 0.7 * span)) if outcome.kills < kills else wait(process)
        if code is None:
            kill_group(process)
            outcome.kills += 1
            _look_at_checkpoints(folder, outcome)
            continue
        if code != 0:
            outcome.failures.append(f"exit code {code}:\n{log.read_text()[-3000:]}")
        return outcome


def _look_at_checkpoints(folder: Path, outcome: Outcome) -> None:
    step = -1
    for path in folder.glob("*.pth"):
        try:
            content = load_checkpoint(path)
        except CheckpointError as error:
            outcome.unreadable.append(str(error))
            continue
        step = max(step, content.get("progress", {}).get("global_step", -1))
    outcome.steps_at_kill.append(step)


def differing(one: Path, other: Path) -> list[str]:
    """What of two runs' ends is not equal bit for bit: entries of the checkpoints."""
    found = []
    for name in sorted({path.name for folder in (one, other) for path in folder.glob("*.pth")} - {"previous.pth"}):
        contents = [dict(flatten(load_checkpoint(folder / name))) for folder in (one, other)]
        keys = [key for key in contents[0] | contents[1] if not key.startswith(".config.")]
        keys = [key for key in keys if re.split("[./]", key)[-1] not in CLOCK]
        found += [f"{name}{key}" for key in keys if not identical(contents[0].get(key), contents[1].get(key))]
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) pairs, as TensorBoard shows them, of what is in its folder; without the clock's."""
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("system/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


CLOCK = ("seconds", "images_per_second", "data_wait_fraction", "memory_mib")


def flatten(value: Any, path: str = ""):
    """(path, leaf) pairs of nested containers."""
    if isinstance(value, dict):
        for key in value:
            yield from flatten(value[key], f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}.{index}")
    else:
        yield path, value


def identical(one: Any, other: Any) -> bool:
    """Equal bits, of tensors too."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other or (one != one and other != other))


def main() -> int:
    """Until so many kills are done: runs with up to eight kills each, compared with the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="data workers of each run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, done, bad, unreadable, runs = random.Random(options.seed), 0, 0, 0, 0
    settings = {"DATA.num_workers": options.workers}
    with tempfile.TemporaryDirectory() as location:
        root = Path(location)
        write_phantom(root / "data", 60, 64)
        span = undisturbed(root / "data", root / "whole", settings)
        print(f"undisturbed: {span:.1f} s")
        while done < options.kills:
            folder = root / f"killed{runs}"
            outcome = killed(root / "data", folder, settings, min(8, options.kills - done), span, rng)
            differences = outcome.failures or differing(root / "whole", folder)
            if scalars(root / "logs" / folder.name) != scalars(root / "logs" / "whole"):
                differences += ["TensorBoard's figures"]
            done, runs = done + outcome.kills, runs + 1
            bad, unreadable = bad + bool(differences), unreadable + len(outcome.unreadable)
            print(f"run {runs}: killed {outcome.kills} times, at steps {outcome.steps_at_kill}: ", end="")
            print("equal bit for bit" if not differences else f"DIFFERENT: {differences[:3]}", flush=True)
    print(
        f"{done} kills in {runs} runs: {runs - bad} ended as the undisturbed one, {unreadable} unreadable checkpoints"
    )
    return int(bool(bad or unreadable))


if __name__ == "__main__":
    sys.exit(main())
