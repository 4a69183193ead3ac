"""One process at a time with a file or a folder."""

import os
import threading
from pathlib import Path

import pytest

from configs.errors import PredictionError
from tests.waiting import LIMIT_S, wait_until
from utils.claim import claimed, claimed_alone


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_second_is_told_and_nothing_is_left(kind, tmp_path):
    path = tmp_path / "x"
    path.touch() if kind == "file" else path.mkdir()
    with claimed(path) as first, claimed(path) as second:
        assert first and not second
        with pytest.raises(PredictionError, match="taken"), claimed_alone(path, PredictionError("taken")):
            raise AssertionError
    with claimed(path) as again:
        assert again
    assert [one.name for one in tmp_path.iterdir()] == ["x"] and (kind == "file" or not list(path.iterdir()))


def test_what_is_not_there_is_left_to_its_reader(tmp_path):
    with claimed(tmp_path / "nothing") as first, claimed(tmp_path / "nothing") as second:
        assert first and second


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="forked processes and their files, as Linux shows them")
def test_a_child_that_outlives_its_parent_keeps_nothing(tmp_path):
    """A worker of a killed process: the folder is free while it lives."""
    child = 0
    with claimed(tmp_path):
        ready, release = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(ready[1], b".")
            os.read(release[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        held = [path.readlink() for path in Path(f"/proc/{child}/fd").iterdir()]
        assert tmp_path not in held
        with claimed(tmp_path) as second:
            assert not second  # the parent still has it
    os.write(release[1], b".")
    os.waitpid(child, 0)


def test_another_is_waited_for(tmp_path, caplog):
    """Locks are of open files, so that threads are to each other what processes are."""
    order = []

    def wait() -> None:
        with claimed(tmp_path, wait="drawing") as alone:
            order.append(alone)

    thread = threading.Thread(target=wait)
    with caplog.at_level("INFO", "utils.claim"), claimed(tmp_path):
        thread.start()
        wait_until(lambda: "waiting for another process, which is drawing" in caplog.text, "the thread says it waits")
        assert not order
    thread.join(LIMIT_S)
    assert order == [True]
