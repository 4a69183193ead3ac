"""Batches that are copied to the device while it works on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from utils.out_of_memory import Attempt

Moved = tuple[int, Any, Any]


class Prefetcher:
    """One batch ahead, by a CUDA stream of its own; on other devices batches are handed on as they are.

    device, memory_format: of `Batch.to`.
    """

    def __init__(self, device: torch.device, memory_format: torch.memory_format) -> None:
        self.device, self.memory_format = device, memory_format
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Iterable[tuple[int, Any]]) -> Iterator[Moved]:
        """(number, batch) → (number, batch, the same on the device); the batch twice where it was not copied."""
        if self.stream is None:
            yield from ((number, batch, batch) for number, batch in batches)
            return
        ahead: tuple[Moved, Any] | None = None
        for number, batch in batches:
            coming = self._copy(number, batch)
            if ahead is not None:
                yield self._arrived(*ahead)
            ahead = coming
        if ahead is not None:
            yield self._arrived(*ahead)

    def _copy(self, number: int, batch: Any) -> tuple[Moved, Any]:
        """Begin to copy a batch; the event is that of its arrival. One that finds no memory is left where it is."""
        if batch is None:
            return (number, None, None), None
        with Attempt() as attempt, torch.cuda.stream(self.stream):
            moved = batch.to(self.device, self.memory_format)
            return (number, batch, moved), self.stream.record_event()
        assert attempt.failure
        return (number, batch, batch), None

    def _arrived(self, moved: Moved, event: Any) -> Moved:
        """Let what is asked of the device from now on wait for the batch."""
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in tensors_of(moved[2]):
                tensor.record_stream(current)
        return moved


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors in a batch, a dataclass."""
    values = (getattr(batch, f.name) for f in fields(batch))
    return [value for value in values if isinstance(value, Tensor)]
