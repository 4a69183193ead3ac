"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt's names for its parameters, of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_OWN_WORD = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks for the next step instead of giving them back to the kernel; whether it does now.

    A step on a CPU asks for the same large blocks again and again. glibc returns those of 32 MiB and more each time,
    and trims its heap, so that the kernel must find and zero the same pages in every step: a tenth to a third of the
    step (docs/benchmarks/log.md). The process then keeps the most that it ever had. Nothing happens without glibc, or
    where the environment has a word of its own on this.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OWN_WORD):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
