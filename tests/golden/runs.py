"""The golden runs: what is trained, what is kept of it, how two records are compared.

Everything goes through `train.main` and the files that a run leaves, and through nothing else of this project, so that
the same runs can be made with any earlier commit: `python -m tests.golden compare COMMIT`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch

import train
from tests.golden import data

# Of rows of metrics.jsonl: what the clock and the machine put in, in today's spelling and in earlier ones.
_CLOCK = {
    "seconds",
    "images_per_second",
    "data_wait_fraction",
    "pictures_per_second",
    "waiting_for_data",
    "memory_mib",
}
_COMMON = {
    "MODEL.pretrained": "false",
    "MODEL.fpn_channels": 8,
    "MODEL.fusion_channels": 16,
    "MODEL.dropout": 0.2,
    "DATA.image_size": 32,
    "DATA.num_workers": 0,
    "DATA.augment_on": "cpu",
    "TRAIN.epochs": 2,
    "TRAIN.batch_size": 4,
    "TRAIN.learning_rate": 1e-3,
    "TRAIN.weight_decay": 1e-2,
    "TRAIN.warmup_epochs": 1,
    "TRAIN.device": "cpu",
    "TRAIN.mixed_precision": "false",
    "TRAIN.channels_last": "false",
    "TRAIN.seed": 3,
    "CHECKPOINT.save_freq": 0,
    "LOGGING.tensorboard": "false",
    "LOGGING.print_freq": 1,
    "LOGGING.progress": "plain",
}
_SMALL = {"MODEL.backbone": "timm/test_resnet", "MODEL.attention": "cbam", "MODEL.fpn": "true"}


@dataclass(frozen=True)
class GoldenRun:
    """settings: over the common ones. source: the data set, a function of tests/golden/data.py.

    stop_after: where in the first epoch a SIGTERM comes (batches done); the run is resumed then. teacher: a run whose
    best weights are LOSS.teacher.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = "images"
    stop_after: int = 0
    teacher: str = ""


RUNS: dict[str, GoldenRun] = {
    "classic_flat": GoldenRun({"MODEL.backbone": "resnet18", "DATA.augment": "false"}),
    "classic_hierarchical": GoldenRun({"MODEL.backbone": "resnet18", "MODEL.hierarchical": "true"}),
    "convnext_cross_scale": GoldenRun(
        {"MODEL.backbone": "timm/test_convnext", "MODEL.attention": "cross_scale", "LOSS.type": "focal"}
    ),
    "swin_multi_scale": GoldenRun(
        {"MODEL.backbone": "swin_tiny", "MODEL.attention": "multi_scale", "MODEL.drop_path": 0.1, "TRAIN.epochs": 1}
    ),
    "vit": GoldenRun({"MODEL.backbone": "timm/test_vit", "MODEL.attention": "cross_scale", "MODEL.num_heads": 4}),
    "vision_mamba": GoldenRun({"MODEL.backbone": "vim_tiny", "MODEL.attention": "none", "TRAIN.epochs": 1}),
    "volume": GoldenRun(
        {
            "MODEL.backbone": "convnext3d_tiny",
            "MODEL.attention": "none",
            "MODEL.in_channels": 1,
            "DATA.image_size": "[8, 24, 24]",
            "DATA.spacing_mm": "[4, 2, 2]",
            "DATA.window": "[-400, 300]",
            "DATA.mean": "[0.5]",
            "DATA.std": "[0.25]",
        },
        source="volumes",
    ),
    "multi_class": GoldenRun({**_SMALL, "DATA.use_albumentations": "true"}, source="classes"),
    "cache": GoldenRun({**_SMALL, "DATA.cache": "ram", "DATA.num_workers": 2, "TRAIN.optimizer": "sgd"}),
    "augmented_on_device": GoldenRun({**_SMALL, "DATA.augment_on": "device", "DATA.horizontal_flip": 0.5}),
    "short_last_window": GoldenRun(
        {**_SMALL, "TRAIN.gradient_accumulation_steps": 3, "LOSS.pos_weight": "auto", "LOSS.label_smoothing": 0.1}
    ),
    "averaged": GoldenRun(
        {**_SMALL, "TRAIN.ema_decay": 0.9, "LOSS.type": "asymmetric", "TRAIN.lr_scheduler": "plateau"}
    ),
    "checkpointing": GoldenRun(
        {
            **_SMALL,
            "MODEL.gradient_checkpointing.enabled": "true",
            "MODEL.gradient_checkpointing.segments": 4,
            "MODEL.drop_path": 0.2,
            "MODEL.norm": "group",
        }
    ),
    "quantization_aware": GoldenRun(
        {**_SMALL, "TRAIN.quantization_aware": "true", "TRAIN.ema_decay": 0.5, "DATA.resize": "letterbox"}
    ),
    "distillation": GoldenRun({**_SMALL, "MODEL.fusion_channels": 8}, teacher="averaged"),
    "interrupted": GoldenRun(
        {
            **_SMALL,
            "TRAIN.gradient_accumulation_steps": 2,
            "TRAIN.ema_decay": 0.9,
            "TRAIN.lr_scheduler": "onecycle",
            "MODEL.drop_path": 0.1,
        },
        stop_after=4,
    ),
}

# Runs in old_runs/, and their data. The first two have networks whose channels were pruned, which keeps them small.
OLD_RUNS = {"flat_adamw_averaged": "images", "hierarchical_sgd": "images", "classes_convnext": "classes"}


def fingerprint() -> dict[str, str]:
    """What the last bit may depend on: where it is the same, so are all figures."""
    versions = {module.__name__: module.__version__ for module in (torch, np, cv2, timm)}
    cpu = [line for line in _cpuinfo().splitlines() if line.startswith("model name")]
    name = cpu[0].partition(":")[2].strip() if cpu else platform.processor()
    return {**versions, "cpu": name, "capability": torch.backends.cpu.get_cpu_capability()}


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def make_run(name: str, folder: Path) -> dict[str, Any]:
    """Train `name` in a folder, on one thread, and record it. The folder is kept from run to run: data lie there."""
    run = RUNS[name]
    source = folder / run.source
    if not source.exists():
        getattr(data, f"write_{run.source}")(source)
    settings = {**_COMMON, **run.settings, "DATA.data_dir": source, "CHECKPOINT.save_dir": folder / "runs"}
    settings |= {"LOGGING.run_name": name, "LOGGING.log_dir": folder / "logs"}
    if run.teacher:
        settings["LOSS.teacher"] = folder / "runs" / run.teacher / "best_model.pth"
        if not settings["LOSS.teacher"].exists():
            make_run(run.teacher, folder)
    arguments = ["--set", *(f"{key}={value}" for key, value in settings.items())]
    location = folder / "runs" / name
    if run.stop_after:
        with stopped_after(run.stop_after):
            _main(arguments, expected=143)
        arguments = ["--resume", str(location)]
    _main(arguments)
    return record(location)


def resume_old_run(name: str, folder: Path) -> dict[str, Any]:
    """Go on to its end with a copy of a run that the program of November 2026 (commit 47cd5b6) began, and record it.

    Each was stopped by a SIGTERM in its second epoch of three.
    """
    source = OLD_RUNS[name]
    if not (folder / source).exists():
        getattr(data, f"write_{source}")(folder / source)
    copy = folder / "old" / name
    shutil.copytree(Path(__file__).parent / "old_runs" / name, copy)
    _main(["--resume", str(copy), "--set", f"DATA.data_dir={folder / source}"])
    return record(copy)


def record(folder: Path) -> dict[str, Any]:
    """Of a run's folder: rows of metrics.jsonl without the clock, digests of last.pth and best_model.pth."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last, best = (_load(folder / name) for name in ("last.pth", "best_model.pth"))
    return {
        "metrics": [{key: value for key, value in row.items() if key not in _CLOCK} for row in rows],
        "split": hashlib.sha256((folder / "split.csv").read_bytes()).hexdigest(),
        "weights": digest(last["model"]),
        "average": digest(last["ema"]),
        "optimizer": digest(last["optimizer"]["state"]),
        "random": digest(last["random"]),
        "best": digest(best.get("model")),
    }


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True) if path.is_file() else {}


def digest(content: Any) -> str:
    """SHA-256 of nested containers of tensors and plain values."""
    state = hashlib.sha256()
    _feed(state, content)
    return state.hexdigest()


def _feed(state: Any, content: Any) -> None:
    if isinstance(content, torch.Tensor):
        state.update(f"{content.dtype} {tuple(content.shape)}".encode())
        state.update(content.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(content, Mapping):
        for key in sorted(content, key=str):
            state.update(f"key {key}".encode())
            _feed(state, content[key])
    elif isinstance(content, (list, tuple)):
        for item in content:
            _feed(state, item)
    else:
        state.update(repr(content).encode())


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Where two records of a run differ, to the last bit."""
    lines = [f"{key} differ" for key in expected if key != "metrics" and expected[key] != found.get(key)]
    one, other = (_flat(record["metrics"]) for record in (expected, found))
    lines += [
        f"metrics{key}: {one.get(key)!r} before, {other.get(key)!r} now" for key in one if one[key] != other.get(key)
    ]
    return lines + [f"metrics{key} is new: {other[key]!r}" for key in other if key not in one]


def loss_differences(expected: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> list[str]:
    """For another machine, whose last bits are its own: losses that differ by more than a relative tolerance."""
    one, other = (_flat(record["metrics"]) for record in (expected, found))
    losses = [key for key in one if key.endswith("loss")]
    assert losses
    return [
        f"metrics{key}: {one[key]} and {other.get(key)}"
        for key in losses
        if not abs(one[key] - other.get(key, np.inf)) <= tolerance * abs(one[key])
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {key: leaf for name, item in items for key, leaf in _flat(item, f"{prefix}.{name}").items()}


def _main(arguments: list[str], expected: int = 0) -> None:
    """train.main on one thread; the process's logging, signals and random numbers are put back."""
    root = logging.getLogger()
    handlers, level, threads = root.handlers[:], root.level, torch.get_num_threads()
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    random = torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        code = train.main(arguments)
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, action in signals.items():
            signal.signal(number, action)
        torch.set_rng_state(random)
        torch.set_num_threads(threads)
    if code != expected:
        raise RuntimeError(f"train.py {' '.join(arguments)} ended with {code} instead of {expected}")


class _Stop(logging.Handler):
    """Sends this process a SIGTERM when the progress line of the first epoch says that so many batches are done."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("epoch 1/") and f"  {self.batches}/" in message:
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def stopped_after(batches: int) -> Iterator[None]:
    """Training inside is asked to stop after so many batches of its first epoch."""
    logger, handler = logging.getLogger("utils.progress"), _Stop(batches)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
