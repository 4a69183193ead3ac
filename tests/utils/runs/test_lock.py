"""One training at a time in a folder: across processes, within one, and with children that outlive their parent."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs.errors import CheckpointError
from tests.waiting import LIMIT_S, wait_until
from utils.runs.lock import FolderLock, in_use, lock_state

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock is one of POSIX systems")

HOLD = """
import os, sys, time
from pathlib import Path
from utils.runs.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
children = int(sys.argv[2])
for _ in range(children):
    if os.fork() == 0:
        os.write(1, b"child %d\\n" % os.getpid())  # in one piece
        time.sleep(60)
os.write(1, b"held\\n")
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """holder(children) → a process that holds tmp_path, and its children's numbers, which do nothing but live."""
    started, children = [], []

    def start(count: int = 0) -> tuple[subprocess.Popen, list[int]]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), str(count)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        lines = [process.stdout.readline() for _ in range(count + 1)]
        assert "held\n" in lines
        children.extend(int(line.split()[1]) for line in lines if line.startswith("child"))
        return process, children

    yield start
    for child in children:
        os.kill(child, signal.SIGKILL)
    for process in started:
        process.kill()
        process.stdout.close()
        process.wait()


def test_two_processes_do_not_train_in_one_folder(tmp_path, holder):
    process, _ = holder()
    assert lock_state(tmp_path) == "held"
    with pytest.raises(CheckpointError, match="another process is training in"):
        FolderLock(tmp_path)
    process.kill()
    process.wait()
    assert lock_state(tmp_path) == "free", "a killed process holds nothing"
    FolderLock(tmp_path).release()


def test_one_process_does_not_train_twice_in_one_folder(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(CheckpointError, match="this process is training in"):
            FolderLock(tmp_path)
        (tmp_path / "sub").mkdir()
        with pytest.raises(CheckpointError, match="this process is training in"):
            FolderLock(tmp_path / "sub" / "..")
        assert in_use(tmp_path)
    assert not in_use(tmp_path)
    FolderLock(tmp_path).release()


def test_looking_does_not_drop_the_lock(tmp_path, holder):
    """With POSIX record locks the first look by the holder itself let others in."""
    with FolderLock(tmp_path):
        for _ in range(3):
            assert in_use(tmp_path)
        other = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path), "0"], cwd=ROOT, capture_output=True, text=True, input=""
        )
        assert other.returncode != 0 and "another process is training in" in other.stderr


def test_a_look_refuses_nobody(tmp_path):
    """Threads that look all the time, while the folder is taken and let go again and again."""
    over, seen = threading.Event(), set()

    def look() -> None:
        while not over.is_set():
            seen.add(lock_state(tmp_path))

    threads = [threading.Thread(target=look) for _ in range(3)]
    with FolderLock(tmp_path):
        for thread in threads:
            thread.start()
        wait_until(lambda: "held" in seen, "a thread has looked")
    try:
        for _ in range(20):  # each may take 30 s where the readers have the interpreter to themselves
            FolderLock(tmp_path).release()
    finally:
        over.set()
        for thread in threads:
            thread.join(LIMIT_S)
    assert seen <= {"held", "free"}


def test_workers_that_outlive_a_killed_parent_hold_nothing(tmp_path, holder):
    process, children = holder(3)
    process.kill()
    process.wait()
    for child in children:
        os.kill(child, 0)
    assert len(children) == 3 and lock_state(tmp_path) == "free"
    FolderLock(tmp_path).release()


def test_a_child_that_ends_does_not_unlock_its_parent(tmp_path):
    with FolderLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert in_use(tmp_path)


def test_a_lock_that_is_forgotten_holds_nothing(tmp_path):
    lock = FolderLock(tmp_path)
    del lock
    assert not in_use(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(tmp_path):
        assert lock_state(tmp_path) == "unknown" and not in_use(tmp_path)
        with pytest.raises(CheckpointError, match="this process"):
            FolderLock(tmp_path)
    assert lock_state(tmp_path / "nowhere") == "unknown"


def test_a_reader_needs_no_right_to_write(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / ".lock").chmod(0o444)
        assert in_use(tmp_path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write to the run's folder"):
        FolderLock(tmp_path / "nowhere")
