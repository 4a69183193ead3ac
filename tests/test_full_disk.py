"""Disks that are full, read-only or rationed: one clear line, the checkpoint before it whole, and a choice."""

import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from data.phantom.radiographs import write_phantom

ROOT = Path(__file__).resolve().parents[1]
ROOT_USER = os.name == "posix" and os.geteuid() == 0
# What a fault needs: a file system of its own, or no power over permissions, which root has.
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
NO_POWER = ("setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override") if ROOT_USER else ()
NEEDS = {"full": OWN_MOUNTS, "read-only": NO_POWER, "quota": ()}
REASONS = {"full": "it takes", "read-only": "Permission denied", "quota": "File too large"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these faults are made by Linux's means")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, 40, 64)
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, phantom):
    """outcomes(fault) → on_save_error → its outcome; one process per fault, as most of its time goes into imports."""
    return lru_cache(lambda fault: train_with(fault, tmp_path_factory.mktemp(fault), phantom))


def train_with(fault: str, disk: Path, data: Path) -> dict[str, dict]:
    """What tests/disk_faults.py prints."""
    means = NEEDS[fault]
    if means:
        probe = "mount -t tmpfs tmpfs /mnt" if fault == "full" else "true"
        if not shutil.which(means[0]) or subprocess.run([*means, "sh", "-c", probe], capture_output=True).returncode:
            pytest.skip(f"{means[0]} is not there or not allowed: no way to make a disk {fault} here")
    command = [*means, sys.executable, "tests/disk_faults.py", str(disk), str(data), fault]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("fault", ["full", *(pytest.param(f, marks=pytest.mark.slow) for f in ("read-only", "quota"))])
@pytest.mark.parametrize("on_save_error", ["stop", "continue"])
def test_the_checkpoint_before_is_whole(fault, on_save_error, outcomes):
    outcome = outcomes(fault)[on_save_error]
    print(f"{fault}, {on_save_error}: exit {outcome['code']}, epochs kept {outcome['held']}")
    captured = outcome["captured"]
    assert outcome["unreadable"] == outcome["leftovers"] == []
    assert "Traceback" not in captured and "Logging error" not in captured
    if on_save_error == "stop":
        (error,) = [line for line in captured.splitlines() if line.startswith("error: ")]
        assert outcome["code"] == 2 and captured.rstrip().endswith(error), "the error is one line, the last one"
        assert REASONS[fault] in error and "--resume" in error and "on_save_error" in error
        assert outcome["held"]["last.pth"] == 1 and "epoch 3" not in captured
        return
    assert outcome["code"] == 0 and outcome["held"]["last.pth"] == 3, "what can be written again is"
    assert outcome["held"]["previous.pth"] == 1
    errors = [line for line in captured.splitlines() if "ERROR" in line]
    assert any("last.pth" in line and REASONS[fault] in line for line in errors)
    assert all("training continues" in line for line in errors if "the log" not in line)
