"""Data workers that are killed or hang: the file is named, and no batch of the epoch is lost, doubled or changed."""

import gc
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.default_config import Config
from configs.errors import DataError
from data.builder import build_loaders
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.loading.worker_watch import WorkerFailures, WorkerTimes
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import LightAugmentation, Preprocess
from tests.waiting import wait_until
from utils.torch_private import LoaderIterator, loader_utils, pinning

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts processes by /proc")

COUNT, BATCH, SEED = 24, 3, 5
PATIENT = WorkerTimes(start=600.0, exit=120.0, join=120.0)  # on a busy machine, too
NAMES = tuple(f"image_{index:02d}.png" for index in range(COUNT))
FAULTS = {
    "kill": "was ended by SIGKILL",
    "segfault": "was ended by SIGSEGV",
    "exit": "ended with exit code 7",
    "sleep": "hung for",
    "freeze": "hung for",
}


def strike(fault: str) -> None:
    """What becomes of the worker."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "segfault":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault == "exit":
        os._exit(7)
    elif fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(600)
    else:
        raise RuntimeError("an error of the code")


@dataclass(frozen=True)
class Images:
    """DatasetIndex.read: drawn images; the files in `faults` strike until `times` marks of each are in `marks`."""

    marks: Path
    faults: tuple[int, ...] = ()
    fault: str = "kill"
    times: int = 1

    def __call__(self, index: int) -> np.ndarray:
        if index in self.faults and len(list(self.marks.glob(f"{index}-*"))) < self.times:
            (self.marks / f"{index}-{time.monotonic_ns()}").touch()
            strike(self.fault)
        return np.random.default_rng(index).integers(0, 256, (20, 24), dtype=np.uint8)


def make_loader(images: Images, workers: int = 2, failures: WorkerFailures | None = None, batch: int = BATCH, **other):
    dataset_index = DatasetIndex(
        ("a",), tuple(Study(name, {IMAGE: name}, np.zeros(1, np.float32)) for name in NAMES), images
    )
    preprocess = Preprocess((16, 16), 1, [0.5], [0.25], augmentation=LightAugmentation())
    rng = np.random.default_rng(0)
    labels = Labels(rng.random((COUNT, 1)).astype(np.float32), rng.random((COUNT, 1)) < 0.5)
    batches = EpochBatchSampler(np.arange(COUNT), batch, True, SEED)
    dataset = ImageDataset(dataset_index, preprocess, SEED)
    return ImageLoader(dataset, labels, batches, UnreadableImages(0), workers, failures=failures, **other)


def content(entry) -> tuple:
    number, batch = entry
    tensors = (batch.inputs.image, batch.targets.labels, batch.targets.mask, batch.index)
    return (number, *(tensor.numpy().tobytes() for tensor in tensors))


def epoch(loader, number: int, start: int = 0) -> list[tuple]:
    return [content(entry) for entry in loader.epoch(number, start)]


def tolerant(limit: int, timeout: float | None = None) -> WorkerFailures:
    return WorkerFailures(limit, timeout, PATIENT)


def children() -> set[int]:
    """Processes started by this one; multiprocessing first waits for those of its own that have ended."""
    multiprocessing.active_children()
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # gone in the meantime
            parent = path.read_text().rpartition(")")[2].split()[1]
            found |= {int(path.parent.name)} if int(parent) == os.getpid() else set()
    return found - {resource_tracker._resource_tracker._pid}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[list[tuple]]:
    loader = make_loader(Images(tmp_path_factory.mktemp("marks")), workers=0)
    return [epoch(loader, number) for number in range(3)]


@pytest.fixture(scope="module")
def tally():
    """How many workers were struck, and how many of these failures per epoch survived."""
    figures = {"struck": 0, "survived": 0}
    yield figures
    print(f"worker deaths survived: {figures['survived']} of {figures['struck']}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """torch looks after its workers every 5 s; that is tested once, and waited for no more."""
    monkeypatch.setattr(LoaderIterator._try_get_data, "__defaults__", (0.2,))


@pytest.fixture(autouse=True)
def nothing_stays():
    """What a test starts is gone soon after; if not, it is ended, so that the next test begins alone."""
    before = children()
    yield
    gc.collect()
    try:
        wait_until(lambda: children() <= before, "all workers of the test are gone")
    finally:
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)


def check(loader, failures, expected, tally, count: int = 1, run=epoch) -> list[str]:
    """Run epoch 1 with `count` failures in it; what was said of them. The pool is whole afterwards."""
    before = children()
    tally["struck"] += count
    assert run(loader, 1) == expected
    assert len(failures.reasons) == count
    tally["survived"] += count
    assert len(wait_until(lambda: children() - before if len(children() - before) <= 2 else None, "one pool is left"))
    return failures.reasons


# ---- while a file is read


@pytest.mark.parametrize("fault", FAULTS)
def test_an_epoch_goes_on_when_a_worker_is_lost(fault, tmp_path, undisturbed, tally, caplog):
    failures = tolerant(1, timeout=1.0)
    loader = make_loader(Images(tmp_path, (13,), fault), failures=failures)
    reason = check(loader, failures, undisturbed[1], tally)[0]
    assert FAULTS[fault] in reason and f"while it read {NAMES[13]}" in reason
    assert reason.count("data worker") == 1 and reason.count("image") == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and reason in warnings[0] and "1 of at most 1" in warnings[0]
    assert [epoch(loader, number) for number in (2, 0)] == [undisturbed[2], undisturbed[0]]


@pytest.mark.parametrize("start", [3, 7])
def test_the_rest_of_an_epoch_goes_on_too(start, tmp_path, undisturbed, tally):
    failures = tolerant(1)
    index = int(np.frombuffer(undisturbed[1][7][4], np.int64)[0])
    loader = make_loader(Images(tmp_path, (index,)), failures=failures)
    check(loader, failures, undisturbed[1][start:], tally, run=lambda ldr, number: epoch(ldr, number, start))


def test_several_losses_in_one_epoch(tmp_path, undisturbed, tally):
    failures = tolerant(4)
    loader = make_loader(Images(tmp_path, (2, 19), times=2), failures=failures)
    tally["struck"] += 4
    assert epoch(loader, 1) == undisturbed[1]
    struck = [path.name.split("-")[0] for path in tmp_path.iterdir()]
    assert sorted(struck) == ["19", "19", "2", "2"]
    assert len(failures.reasons) in (2, 3, 4)  # both may go at once
    # One that goes while the other's end is being told is replaced with it, and not named.
    assert all(NAMES[2] in reason or NAMES[19] in reason for reason in failures.reasons)
    tally["survived"] += 4


def test_a_frozen_worker_that_has_a_batch_to_hand_over(tmp_path, undisturbed, tally, caplog):
    """Batch 1 lies in the queue, but torch asks the worker itself for its memory, and would for ever."""
    frozen_at = int(np.frombuffer(undisturbed[1][2][4], np.int64)[0])
    failures = tolerant(1, timeout=1.0)

    def run(loader, number):
        iterator = loader.epoch(number)
        batches = [content(next(iterator))]
        wait_until(lambda: list(tmp_path.iterdir()), "the worker has come to the file")
        return batches + [content(entry) for entry in iterator]

    loader = make_loader(Images(tmp_path, (frozen_at,), "freeze"), workers=1, failures=failures)
    reason = check(loader, failures, undisturbed[1], tally, run=run)[0]
    assert NAMES[frozen_at] in reason and "from batch 1 " in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_the_thread_that_pins_memory_ends_with_its_workers(fault, tmp_path, undisturbed, tally, monkeypatch):
    """Without a GPU: what pins is left out, the thread and its queues are torch's."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(pinning, "pin_memory", lambda data, device=None: data)
    failures = tolerant(1, timeout=1.0)
    loader = make_loader(Images(tmp_path, (13,), fault), failures=failures, pin_memory=True)
    assert NAMES[13] in check(loader, failures, undisturbed[1], tally)[0]
    pinning_threads = [thread for thread in threading.enumerate() if "pin_memory_loop" in thread.name]
    assert len(pinning_threads) == 1


def test_spawned_workers(tmp_path, undisturbed, tally):
    """They may take longer to start than for a file."""
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        failures = tolerant(1, timeout=1.0)
        loader = make_loader(Images(tmp_path, (13,)), workers=1, failures=failures)
        tally["struck"] += 1
        assert epoch(loader, 1) == undisturbed[1]
        assert f"data worker 0 was ended by SIGKILL while it read {NAMES[13]}" in failures.reasons[0]
        tally["survived"] += 1
    finally:
        multiprocessing.set_start_method(method, force=True)


# ---- elsewhere


def pool() -> list[int]:
    return sorted(process.pid for process in multiprocessing.active_children())


def count_to(number: int) -> int:
    """Python code in which a signal's handler could run."""
    return sum(1 for _ in range(number))


@pytest.mark.parametrize("victims", [1, 2])
def test_a_death_while_the_training_process_is_busy_waits_for_the_next_batch(victims, tmp_path, undisturbed, tally):
    failures = tolerant(1)
    loader = make_loader(Images(tmp_path), failures=failures)

    def run(loader, number):
        iterator = loader.epoch(number)
        batches = [content(next(iterator)) for _ in range(3)]
        killed = sorted(multiprocessing.active_children(), key=lambda process: process.pid)[:victims]
        for process in killed:
            process.kill()
        # Not their state: the main thread of a process is a zombie before its other threads have let go of its files.
        ended = [process.sentinel for process in killed]
        wait_until(lambda: len(connection.wait(ended, 0)) == victims, "the kernel has ended the workers")
        count_to(100_000)
        assert failures.reasons == []
        return batches + [content(entry) for entry in iterator]

    reason = check(loader, failures, undisturbed[1], tally, run=run)[0]
    assert reason.count("SIGKILL") == victims


def test_a_frozen_worker_leaves_with_one_that_died(tmp_path, undisturbed, tally, monkeypatch):
    """torch waits for each worker before it uses force, and SIGTERM does not reach a frozen one."""
    torchs, join, waited = 5.125, BaseProcess.join, []

    def observed(process, timeout=None) -> None:
        waited.extend([process.is_alive()] if timeout == torchs else [])
        join(process, timeout)

    failures = tolerant(1)
    loader = make_loader(Images(tmp_path), failures=failures)
    assert epoch(loader, 0) == undisturbed[0]
    monkeypatch.setattr(loader_utils, "MP_STATUS_CHECK_INTERVAL", torchs)
    monkeypatch.setattr(BaseProcess, "join", observed)
    os.kill(pool()[0], signal.SIGSTOP)
    os.kill(pool()[1], signal.SIGKILL)
    check(loader, failures, undisturbed[1], tally)
    assert waited == [False, False]


def test_a_death_between_two_epochs(tmp_path, undisturbed, tally):
    failures = tolerant(1)
    loader = make_loader(Images(tmp_path), failures=failures)
    assert epoch(loader, 0) == undisturbed[0]
    os.kill(pool()[1], signal.SIGKILL)
    reason = check(loader, failures, undisturbed[1], tally)[0]
    assert reason == "data worker 1 was ended by SIGKILL between two files"


def test_workers_that_do_nothing_are_replaced(tmp_path, undisturbed, tally):
    failures = tolerant(1, timeout=1.0)
    loader = make_loader(Images(tmp_path), failures=failures)
    assert epoch(loader, 0) == undisturbed[0]
    for pid in pool():
        os.kill(pid, signal.SIGSTOP)
    reason = check(loader, failures, undisturbed[1], tally)[0]
    assert reason.count("hung for") == reason.count("between two files") == 2


@pytest.mark.slow
def test_a_death_is_found_at_torchs_own_pace(tmp_path, undisturbed, tally, monkeypatch):
    monkeypatch.undo()
    failures = tolerant(1)
    loader = make_loader(Images(tmp_path, (13,), "exit"), failures=failures)
    assert "exit code 7" in check(loader, failures, undisturbed[1], tally)[0]


# ---- bounds


def test_a_file_that_ends_every_worker_ends_the_run(tmp_path, undisturbed):
    failures = tolerant(2)
    loader, batches = make_loader(Images(tmp_path, (13,), "exit", times=99), failures=failures), []
    with pytest.raises(DataError, match="max_worker_failures allows 2") as error:
        batches += [content(entry) for entry in loader.epoch(1)]
    assert str(error.value).count(NAMES[13]) == 3 == len(failures.reasons)
    assert "DATA.num_workers=0" in str(error.value)
    assert pool() == []


def test_what_is_given_before_the_end_is_right(tmp_path, undisturbed):
    last = int(np.frombuffer(undisturbed[1][-1][4], np.int64)[-1])
    batches = []
    with pytest.raises(DataError):
        for entry in make_loader(Images(tmp_path, (last,), times=99)).epoch(1):
            batches.append(content(entry))
    assert 0 < len(batches) < 8 and batches == undisturbed[1][: len(batches)]


def test_the_bound_is_for_the_run(tmp_path):
    dataset_index = DatasetIndex(
        ("a",),
        tuple(Study(name, {IMAGE: name}, np.array([index % 2], np.float32)) for index, name in enumerate(NAMES)),
        Images(tmp_path, (1, 10), "exit"),
    )
    keys = ["DATA.max_worker_failures=1", "DATA.worker_timeout=33.5", "DATA.num_workers=1", "DATA.image_size=16"]
    assignment = np.array(["train"] * 8 + ["val"] * 8 + ["test"] * 8)
    loaders = build_loaders(Config.from_overrides(keys), dataset_index, assignment, (0.5,) * 3, (0.5,) * 3)
    failures = {id(own): own for own in (loader.studies._loader.failures for loader in (loaders.train, loaders.val))}
    assert [(one.limit, one.timeout) for one in failures.values()] == [(1, 33.5)]
    assert [number for number, _ in loaders.train.epoch(0)] == [0]
    with pytest.raises(DataError, match=f"(?s){NAMES[1]}.*{NAMES[10]}"):
        list(loaders.val.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_code_is_no_failure_of_a_worker(workers, tmp_path):
    failures = WorkerFailures(3, times=WorkerTimes(exit=0.0))
    loader = make_loader(Images(tmp_path, (13,), "raise", times=99), workers, failures)
    with pytest.raises(RuntimeError, match="an error of the code"):
        epoch(loader, 1)
    assert failures.reasons == []
    assert pool() == []  # whom torch would wait for later, 5 s each


def test_random_numbers_of_the_run_are_left_alone(tmp_path, undisturbed):
    before = torch.get_rng_state()
    assert epoch(make_loader(Images(tmp_path, (13,)), failures=tolerant(1)), 1) == undisturbed[1]
    assert torch.equal(before, torch.get_rng_state())
