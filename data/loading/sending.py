"""What a data worker sends to the training process: through shared memory, or through a pipe where that is full."""

from __future__ import annotations

import multiprocessing.queues
import os
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from configs.errors import DataError, HybridMedNetError
from utils.text import printable
from utils.torch_private import tree_flatten, tree_leaves, tree_unflatten

Content = TypeVar("Content")

# What a worker ends with that could not hand over a batch.
CANNOT_SEND = 75
REMEDY = (
    "read without them (DATA.num_workers=0, --num-workers 0), or give more (docker run --shm-size=2g, ulimit -n 4096)"
)
_MEMORY = "shared memory (/dev/shm) is full or limited"
_WORDS = (
    ("too many open files", "too many files are open"),
    ("ancdata", "too many files are open"),
    ("shared memory", _MEMORY),
    ("no space left", _MEMORY),
    ("file too large", _MEMORY),
)


class Piped(NamedTuple, Generic[Content]):
    """A batch with arrays in place of tensors: a queue sends their bytes through its pipe."""

    content: Content
    reason: str

    def open(self) -> Content:
        """With tensors again."""
        return _mapped(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, self.content)


def _mapped(change: Callable[[object], object], content: Content) -> Content:
    leaves, structure = tree_flatten(content)
    changed: Content = tree_unflatten([change(leaf) for leaf in leaves], structure)
    return changed


def send(content: Content) -> Content | Piped[Content]:
    """A batch, its tensors in shared memory where this is a worker; as arrays where that has no room for them.

    torch would move them there in a thread of the queue, whose failure loses the batch: it is waited for in vain.
    """
    if get_worker_info() is None:
        return content
    try:
        for leaf in tree_leaves(content):
            if isinstance(leaf, Tensor):
                leaf.share_memory_()
    except (RuntimeError, OSError) as error:
        arrays = _mapped(lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf, content)
        return Piped(arrays, short_of(error) or str(error))
    return content


def short_of(error: BaseException) -> str | None:
    """What a machine lacks of what worker processes need, in words; None for another error."""
    text = str(error).lower()
    return next((words for part, words in _WORDS if part in text), None)


def workers_error(error: BaseException) -> DataError | None:
    """What to do where the machine has too little for data workers; None for another error."""
    reason = short_of(error)
    if reason is None or isinstance(error, HybridMedNetError):  # which says itself what is full or too large
        return None
    first_line = str(error).splitlines()[0][:200]
    return DataError(f"data workers cannot be used: {reason} ({first_line}): {REMEDY}")


def end_where_nothing_can_be_sent() -> None:
    """In a worker: end the process where the queue's thread fails to send. It would go on, and the batch be missing."""

    def end(error: Exception, _: object) -> None:
        os.write(2, f"a data worker cannot send a batch: {printable(error)}\n".encode())
        os._exit(CANNOT_SEND)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]
