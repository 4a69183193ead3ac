"""Copies while a device computes: the next batch is sent ahead, results are read one batch late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from utils.out_of_memory import catch_oom

T = TypeVar("T")


class AsyncHostCopy:
    """Tensors of one device on their way to the CPU; on CUDA nothing waits for them before `get`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # Only CUDA's copies land in pinned memory and can be waited for later.
        on_cuda = tensors[0].is_cuda
        self._copies = [tensor.to("cpu", non_blocking=on_cuda) for tensor in tensors]
        self._arrival = torch.cuda.current_stream(tensors[0].device).record_event() if on_cuda else None

    def get(self) -> list[Tensor]:
        """The tensors, in their order, as soon as they are there."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copies


def pipelined(items: Iterable[T]) -> Iterator[T]:
    """Each item, one late: after the next one has been started, so that the device has work while a result is read."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def prefetch_to_device(
    items: Iterable[T | None], send: Callable[[T], T], device: torch.device
) -> Iterator[tuple[T | None, T | None]]:
    """(item, send(item)) of each, (None, None) of None; on CUDA a stream sends while the item before is worked on.

    An item that does not fit into memory ahead of its time comes as (item, item), and so does every one where the
    device is not CUDA: whoever takes them sends what is not sent yet.
    """
    if device.type != "cuda":
        yield from ((item, item) for item in items)
        return
    stream = torch.cuda.Stream(device)
    for item, sent, arrival in pipelined(
        _send(item, send, stream) if item is not None else (None,) * 3 for item in items
    ):
        if arrival is not None:
            torch.cuda.current_stream(device).wait_event(arrival)
        yield item, sent


def _send(item: T, send: Callable[[T], T], stream: torch.cuda.Stream) -> tuple[T, T, torch.cuda.Event | None]:
    # The stream's memory is used again as soon as its tensors are gone, though the work on them may only be queued:
    # what is queued so far comes first. The item sent last is not in that queue yet, so its work overlaps with this.
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with catch_oom(), torch.cuda.stream(stream):
        return item, send(item), stream.record_event()
    return item, item, None
