"""Where an epoch's time goes: the waits, the computing and the writing of a TrainingLoop, timed from outside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.training_loops import now, one_epoch, trainer_of
from configs.default_config import Config
from data.builder import build_loaders, open_data, split_data
from data.phantom.radiographs import write_phantom
from models import HybridMedNet
from training.builder import resolve_precision
from training.loader import Loader
from training.loop import TrainingLoop
from utils.batch import Batch
from utils.progress import Progress

PARTS = WAITING, FORWARD, BACKWARD, CLIPPING, OPTIMIZER, LOGGING = (
    "waiting for data", "forward", "backward", "clipping", "optimizer", "logging",
)  # fmt: skip


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Parts:
    """Seconds per part. On a GPU they are the host's, which runs ahead of the device."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._begin = dict.fromkeys(PARTS, 0.0)

    def begin(self, part: str) -> None:
        self._begin[part] = time.perf_counter()

    def end(self, part: str) -> None:
        self.seconds[part] += time.perf_counter() - self._begin[part]

    def timed(self, part: str, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The function, its time added to the part's."""

        def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            self.begin(part)
            try:
                return function(*arguments, **named)
            finally:
                self.end(part)

        return run

    @contextmanager
    def watching(self, trainer: TrainingLoop) -> Iterator[None]:
        """Time what this trainer does within; waiting is timed by `TimedLoader`."""
        model, optimizer = trainer.model, trainer.learner.optimizer
        with ExitStack() as undo:
            for handle in (
                model.register_forward_pre_hook(lambda *_: self.begin(FORWARD)),
                model.register_forward_hook(lambda *_: self.end(FORWARD)),
                optimizer.register_step_pre_hook(lambda *_: self.begin(OPTIMIZER)),
                optimizer.register_step_post_hook(lambda *_: self.end(OPTIMIZER)),
            ):
                undo.callback(handle.remove)
            for owner, name, part in (
                (torch.Tensor, "backward", BACKWARD),
                (nn.utils, "clip_grad_norm_", CLIPPING),
                (Progress, "advance", LOGGING),
                *((listener, "on_step", LOGGING) for listener in trainer.listeners),
            ):
                undo.enter_context(patch.object(owner, name, self.timed(part, getattr(owner, name))))
            yield


class TimedLoader:
    """A loader whose every `next` counts as waiting."""

    def __init__(self, loader: Loader, parts: Parts) -> None:
        self.loader, self.parts, self.names = loader, parts, loader.names

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch | None]]:
        """The loader's batches."""
        batches = self.loader.epoch(epoch, start)
        advance = self.parts.timed(WAITING, lambda: next(batches, None))
        while (item := advance()) is not None:
            yield item


def watch(trainer: TrainingLoop, loader: Loader) -> dict[str, float]:
    """Train for an epoch: its seconds by part, and 'whole'."""
    parts = Parts()
    with parts.watching(trainer):
        started = now(trainer.learner.device)
        one_epoch(trainer, TimedLoader(loader, parts))
        return {**parts.seconds, "whole": now(trainer.learner.device) - started}


@dataclass(frozen=True)
class Drawn:
    """Drawn sample images: how many, of which edge; in which batches they are trained on."""

    count: int
    pixels: int
    batch: int


def measure_waiting(network: list[str], drawn: Drawn, device: torch.device) -> dict[str, dict[str, float]]:
    """Parts of the second epoch on images from files, or from a cache of them: 'cache, workers' → seconds."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        write_phantom(Path(name) / "drawn", drawn.count, drawn.pixels)
        data = [f"DATA.data_dir={name}/drawn", f"DATA.image_size={drawn.pixels}", f"TRAIN.batch_size={drawn.batch}"]
        for cache in ("none", "ram", "disk"):
            for workers in (0, 8 if device.type == "cuda" else 2):
                reading = [f"DATA.num_workers={workers}", f"DATA.cache={cache}"]
                found[f"{cache}, {workers}"] = second_epoch([*network, *data, *reading], device)
    return found


def second_epoch(settings: list[str], device: torch.device) -> dict[str, float]:
    """The parts of a run's second epoch; the first fills a cache and starts the workers."""
    fixed = ["MODEL.pretrained=false", f"TRAIN.device={device.type}", "LOGGING.progress=plain"]
    config = Config.from_overrides([*settings, *fixed])
    dataset_index = open_data(config)
    config = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    model = HybridMedNet(config).to(device)
    backbone, split = model.backbone, split_data(config, dataset_index)
    loaders = build_loaders(config, dataset_index, split, backbone.mean, backbone.std, device.type)
    config = resolve_precision(config, model, backbone.prefers_channels_last)
    trainer = trainer_of(config, model, len(loaders.train), loaders.train_labels())
    watch(trainer, loaders.train)
    return watch(trainer, loaders.train)
