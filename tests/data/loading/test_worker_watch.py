"""Which workers the watch kills: time is what its looks add up to, and passes as the test says."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import torch

from data.loading.worker_watch import NO_FILE, WorkerPool, WorkerTimes

TIMEOUT, LOOK, START = 4.0, 1.0, 10.0


@dataclass
class Process:
    """What the watch needs of one: a sentinel that can be read once it has ended."""

    number: int
    on_kill: Callable[[int], None]
    pipe: tuple[int, int] = field(default_factory=os.pipe)

    @property
    def sentinel(self) -> int:
        return self.pipe[0]

    def kill(self) -> None:
        self.end()
        self.on_kill(self.number)

    def end(self) -> None:
        with suppress(OSError):  # closed already
            os.close(self.pipe[1])


def watched(happens, workers: int = 2, start: float = START) -> list[tuple[int, float]]:
    """Who is killed, and at what time, while happens(crew, table, time) is called before each of 60 looks."""
    clock, killed, over = [0.0], [], threading.Event()
    table = torch.tensor([[NO_FILE, 0]] * workers)
    ready, crews, errors = threading.Event(), [], []

    def note(number: int) -> None:
        killed.append((number, clock[0]))
        if len(killed) == workers:
            over.set()

    def sleep(seconds: float) -> None:
        assert ready.wait(120)
        try:
            happens(crews[0], table, clock[0])
        except BaseException as error:
            errors.append(error)
        clock[0] += seconds
        if clock[0] >= 60 or errors:
            for process in processes:
                process.end()
            over.set()

    processes = [Process(number, note) for number in range(workers)]
    crews.append(WorkerPool(processes, table, TIMEOUT, WorkerTimes(start=start, look=LOOK, sleep=sleep)))
    ready.set()
    assert over.wait(120) and errors == []
    return killed


def read(table: torch.Tensor, worker: int, row: int) -> None:
    """The worker begins a file, or is between two files."""
    table[worker, 0] = row
    table[worker, 1] += 1


def test_a_batch_may_take_longer_than_a_file():
    """Each file takes three looks, a batch of twelve 36 s, and the training process waits for it."""

    def happens(pool, table, now) -> None:
        pool._is_waited_for = True
        for worker in range(2):
            if (now + worker) % 3 == 0:
                read(table, worker, int(now))

    assert watched(happens) == []


@pytest.mark.parametrize("waited_for", [True, False])
def test_who_is_too_long_at_one_file_is_killed_and_nobody_else(waited_for):
    def happens(pool, table, now) -> None:
        pool._is_waited_for = waited_for
        read(table, 0, int(now))
        if now == 7:
            read(table, 1, 3)

    # First seen at 8 s; more than four seconds later it is still at that file.
    assert watched(happens) == [(1, 13.0)]


def test_a_worker_between_two_files_is_left_alone_as_long_as_another_works():
    def happens(pool, table, now) -> None:
        pool._is_waited_for = True
        read(table, 0, int(now))

    assert watched(happens) == []


def test_all_are_killed_if_none_moves_while_a_batch_is_waited_for():
    def happens(pool, table, now) -> None:
        pool._is_waited_for = True
        if now == 0:
            read(table, 0, 5), read(table, 0, NO_FILE)

    assert watched(happens) == [(0, 6.0), (1, 6.0)]


def test_nobody_is_killed_while_nothing_is_waited_for():
    def happens(pool, table, now) -> None:
        if now == 0:
            read(table, 0, 5), read(table, 0, NO_FILE)

    assert watched(happens) == []


def test_before_the_first_file_they_have_the_time_to_start():
    def happens(pool, table, now) -> None:
        pool._is_waited_for = True

    assert watched(happens) == [(0, START + TIMEOUT + 1), (1, START + TIMEOUT + 1)]


def test_a_look_is_a_quarter_of_a_short_timeout():
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        process.end()

    process = Process(0, on_kill=lambda number: None)
    pool = WorkerPool([process], torch.tensor([[NO_FILE, 0]]), 1.0, WorkerTimes(look=LOOK, sleep=sleep))
    assert pool.has_ended(within=120) and looks == [0.25]
