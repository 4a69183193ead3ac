"""Whether a training step fits into a device's memory: what the tracer predicts, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from utils.examination.findings import Finding, Severity
from utils.examination.machine import Memory
from utils.gradient_checkpointing.plan import Plan

_GIB = 2**30
_STATES = {"adamw": 2, "sgd": 1, "none": 0}  # numbers of an optimizer for each weight


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step holds at once, at least: kernels take workspaces and temporary tensors on top.

    standing: weights, optimizer state, average. images: in a micro-batch of `batch` studies. activations: saved for the
    backward pass of a micro-batch; recomputed: with gradient checkpointing where it saves most, None: it cannot.
    """

    standing: int
    batch: int
    activations: int
    recomputed: int | None

    @property
    def total(self) -> int:
        return self.standing + self.activations

    def of(self, batch: int, checkpointing: bool) -> int:
        """Of another micro-batch; activations are in proportion to it."""
        bytes_of = self.recomputed if checkpointing and self.recomputed is not None else self.activations
        return self.standing + int(bytes_of * batch / self.batch)

    def fitting(self, budget: int, checkpointing: bool) -> int:
        """The largest micro-batch, half of the asked one or a half of that …, that fits; 0: not even a single one."""
        size = self.batch
        while size and self.of(size, checkpointing) > budget:
            size //= 2
        return size

    def __str__(self) -> str:
        less = "" if self.recomputed is None else f" ({self.recomputed / _GIB:.2f} with gradient checkpointing)"
        return (
            f"at least {self.total / _GIB:.2f} GiB for a training step: {self.standing / _GIB:.2f} of weights and "
            f"optimizer, {self.activations / _GIB:.2f} of activations at batch size {self.batch}{less}"
        )


def standing_bytes(model: nn.Module, optimizer: str, averaged: bool) -> int:
    """Of float32 weights, buffers, the optimizer's numbers for each weight that is trained, and an average."""
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    buffers = sum(b.numel() for b in model.buffers())
    return 4 * (weights * (1 + averaged) + buffers + trained * _STATES[optimizer])


def step_memory(
    model: nn.Module, batch: int, plan: Plan, recomputes: bool, optimizer: str, averaged: bool
) -> StepMemory:
    """plan: the one of least peak, of the micro-batch. recomputes: whether that is what training does."""
    least = plan.peak_bytes if plan.runs else None
    activations = plan.peak_bytes if recomputes else plan.plain_bytes
    return StepMemory(standing_bytes(model, optimizer, averaged), batch, activations, least)


def memory_findings(step: StepMemory, memory: Memory, adapts: bool, accumulation: int) -> Iterator[Finding]:
    """adapts: TRAIN.on_oom. accumulation: micro-batches of an optimizer step.

    An error is what can never fit: more than the device has in all, whatever is done; where nothing is done, more than
    it has. What other programs hold now is theirs to give back, so that it is a warning.
    """
    if step.total <= memory.free:
        return
    there = f"the device has {memory.total / _GIB:.3g} GiB ({memory.free / _GIB:.3g} free)"
    if step.total <= memory.total:
        severity: Severity = "warning"
    else:
        possible = step.fitting(memory.total, True) or step.fitting(memory.total, False)
        severity = "warning" if adapts and possible else "error"
    adaptation = "; TRAIN.on_oom=adapt would make it smaller as it runs" if adapts and severity == "warning" else ""
    yield Finding(severity, "memory", f"{step}, and {there}{adaptation}", _advice(step, memory.free, accumulation))


def _advice(step: StepMemory, budget: int, accumulation: int) -> str:
    plain, recomputed = (step.fitting(budget, way) for way in (False, True))
    ways = []
    if plain:
        ways.append(_smaller(step.batch, plain, accumulation))
    if step.recomputed is not None and recomputed > plain:
        smaller = "" if recomputed == step.batch else f" {_smaller(step.batch, recomputed, accumulation)}"
        ways.append(f"MODEL.gradient_checkpointing.enabled=true{smaller}")
    if not ways:
        return "a smaller MODEL.backbone or DATA.image_size; close what else uses the device"
    return f"--set {', or '.join(ways)} (fits, as far as can be told before)"


def _smaller(before: int, batch: int, accumulation: int) -> str:
    """The same number of images in an optimizer step, or a few more."""
    return f"TRAIN.batch_size={batch} TRAIN.gradient_accumulation_steps={accumulation * -(-before // batch)}"
