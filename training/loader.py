"""What training asks of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from utils.batch import Batch
from utils.transfers import prefetch_to_device


class Loader(Protocol):
    """The batches of one split."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def names(self, index: Tensor) -> list[str]:
        """What the images in these rows are called."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch | None]]:
        """(number in the epoch, batch) from batch `start` on; None for one whose images are all unreadable."""


@dataclass
class WindowBatches:
    """The micro-batches of one optimizer step.

    numbers: of all in the epoch. batches: those that could be read. sent: these on the device, or the same objects.
    """

    numbers: list[int] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    sent: list[Batch] = field(default_factory=list)


Numbered = tuple[int, Batch | None]


def windows(
    batches: Iterable[Numbered], size: int, send: Callable[[Batch], Batch], device: torch.device
) -> Iterator[WindowBatches]:
    """Batches grouped by `size`, the last group of an epoch may be shorter; the next batch is sent ahead to the device.

    Groups are by number of batches, unreadable ones counted, so that a resumed epoch has the same ones.
    """

    def send_numbered(numbered: Numbered) -> Numbered:
        number, batch = numbered
        return number, None if batch is None else send(batch)

    window = WindowBatches()
    for item, sent in prefetch_to_device(batches, send_numbered, device):
        assert item is not None and sent is not None
        (number, batch), (_, copy) = item, sent
        window.numbers.append(number)
        if batch is not None and copy is not None:
            window.batches.append(batch)
            window.sent.append(copy)
        if len(window.numbers) == size:
            yield window
            window = WindowBatches()
    if window.numbers:
        yield window
