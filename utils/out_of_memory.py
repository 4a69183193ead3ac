"""Memory: how much was taken, how it is noticed that it ran out, and what is then given back."""

from __future__ import annotations

import gc
import math
import sys
from types import TracebackType

import torch

# What allocators say whose errors are of no type of their own.
_PHRASES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of CUDA, MPS or the CPU raised this."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)


class catch_oom:
    """`with catch_oom() as caught:` suppresses out-of-memory errors; `failure` is their message.

    After the block nothing refers to the step's tensors any more: neither the exception, whose traceback's frames hold
    them, nor autograd's queue, in which a failed backward pass on a CPU leaves what it did not come to. The queue is
    served youngest first, so a backward pass of something older than the step empties it.
    """

    failure = ""

    def __enter__(self) -> catch_oom:
        self.older = torch.zeros((), requires_grad=True) * 1 if torch.is_grad_enabled() else None
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        if self.older is not None:
            self.older.backward()
        self.failure = " ".join(str(error).split())[:200] or "out of memory"
        return True


def free_memory(device: torch.device) -> None:
    """Release memory without references."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def largest_part(size: int, parts: int) -> int:
    """Studies in the largest piece that `Batch.split` makes of a batch of `size`."""
    return -(-size // min(parts, size))


def peak_memory_mib(device: torch.device) -> float:
    """Most memory so far, in MiB: allocated on CUDA, else resident of this process (NaN on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10
