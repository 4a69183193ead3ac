"""Worker processes that are killed or hang: what each was reading, and how the epoch continues unchanged."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from configs.errors import DataError
from data.loading.sending import CANNOT_SEND, REMEDY, workers_error
from utils.torch_private import leave_child_exits_to_us, shut_down_killed_workers, worker_processes

if TYPE_CHECKING:
    from data.loading.loaders import EpochBatchSampler, ImageDataset, Item
    from data.study import DatasetIndex
    from data.transforms.input_transform import TransformTo

logger = logging.getLogger(__name__)

NO_FILE = -1

Read = TypeVar("Read")


class LoaderOptions(TypedDict, Generic[Read], total=False):
    """What a DataLoader takes beside dataset, batch_sampler, num_workers and persistent_workers."""

    collate_fn: Callable[[list[Item]], Read]
    pin_memory: bool
    worker_init_fn: Callable[[int], None]
    generator: torch.Generator


@dataclass(frozen=True)
class WorkerTimes:
    """How long workers are waited for, in seconds of a machine that may be busy.

    start: beyond the timeout, before their first file: spawned ones import torch.
    look: between two looks at what the workers do.
    exit: by which the exit of a process may follow the loss of its connections.
    join: for the end of a killed process; the kernel may keep one that waits for a disk.
    sleep: lets so many seconds pass.
    """

    start: float = 60.0
    look: float = 1.0
    exit: float = 5.0
    join: float = 10.0
    sleep: Callable[[float], None] = time.sleep


@dataclass
class WorkerFailures:
    """How often workers were killed or hung, shared by all loaders of a run.

    limit: how often is tolerated (DATA.max_worker_failures). timeout: seconds for one file (DATA.worker_timeout), or
    None. times: how long else they are waited for.
    """

    limit: int = 0
    timeout: float | None = None
    times: WorkerTimes = WorkerTimes()
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str, batch: int) -> None:
        """Log that the epoch continues from `batch`. DataError that names every file if the limit is exceeded."""
        self.reasons.append(reason)
        count = len(self.reasons)
        if count > self.limit:
            listed = "\n  ".join(self.reasons)
            raise DataError(
                f"data workers failed {count} times, DATA.max_worker_failures allows {self.limit}: set "
                "DATA.num_workers=0 to see the reason, remove the file if it is always the same, or lower "
                f"DATA.num_workers if memory or /dev/shm is short\n  {listed}"
            )
        logger.warning(
            "%s: going on from batch %d with new workers (%d of at most %d)", reason, batch, count, self.limit
        )


class TrackedDataset(Dataset["Item"]):
    """A dataset of which each worker writes down the file it is at.

    table: shared int64 [workers, 2]: row of the dataset index or NO_FILE, and how often that has changed.
    """

    def __init__(self, dataset: ImageDataset[TransformTo[object]], table: Tensor) -> None:
        self.dataset, self.table = dataset, table

    def __getitem__(self, key: tuple[int, int]) -> Item:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[key]
        row = self.table[worker.id]
        try:
            self._note(row, key[1])
            return self.dataset[key]
        finally:
            self._note(row, NO_FILE)

    @staticmethod
    def _note(row: Tensor, index: int) -> None:
        row[0] = index
        row[1] += 1


class WorkerPool:
    """The worker processes of one DataLoader, and a thread that kills those that hang.

    A thread, as the training process itself may be waiting for a frozen worker.
    A worker hangs if it has been at one file for longer than `timeout`. All hang if a batch is waited for and none has
    started or finished a file for that long. Time is counted in looks, so that a stopped run (Ctrl-Z) does not hang.
    """

    def __init__(
        self, processes: Sequence[BaseProcess], table: Tensor, timeout: float | None, times: WorkerTimes
    ) -> None:
        self.processes, self.table, self.times = processes, table.numpy(), times
        self._is_waited_for = False
        self._hung: dict[int, float] = {}
        if timeout is not None and processes:
            threading.Thread(target=self._watch, args=(timeout,), daemon=True).start()

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """While the training process can do nothing without them. RuntimeError if any has ended before."""
        if self.has_ended():
            raise RuntimeError("a data worker exited while no batch was requested")
        self._is_waited_for = True
        try:
            yield
        finally:
            self._is_waited_for = False

    def has_ended(self, within: float = 0.0) -> bool:
        """Whether any worker ends within so many seconds."""
        return bool(self.processes) and bool(wait([process.sentinel for process in self.processes], within))

    def describe_ended(self, dataset_index: DatasetIndex) -> str:
        """Which workers have ended, how, and at which file."""
        return "; ".join(
            f"data worker {number} {self._end(number)} {self._position(number, dataset_index)}"
            for number in range(len(self.processes))
            if number in self._hung or self._is_over(number)
        )

    def could_not_send(self) -> bool:
        """Whether any ended as it had no means to hand over a batch, as any other would."""
        return any(self._is_over(n) and process.exitcode == CANNOT_SEND for n, process in enumerate(self.processes))

    def kill(self) -> None:
        """Kill all of them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(self.times.join)

    def _end(self, number: int) -> str:
        process = self.processes[number]
        process.join(self.times.exit)
        code = process.exitcode
        if number in self._hung:
            return f"hung for {self._hung[number]:.0f} s"
        return f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"

    def _position(self, number: int, dataset_index: DatasetIndex) -> str:
        index = int(self.table[number, 0])
        return "between two files" if index == NO_FILE else f"while it read {dataset_index.studies[index].name}"

    def _watch(self, timeout: float) -> None:
        """Runs in a thread: the training process may be held up by a worker that is frozen while it hands over."""
        look = min(self.times.look, timeout / 4)
        unmoved, silence = np.zeros(len(self.processes)), -self.times.start
        before = self.table.copy()
        while not all(map(self._is_over, range(len(self.processes)))):
            self.times.sleep(look)
            now = self.table.copy()
            moved, before = (now != before).any(1), now
            unmoved = np.where(moved, 0, unmoved + look)
            silence = 0 if moved.any() else silence + look * self._is_waited_for
            hangs = np.flatnonzero((now[:, 0] != NO_FILE) & (unmoved > timeout)).tolist()
            self._kill_hung({number: unmoved[number] for number in hangs})
            if silence > timeout and not self._hung and not self.has_ended():
                self._kill_hung(dict.fromkeys(range(len(self.processes)), silence))

    def _kill_hung(self, seconds: dict[int, float]) -> None:
        hung = {number: duration for number, duration in seconds.items() if not self._is_over(number)}
        self._hung |= hung
        for number in hung:
            self.processes[number].kill()

    def _is_over(self, number: int) -> bool:
        return bool(wait([self.processes[number].sentinel], 0))


class ResilientLoader(Generic[Read]):
    """A DataLoader whose epochs outlive its workers.

    options: see LoaderOptions.
    """

    def __init__(
        self,
        dataset: ImageDataset[TransformTo[object]],
        batches: EpochBatchSampler,
        failures: WorkerFailures,
        num_workers: int,
        **options: Unpack[LoaderOptions[Read]],
    ) -> None:
        self.dataset, self.batches, self.failures = dataset, batches, failures
        self.num_workers, self._options = num_workers, options
        self._start_workers()

    def _start_workers(self) -> None:
        """A new DataLoader; its workers start with its first epoch."""
        self._table = torch.tensor([[NO_FILE, 0]] * self.num_workers, dtype=torch.int64).reshape(-1, 2)
        if self.num_workers:
            try:
                self._table.share_memory_()
            except (RuntimeError, OSError) as error:
                raise workers_error(error) or error from None
        self._pool = WorkerPool([], self._table, None, self.failures.times)
        self._iterator: Iterator[Read] | None = None
        self._loader = DataLoader(
            TrackedDataset(self.dataset, self._table),
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **self._options,
        )

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[int, Read]]:
        """(number of the batch, what was collated) from batch `start` on, exactly once, even if workers die.

        Raises what reading raises, and DataError when workers have failed too often in this run.
        """
        number, iterator = start, None
        while True:
            try:
                iterator = self._begin(epoch, number) if iterator is None else iterator
                with self._pool.waited_for():
                    batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                lacking = workers_error(error) if self.num_workers else None
                if lacking is not None or not self._pool.has_ended(within=self.failures.times.exit):
                    if self._pool.processes:
                        self._terminate_workers()  # torch would wait 5 s for each, whenever the iterator is collected
                    if lacking is not None:
                        raise lacking from None
                    raise
                iterator = None
                self._replace_workers(number)
            else:
                yield number, batch
                number += 1

    def _begin(self, epoch: int, start: int) -> Iterator[Read]:
        self.batches.epoch, self.batches.start = epoch, start
        leave_child_exits_to_us()  # a death is found when a batch is asked for
        with self._pool.waited_for():
            iterator: Iterator[Read] = iter(self._loader)
            self._iterator = iterator
        if self.num_workers and not self._pool.processes:
            processes = worker_processes(iterator)
            self._pool = WorkerPool(processes, self._table, self.failures.timeout, self.failures.times)
        return iterator

    def _replace_workers(self, number: int) -> None:
        """Throw all workers away; what comes from batch `number` on is a function of it, so nothing is lost."""
        reason, lacking = self._pool.describe_ended(self.dataset.dataset_index), self._pool.could_not_send()
        self._terminate_workers()
        if lacking:
            raise DataError(f"data workers cannot send what they read ({reason}): {REMEDY}")
        self.failures.add(reason, number)

    def _terminate_workers(self) -> None:
        """End all workers; others start with the next iterator."""
        self._pool.kill()
        shut_down_killed_workers(self._iterator)
        self._start_workers()
