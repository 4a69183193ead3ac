"""What the tests of train.py share: the smallest settings, a call of train.main, data to train on, runs compared."""

import json
import logging
import signal
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch

import train
from tests.kill_harness import flatten, identical
from utils.checkpoint import load_checkpoint

ROOT = Path(train.__file__).resolve().parent
EPOCHS, SIZE = 2, 32

NETWORK = {
    "MODEL.backbone": "timm/test_resnet",  # timm's smallest: checkpoints of 2 MB
    "MODEL.pretrained": "false",
    "MODEL.attention": "cbam",
    "MODEL.fpn": "true",
    "MODEL.fpn_channels": 16,
    "MODEL.fusion_channels": 16,
    "MODEL.fusion_stride": 16,
    "DATA.image_size": SIZE,
    "DATA.num_workers": 0,
    "TRAIN.epochs": EPOCHS,
    "TRAIN.batch_size": 4,
    "TRAIN.device": "cpu",
    "TRAIN.mixed_precision": "false",
    "TRAIN.channels_last": "true",
    "LOGGING.print_freq": 1,
}


def arguments(data: Path, runs: Path, name: str, **others) -> list[str]:
    """--set …; others: SECTION__key=value."""
    locations = {
        "DATA.data_dir": data,
        "CHECKPOINT.save_dir": runs,
        "LOGGING.log_dir": runs / "logs",
        "LOGGING.run_name": name,
    }
    extra = {key.replace("__", "."): value for key, value in others.items()}
    return ["--set", *(f"{key}={value}" for key, value in {**NETWORK, **locations, **extra}.items())]


@contextmanager
def process_state():
    """main() takes over logging, signals and the global random numbers: put them back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    random = torch.get_rng_state()
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)
        torch.set_rng_state(random)


def run_main(args: list[str]) -> int:
    with process_state():
        return train.main([str(arg) for arg in args])


# What makes resuming hard: dropout, BatchNorm, windows of several batches, averaged weights.
HARD = {"TRAIN__gradient_accumulation_steps": 2, "TRAIN__ema_decay": 0.9, "TRAIN__warmup_epochs": 0.5}


def metrics_of(folder: Path) -> list[dict]:
    """Without what the clock and the machine put in."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second", "data_wait_fraction", "memory_mib")}
        for r in rows
    ]


def same_outcome(one: Path, other: Path) -> None:
    """Weights, averages, optimizer and random numbers, bit for bit, and every figure of every epoch."""
    for name in ("last.pth", "best_model.pth"):
        contents = [load_checkpoint(folder / name) for folder in (one, other)]
        for key in ("model", "ema", "optimizer", "schedule", "random"):
            flat = [dict(flatten(content.get(key))) for content in contents]
            assert flat[0].keys() == flat[1].keys()
            assert [path for path in flat[0] if not identical(flat[0][path], flat[1][path])] == []
    assert metrics_of(one) == metrics_of(other)
    assert (one / "split.csv").read_bytes() == (other / "split.csv").read_bytes()


def write_class_folders(root: Path) -> Path:
    """Three kinds of image: dark, bright, striped."""
    for number, name in enumerate(("bright", "dark", "striped")):
        for index in range(12):
            pixels = np.random.default_rng(100 * number + index).integers(0, 40, (24, 24)).astype(np.uint8)
            pixels[:: 2 if number == 2 else 1] += 200 if number != 1 else 0
            (root / name).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(root / name / f"{index}.png"), pixels)
    return root


def write_npz(root: Path) -> Path:
    """Two classes, the second one brighter; 28 × 28 px, split as MedMNIST's files are."""
    arrays = {}
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        labels = np.arange(count) % 2
        noise = np.random.default_rng(count).integers(0, 60, (count, 28, 28))
        arrays[f"{split}_images"] = (noise + 150 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None]
    root.mkdir()
    np.savez(root / "data.npz", **arrays)
    return root / "data.npz"
