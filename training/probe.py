"""Which number format and memory format train a network fastest on a device: steps of it are timed, in turns."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.errors import HybridMedNetError
from training.precision import Precision
from utils.batch import Logits
from utils.out_of_memory import catch_oom, free_memory, is_out_of_memory
from utils.seed import random_state, set_random_state

logger = logging.getLogger("train")

# What another candidate must gain on the prior: noise is not to decide.
MARGIN = 0.05
# Timed steps of each candidate at most; a CPU has fewer images in each, or fewer steps, to keep to these seconds.
ROUNDS, SECONDS = 5, 10.0
# In a step of a probe on a CPU at most.
CPU_IMAGES, CPU_VOLUMES = 4, 1


@dataclass(frozen=True)
class Candidate:
    """A way to compute a training step."""

    precision: Precision
    memory_format: torch.memory_format

    @property
    def name(self) -> str:
        """'bf16 channels_last', 'float32'."""
        kind = "float32" if self.precision.dtype is None else self.precision.name
        return f"{kind} channels_last" if self.channels_last else kind

    @property
    def channels_last(self) -> bool:
        return self.memory_format == torch.channels_last


@dataclass(frozen=True)
class Measured:
    """Median seconds of a step by candidate, those that failed left out; what that took in all."""

    medians: dict[Candidate, float]
    images: int
    rounds: int
    seconds: float

    def __str__(self) -> str:
        fastest_first = sorted(self.medians.items(), key=lambda item: item[1])
        times = ", ".join(f"{one.name} {1e3 * taken / self.images:.3g} ms" for one, taken in fastest_first)
        return f"{times} per image (steps of {self.images}, {self.rounds} each, {self.seconds:.1f} s)"


def probe_shape(device: torch.device, batch_size: int, channels: int, image_shape: Sequence[int]) -> tuple[int, ...]:
    """[B, channels, *image_shape] of a probe: the real batch, but few images on a CPU."""
    few = CPU_IMAGES if len(image_shape) == 2 else CPU_VOLUMES
    return (min(batch_size, few) if device.type == "cpu" else batch_size, channels, *image_shape)


def choose_fastest(
    model: nn.Module,
    candidates: Sequence[Candidate],
    prior: Candidate,
    shape: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
) -> Candidate:
    """The candidate whose training steps take the least time; the prior where none gains MARGIN on it.

    model: on its device; copies of it are timed, so that it stays as it is, and so does the random state. shape: of the
    images, [B, C, *spatial]. What fails, or does not fit into memory, is out of the running, with a warning; where
    nothing is left, the prior is taken. One candidate is not timed. clock: seconds.
    """
    if len(candidates) == 1:
        return candidates[0]
    measured = measure(model, candidates, shape, clock)
    if not measured.medians:
        logger.warning("probe: nothing could be timed, so %s is taken untried", prior.name)
        return prior
    chosen = decide(measured.medians, prior)
    logger.info("probe: %s: %s", measured, chosen.name)
    return chosen


def decide(seconds: dict[Candidate, float], prior: Candidate) -> Candidate:
    """The fastest, where it gains MARGIN on the prior; never one that is slower than float32."""
    fastest = min(seconds, key=lambda one: seconds[one])
    if prior not in seconds or seconds[fastest] <= (1 - MARGIN) * seconds[prior]:
        return fastest
    float32 = [taken for one, taken in seconds.items() if one.precision.dtype is None]
    slower = prior.precision.dtype is not None and float32 and min(float32) < seconds[prior]
    return fastest if slower else prior


def measure(
    model: nn.Module,
    candidates: Sequence[Candidate],
    shape: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Median seconds of a training step of each candidate, taken in turns after one that does not count.

    On a CPU that one is of a single image, and says how many of shape[0] images and rounds fit into SECONDS.
    The model is used by copies only; the random state is put back.
    """
    device, random, begin = next(model.parameters()).device, random_state(), clock()
    images = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0)).to(device)
    steps = _Steps(model, clock)
    try:
        warm = _round(steps, candidates, images[:1] if device.type == "cpu" else images)
        if device.type == "cpu":
            images = images[: _fitting(sum(warm.values()), len(images))]
        medians, rounds = _rounds(steps, list(warm), images, begin + SECONDS)
    finally:
        set_random_state(random)
        del steps
        free_memory(device)
        if device.type == "cuda":  # the figures of the run are its own
            torch.cuda.reset_peak_memory_stats(device)
    return Measured(medians, len(images), rounds, clock() - begin)


def _fitting(seconds: float, most: int) -> int:
    """Images per step, 1 to most, so that ROUNDS fit where a round of single images takes so many seconds."""
    return max(1, min(most, int(SECONDS / (ROUNDS * max(seconds, 1e-9)))))


def _rounds(
    steps: _Steps, candidates: Sequence[Candidate], images: Tensor, end: float
) -> tuple[dict[Candidate, float], int]:
    """(median seconds of candidates that never failed, steps each): ROUNDS, or one and what fits before the end."""
    taken: list[dict[Candidate, float]] = []
    longest = 0.0
    while candidates and len(taken) < ROUNDS and (not taken or steps.clock() + longest <= end):
        taken.append(_round(steps, candidates, images))
        candidates = list(taken[-1])
        longest = max(longest, sum(taken[-1].values()))
    return {one: statistics.median(row[one] for row in taken) for one in candidates}, len(taken)


def _round(steps: _Steps, candidates: Sequence[Candidate], images: Tensor) -> dict[Candidate, float]:
    """Seconds of a step of each candidate, those that fail left out."""
    taken = ((one, _attempted(steps, one, images)) for one in candidates)
    return {one: seconds for one, seconds in taken if seconds is not None}


def _attempted(steps: _Steps, candidate: Candidate, images: Tensor) -> float | None:
    """Seconds of a step; None, after a warning, where it fails."""
    reason = ""
    with catch_oom() as caught:
        try:
            return steps.seconds(candidate, images)
        except HybridMedNetError:
            raise
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
    steps.forget(images.device)
    logger.warning("probe: %s is left out: %s", candidate.name, reason or f"out of memory ({caught.failure})")
    return None


class _Steps:
    """Runs training steps on copies of a network, one a memory format.

    A network that is brought back to contiguous would not do: strides of 1×1 convolutions stay channels_last.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float]) -> None:
        self.model, self.clock = model, clock
        self.copies: dict[torch.memory_format, nn.Module] = {}

    def seconds(self, candidate: Candidate, images: Tensor) -> float:
        """Of the forward pass, the mean square of what it gives, and the backward pass, the device waited for."""
        layout = candidate.memory_format
        if layout not in self.copies:
            self.copies[layout] = copy.deepcopy(self.model).to(memory_format=layout).train()
        network = self.copies[layout]
        network.zero_grad(set_to_none=True)
        _wait(images.device)
        begin = self.clock()
        with torch.enable_grad(), candidate.precision.autocast():
            logits = Logits.of(network(images.to(memory_format=layout)))
        parts = [part.float().square().mean() for part in logits if part is not None]
        torch.stack(parts).sum().backward()
        _wait(images.device)
        seconds = self.clock() - begin
        network.zero_grad(set_to_none=True)
        return seconds

    def forget(self, device: torch.device) -> None:
        """Give back what a failed step left."""
        for network in self.copies.values():
            network.zero_grad(set_to_none=True)
        free_memory(device)


def _wait(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
