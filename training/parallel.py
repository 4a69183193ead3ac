"""What the processes that train one network together must agree on; one process agrees with itself.

An optimizer step is a function of its window, never of who computes it: each process takes its share of the window's
micro-batches, the loss is divided by the labels of all of them, and gradients are summed once a window. So the number
of processes does not change the weights, but for the order in which floating-point numbers are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from torch import Tensor, nn

from utils.runs.control import Request

T = TypeVar("T")


class Parallel(Protocol):
    """Each method is called by every process, in the same order: most of them wait for the others.

    rank: the number of this process, from 0; only rank 0 has listeners.
    """

    @property
    def rank(self) -> int: ...

    def share(self, window: Sequence[T]) -> Sequence[T]:
        """The part of a window that this process computes; may be empty."""

    def sum(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts added up over all processes. Counts are on the CPU, so no device is waited for."""

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes; a process without gradients adds zero."""

    def reduce_losses(self, losses: list[Tensor]) -> list[Tensor]:
        """Losses whose sum is that of the whole window, the same in every process, on the device.

        losses: of the micro-batches of this process, none where its share is empty.
        """

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
        """Scale the reduced gradients down to the 2-norm `limit` (None: leave them); → their norm before, no axes.

        The norm is the same in every process.
        """

    def any(self, request: Request | None) -> Request | None:
        """A request to leave that any process got, the same in all of them; None where none did."""

    def full_state(self, state: Mapping[str, object]) -> Mapping[str, object]:
        """A state with every tensor whole, for a checkpoint that any number of processes can read."""


class SingleProcess:
    """Parallel for one process, which has the whole window."""

    rank = 0

    def share(self, window: Sequence[T]) -> Sequence[T]:
        return window

    def sum(self, counts: Mapping[str, int]) -> dict[str, int]:
        return dict(counts)

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The gradients are those of the whole window already."""

    def reduce_losses(self, losses: list[Tensor]) -> list[Tensor]:
        return losses

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)

    def any(self, request: Request | None) -> Request | None:
        return request

    def full_state(self, state: Mapping[str, object]) -> Mapping[str, object]:
        return state
