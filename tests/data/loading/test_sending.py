"""Machines that have too little shared memory or too few file descriptors for data workers."""

import errno
import os
import sys

import pytest
import torch

from configs.errors import CacheError, DataError
from data.loading import loaders, sending
from tests.data.loading.test_worker_failures import Images, epoch, make_loader, tolerant

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked, with what is patched here")

FULL = RuntimeError("unable to write to file </torch_71_1_0>: No space left on device (28)")


@pytest.fixture
def no_shared_memory(monkeypatch):
    """Of workers alone: the parent's own small table has room."""
    parent, share = os.getpid(), torch.Tensor.share_memory_

    def full(self: torch.Tensor) -> torch.Tensor:
        if os.getpid() != parent:
            raise FULL
        return share(self)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_come_through_a_pipe_unchanged(workers, no_shared_memory, tmp_path, caplog):
    want = [epoch(make_loader(Images(tmp_path), workers=0), number) for number in (0, 1)]
    with caplog.at_level("WARNING"):
        loader = make_loader(Images(tmp_path), workers)
        assert [epoch(loader, number) for number in (0, 1)] == want
    told = [one.message for one in caplog.records if "through a pipe" in one.message]
    assert len(told) == 1 and "/dev/shm" in told[0] and "--shm-size" in told[0]


class Unsendable:
    """What neither goes into shared memory nor through a pipe."""

    def __reduce__(self) -> tuple:
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_worker_that_can_send_nothing_is_an_error_and_not_waited_for(monkeypatch, tmp_path):
    parent = os.getpid()
    monkeypatch.setattr(loaders, "send", lambda content: content if os.getpid() == parent else Unsendable())
    loader = make_loader(Images(tmp_path), 1, tolerant(5))
    with pytest.raises(DataError, match=r"data workers cannot send what they read .*num-workers 0"):
        epoch(loader, 0)


def test_no_room_for_the_table_of_the_workers(monkeypatch, tmp_path):
    def full(self: torch.Tensor) -> torch.Tensor:
        raise FULL

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(DataError, match=r"shared memory \(/dev/shm\) is full or limited .*DATA.num_workers=0"):
        make_loader(Images(tmp_path), 1)
    assert len(epoch(make_loader(Images(tmp_path), 0), 0)) == 8


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FULL, "shared memory (/dev/shm) is full or limited"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
         "too many files are open"),
        (RuntimeError("received 0 items of ancdata"), "too many files are open"),
        (OSError(errno.EFBIG, "File too large"), "shared memory (/dev/shm) is full or limited"),
        (ValueError("an error of the code"), None),
        (CacheError("'a.cache': no space left on device"), None),
        (DataError("'a.dcm': file too large"), None),
    ],
)  # fmt: skip
def test_what_is_lacking_is_known_by_its_words(error, words):
    """Of the machine's errors: ours say what they are about, which may be a disk."""
    found = sending.workers_error(error)
    assert found is None if words is None else words in str(found)
