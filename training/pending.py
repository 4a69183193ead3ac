"""Optimizer steps whose outcome is still on the device: made or skipped is decided there, and read in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from training.accumulation_window import StepResult


@dataclass(frozen=True)
class PendingStep:
    """A step that was attempted. Of its window only the rows are held, so that its images can be freed.

    step: its number, from 1, skipped ones counted. rate: learning rate. rows: of the window's images in the dataset
    index, a tensor per micro-batch.
    """

    step: int
    result: StepResult
    rate: float
    rows: Sequence[Tensor]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one step.

    step_applied: False where it was skipped. loss: of its window. norm: of its gradients before clipping. images: how
    many its window had. step, rate, rows: see PendingStep.
    """

    step: int
    step_applied: bool
    loss: float
    norm: float
    rate: float
    rows: Sequence[Tensor]
    images: int


def read_outcomes(pending: Sequence[PendingStep]) -> list[Outcome]:
    """The outcomes, in one copy from the device, for which the steps must have come to their end."""
    values = [[*step.result.losses, step.result.norm, step.result.applied] for step in pending]
    flat = [value.detach().float() for row in values for value in row]
    numbers = iter(torch.stack(flat).tolist() if flat else ())
    outcomes = []
    for step, row in zip(pending, values, strict=True):
        *losses, norm, applied = islice(numbers, len(row))
        images = sum(map(len, step.rows))
        outcomes.append(Outcome(step.step, applied == 1, sum(losses), norm, step.rate, step.rows, images))
    return outcomes
