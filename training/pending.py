"""Optimizer steps whose outcome is still on the device: made or skipped is decided there, and read now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.optim import Optimizer

from utils.torch_private import skipping_unless

# Whose fused optimizers take a tensor that makes them skip a step; MPS's refuse it.
_SKIPPING_DEVICES = ("cpu", "cuda")


def conditional_step(optimizer: Optimizer, step_applied: Tensor) -> None:
    """`optimizer.step()` where `step_applied`, a bool on the device, is true; without waiting for it on a CPU and on
    CUDA.

    optimizer: one with a fused kernel. SGD's leaves the momentum of a first step that is skipped as it was allocated,
    so it must have been set to zero before; see `create_optimizer`.
    """
    if step_applied.device.type not in _SKIPPING_DEVICES:
        if bool(step_applied):
            optimizer.step()
        return
    with skipping_unless(optimizer, step_applied):
        optimizer.step()


@dataclass(frozen=True)
class Outcome:
    """What came of one step.

    loss: of its window; norm: of its gradient, before clipping; rate: learning rate; rows: of the window's images in
    the dataset index, a tensor per micro-batch.
    """

    step_applied: bool
    loss: float
    norm: float
    rate: float
    rows: Sequence[Tensor] = ()

    @property
    def images(self) -> int:
        return sum(map(len, self.rows))


class PendingSteps:
    """Steps that were taken and not yet read, oldest first. Of their batches only the rows are held."""

    def __init__(self) -> None:
        self._steps: list[tuple[list[Tensor], float, Sequence[Tensor]]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(
        self, losses: Sequence[Tensor], norm: Tensor, step_applied: Tensor, rate: float, rows: Sequence[Tensor]
    ) -> None:
        """losses: of micro-batches, of which the window's is the sum; they, norm and step_applied on the device, no
        axes.
        """
        self._steps.append(([*losses, norm, step_applied], rate, rows))

    def read(self) -> list[Outcome]:
        """The outcomes, in one copy from the device, for which the steps must have come to their end."""
        steps, self._steps = self._steps, []
        flat = [value.detach().float() for values, _, _ in steps for value in values]
        numbers = iter(torch.stack(flat).tolist() if flat else ())
        outcomes = []
        for values, rate, rows in steps:
            *losses, norm, step_applied = islice(numbers, len(values))
            outcomes.append(Outcome(step_applied == 1, sum(losses), norm, rate, rows))
        return outcomes
