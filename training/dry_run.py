"""One optimizer step on the first batches, to see whether a run would begin: what it took, in lines for people."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.errors import DataError
from training.learner import Learner
from training.loader import Loader, windows
from training.loop import TrainingLoop
from utils.gradient_checkpointing import Checkpointable
from utils.gradient_checkpointing.activation_memory import trace_blocks
from utils.gradient_checkpointing.plan import choose_plan
from utils.out_of_memory import peak_memory_mib

_MOST_CLASSES = 30


@dataclass(frozen=True)
class DryRun:
    """What the first step was. images: in its largest micro-batch. activations: bytes by the tracer, that a micro-batch
    saves for the backward pass, None where the network cannot be traced; standing: bytes of weights, gradients,
    optimizer and average. peak_mib: of the process or the GPU. splits: into how many a batch was cut, as memory had run
    out.
    """

    loss: float
    norm: float
    applied: bool
    seconds: float
    images: int
    activations: int | None
    standing: int
    peak_mib: float
    splits: int
    steps_per_epoch: int
    epochs: int
    device: str
    precision: str

    def lines(self) -> list[str]:
        """One line each on memory, steps and the first step."""
        traced = "cannot be traced" if self.activations is None else f"{self.activations / 2**20:.0f} MiB by the tracer"
        cut = "" if self.splits == 1 else f"; memory had run out: each batch is cut into {self.splits}"
        found = "" if self.applied else ": NOT FINITE, a run would skip this step"
        return [
            f"memory: activations of a micro-batch of {self.images} images {traced}, weights, gradients, optimizer and "
            f"average {self.standing / 2**20:.0f} MiB; {self.peak_mib:.0f} MiB at most so far{cut}",
            f"steps: {self.steps_per_epoch} per epoch, {self.steps_per_epoch * self.epochs} in {self.epochs} epochs",
            f"first step: loss {self.loss:.4f}, gradient norm {self.norm:.3g}, {self.seconds:.1f} s on {self.device}, "
            f"{self.precision}{found}",
        ]


def dry_run(loop: TrainingLoop, loader: Loader) -> DryRun:
    """Make the next optimizer step of a loop, in memory alone; the learner is no longer as it was.

    Raises DataError where no image or no label of the first batches is of use, TrainingError where memory runs out.
    """
    learner, options, state = loop.learner, loop.options, loop.state
    learner.train_mode()
    began = time.perf_counter()
    batches = loader.epoch(state.epoch, state.sums.batches)
    window = next(iter(windows(batches, options.accumulation_steps, loop.window.send, learner.device)), None)
    result = loop.window.step(window.batches, window.sent) if window and window.batches else None
    if window is None or result is None:
        raise DataError(
            "the first batches have no image that can be read, or no label that counts: nothing to train on"
        )
    loss, norm, applied = (float(sum(map(float, result.losses))), float(result.norm), bool(result.applied))
    seconds = time.perf_counter() - began
    images = max(len(batch.index) for batch in window.batches)
    images = math.ceil(images / state.micro_batch_splits * learner.adaptation.images_per_study)
    return DryRun(
        loss,
        norm,
        applied,
        seconds,
        images,
        saved_activations(learner.model, images, learner.precision.dtype),
        standing_bytes(learner),
        peak_memory_mib(learner.device),
        state.micro_batch_splits,
        math.ceil(len(loader) / options.accumulation_steps),
        options.epochs,
        str(learner.device),
        learner.precision.name,
    )


def describe_data(
    splits: Mapping[str, int], class_names: Sequence[str], positives: Sequence[int], model: str
) -> list[str]:
    """Lines on the data and the network: studies by split, positives of each class in the training split."""
    counts = ", ".join(f"{name} {count}" for name, count in splits.items())
    pairs = [f"{name} {count}" for name, count in zip(class_names, positives)]
    more = f" and {len(pairs) - _MOST_CLASSES} more" if len(pairs) > _MOST_CLASSES else ""
    return [
        f"data: {sum(splits.values())} studies: {counts}",
        f"classes: {len(class_names)}, positive in train: {', '.join(pairs[:_MOST_CLASSES])}{more}",
        f"model: {model}",
    ]


def saved_activations(model: nn.Module, images: int, autocast: torch.dtype | None) -> int | None:
    """Bytes that a training step of so many images saves for its backward pass, by one pass on fake tensors."""
    if not isinstance(model, Checkpointable) or len(getattr(model, "view_backbones", ())):
        return None
    plan = getattr(model, "checkpointing_plan", lambda: None)()
    shape = (max(images, 2), model.in_channels, *model.image_size)  # batch normalisation needs two
    trace = trace_blocks(model, model.blocks, shape, autocast)
    return (choose_plan(trace, segments=1) if plan is None else choose_plan(trace, plan.segments)).peak_bytes


def standing_bytes(learner: Learner) -> int:
    """Of weights, buffers, gradients, the optimizer's state and the average."""
    state = [one for values in learner.optimizer.state.values() for one in values.values()]
    shadow = [] if learner.ema is None else [one for one in learner.ema.shadow.values()]
    gradients = [p.grad if p.grad is not None else p for p in learner.model.parameters() if p.requires_grad]
    held = [*learner.model.parameters(), *learner.model.buffers(), *gradients, *state, *shadow]
    return sum(one.numel() * one.element_size() for one in held if isinstance(one, Tensor))
