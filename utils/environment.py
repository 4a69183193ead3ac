"""What a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypedDict

PACKAGES = ("torch", "torchvision", "timm", "numpy", "albumentations", "opencv-python-headless", "pillow", "pydicom")


class EnvironmentRecord(TypedDict):
    """What `describe_environment` gives. packages: name → version, None where it is not installed."""

    time: str
    command: list[str]
    python: str
    packages: dict[str, str | None]
    platform: str
    processor: str
    cores: int | None
    device: str
    precision: str
    git_commit: str | None


def describe_environment(device: str, precision: str) -> EnvironmentRecord:
    """Versions, machine, device, command line, time and git commit, as plain values."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        "precision": precision,
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git_commit() -> str | None:
    """The commit of the source folder, with '+changes' where files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():  # installed, perhaps within somebody else's repository
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
