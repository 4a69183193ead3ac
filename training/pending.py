"""Optimizer steps whose outcome is still on the device: made or skipped is decided there, and read now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

# Whose fused optimizers can be told by a tensor to change nothing; MPS's refuse it.
_SKIPPING_DEVICES = ("cpu", "cuda")


def step_if(optimizer: Optimizer, made: Tensor) -> None:
    """`optimizer.step()` where `made`, a bool on the device, is true; without waiting for it on a CPU and on CUDA.

    optimizer: one with a fused kernel. SGD's leaves the momentum of a first step that is skipped as it was allocated,
    so it must have been set to zero before; see `create_optimizer`.
    """
    if made.device.type not in _SKIPPING_DEVICES:
        if bool(made):
            optimizer.step()
        return
    # What GradScaler sets for fused kernels.
    optimizer.grad_scale, optimizer.found_inf = None, (~made).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Outcome:
    """What came of one step. loss: of its window; norm: of its gradient, before clipping; rate: learning rate."""

    made: bool
    loss: float
    norm: float
    rate: float
    window: Sequence = ()

    @property
    def pictures(self) -> int:
        return sum(len(batch) for batch in self.window)


@dataclass
class _Pending:
    losses: Sequence[Tensor]
    norm: Tensor
    made: Tensor
    rate: float
    window: Sequence


@dataclass
class PendingSteps:
    """Steps that were taken and not yet read, oldest first."""

    steps: list[_Pending] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, losses: Sequence[Tensor], norm: Tensor, made: Tensor, rate: float, window: Sequence) -> None:
        """losses: of micro-batches, of which the window's is the sum; all tensors without axes, on the device."""
        self.steps.append(_Pending(losses, norm, made, rate, window))

    def read(self) -> list[Outcome]:
        """The outcomes, in one copy from the device, for which the steps must have come to their end."""
        if not self.steps:
            return []
        flat = [value.detach().float() for step in self.steps for value in (*step.losses, step.norm, step.made)]
        numbers = iter(torch.stack(flat).tolist())
        steps, self.steps = self.steps, []
        return [self._outcome(step, [next(numbers) for _ in range(len(step.losses) + 2)]) for step in steps]

    @staticmethod
    def _outcome(step: _Pending, numbers: list[float]) -> Outcome:
        *losses, norm, made = numbers
        return Outcome(made == 1, sum(losses), norm, step.rate, step.window)
