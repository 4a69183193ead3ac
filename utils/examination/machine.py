"""The machine that is to train: device and driver, cores, memory, shared memory of data workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.examination.findings import Finding

_SHARED = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
# Batches that a data worker has ready or under way (DataLoader's prefetch_factor), and the one that is being used.
_AHEAD = 2


@dataclass(frozen=True)
class Memory:
    """Bytes: of the device in all, and what is free of it now."""

    total: int
    free: int


def cores() -> float:
    """Of the machine, as far as this process may use them: its affinity, and the quota of its container."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        return min(float(there), int(quota) / int(period))
    return float(there)


def memory_of(device: torch.device) -> Memory | None:
    """Of a GPU its own; of the CPU the machine's with its swap, or its container's where that has less. None: it cannot
    be told.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, free)
    if device.type != "cpu":
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in _meminfo() if rest.split()[:1] and rest.split()[0].isdigit()}
    if "MemTotal" not in kib:
        return None
    total = 1024 * (kib["MemTotal"] + kib.get("SwapTotal", 0))
    free = 1024 * (kib.get("MemAvailable", kib["MemTotal"]) + kib.get("SwapFree", 0))
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdecimal() and used.isdecimal() and int(limit) < total:
        total, free = int(limit), min(free, max(int(limit) - int(used), 0))
    return Memory(total, free)


def _meminfo() -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in _read(Path("/proc/meminfo")).splitlines()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def describe_device(device: torch.device) -> str:
    """'cuda:0 NVIDIA H200, 139 GiB (130 free), CUDA 12.8, capability 9.0', 'cpu, 2 cores, 16 GiB (12 free)'."""
    memory = memory_of(device)
    size = f", {memory.total / 2**30:.3g} GiB ({memory.free / 2**30:.3g} free)" if memory else ""
    if device.type != "cuda":
        return f"{device}, {cores():g} cores{size}"
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    name = torch.cuda.get_device_name(device)
    return f"{device} {name}{size}, CUDA {torch.version.cuda}, capability {capability}, {cores():g} cores"


def device_findings(device: torch.device) -> Iterator[Finding]:
    """A GPU that is there and not used; one that this torch has no kernels for."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        built = torch.cuda.get_arch_list()
        newest = max(
            (int(arch.removeprefix("sm_").rstrip("af")) for arch in built if arch.startswith("sm_")), default=0
        )
        if (
            newest
            and not any(arch.removeprefix("sm_").startswith(str(major)) for arch in built)
            and major * 10 > newest
        ):
            yield Finding(
                "warning",
                "device",
                f"the GPU has capability {major}.{minor}, and this torch is built for {', '.join(built)}",
                "install a torch that is built for a newer CUDA: pytorch.org/get-started",
            )
    elif device.type == "cpu" and not torch.cuda.is_available() and (driver := _nvidia_driver()):
        why = f"this torch ({torch.__version__}) is built without CUDA"
        if torch.version.cuda is not None:
            why = f"torch is built for CUDA {torch.version.cuda}, and the driver is {driver}"
        yield Finding(
            "warning",
            "device",
            f"there is an NVIDIA GPU, and torch cannot use it: {why}",
            "install a torch that goes with the driver (pytorch.org/get-started), or a newer driver",
        )


def _nvidia_driver() -> str:
    """Its version, as the kernel's module says; '' where there is none."""
    words = _read(Path("/proc/driver/nvidia/version")).split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def worker_findings(num_workers: int, batch_bytes: int) -> Iterator[Finding]:
    """More workers than cores; less shared memory than their batches take. batch_bytes: of the inputs of a batch."""
    there = cores()
    if num_workers > max(there, 1):
        yield Finding(
            "note",
            "device",
            f"DATA.num_workers is {num_workers}, and there are {there:g} cores: the workers share them",
            f"set DATA.num_workers={max(int(there), 1)}",
        )
    if not num_workers or not _SHARED.is_dir():
        return
    free, needed = shutil.disk_usage(_SHARED).free, batch_bytes * (num_workers * _AHEAD + 1)
    if needed > free:
        yield Finding(
            "warning",
            "device",
            f"{num_workers} data workers may hold {needed / 2**20:,.0f} MiB of batches in shared memory, and "
            f"{_SHARED} has {free / 2**20:,.0f} MiB free: batches would go through a pipe, which is slower",
            "give it more (docker run --shm-size=2g), or lower DATA.num_workers or TRAIN.batch_size",
        )
