"""What the fault tests share: a child process that counts its memory and notes all it opens, starts and unpickles."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]
_ADDRESS_SPACE = 6 * 2**30  # what runs away ends here, before the machine does
_STATUS = Path("/proc/self/status")
_WATCHED = ("open", "os.listdir", "os.scandir")
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")


def in_child(module: str, function: str, warm: Any, payload: Any, timeout_s: float = 5 * LIMIT_S) -> dict[str, Any]:
    """Run function(warm), then function(payload), in a process of its own.

    timeout_s ends a child that hangs: one that imports much and shares two cores with ten others took two minutes.
    Returns {'result', 'grown_mb': peak memory of the second over the first, 'opened': paths, 'forbidden': events}.
    Peak memory is the VmHWM of the new program: ru_maxrss would begin with that of the parent.
    """
    if not _STATUS.is_file():
        pytest.skip("memory is counted by /proc/self/status, which this system does not have")
    task = json.dumps({"module": module, "function": function, "warm": warm, "payload": payload})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from tests.faults import child; child()"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        input=task,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.rpartition("\n@@")[2])


def child() -> None:
    """The other side of in_child."""
    import resource

    task = json.loads(sys.stdin.read())
    function = getattr(importlib.import_module(task["module"]), task["function"])
    function(task["warm"])
    opened: set[str] = set()
    forbidden: list[str] = []
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    sys.addaudithook(lambda event, arguments: _note(event, arguments, opened, forbidden))
    before = peak_mb()
    result = function(task["payload"])
    grown = peak_mb() - before
    answer = {"result": result, "grown_mb": grown, "opened": sorted(opened), "forbidden": forbidden}
    print("\n@@" + json.dumps(answer))


def _note(event: str, arguments: tuple[Any, ...], opened: set[str], forbidden: list[str]) -> None:
    if event in _WATCHED and isinstance(arguments[0], (str, bytes)):
        opened.add(os.path.realpath(os.fsdecode(arguments[0])))  # where a link leads, too
    elif event in _FORBIDDEN:
        forbidden.append(f"{event} {arguments}")


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    status = _STATUS.read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def outside(opened: list[str], *allowed: Path) -> list[str]:
    """Paths that lie neither below one of the allowed folders nor in Python's own library, this project or /proc."""
    own = [folder.resolve() for folder in (*allowed, ROOT, Path(sys.prefix), Path(sys.base_prefix))]
    rest = [path for path in opened if not any(Path(path).is_relative_to(folder) for folder in own)]
    return [path for path in rest if not (path.startswith("/proc/") and path.endswith("/status"))]


def fuzz(fraction: float) -> settings:
    """Settings of a random test: this share of FUZZ_EXAMPLES (an environment variable, else 600), always the same."""
    examples = max(1, round(fraction * int(os.environ.get("FUZZ_EXAMPLES", "600"))))
    checks = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=checks)
