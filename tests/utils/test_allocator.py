"""Freed memory stays with the process: large blocks are not asked of the kernel twice."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from utils.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def step():
    blocks = [torch.ones(12 << 20) for _ in range(3)]  # 48 MiB each
for _ in range(6):  # the heap finds its size
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> tuple[str, int]:
    """What keep_freed_memory said, and page faults of four steps after the first ones."""
    command = [sys.executable, "-c", STEPS, mode]
    reported, count = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    ).stdout.split()
    return reported, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_later_steps_find_their_memory_there():
    reported, kept = faults("keep")
    _, usual = faults("leave")
    assert reported == "True" and kept < usual / 4
    print(f"page faults of four steps: {usual}, with memory kept {kept}")


def test_the_environments_word_counts():
    reported, _ = faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert reported == "False"
