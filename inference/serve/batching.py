"""Two threads between requests and the model: one reads files, one has the model and asks it about what waits."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from configs.errors import HybridMedNetError
from utils.batch import Inputs

logger = logging.getLogger("serve")

# How long a server whose model has failed is not ready, unless it answers meanwhile.
REST_SECONDS = 30.0

Question = TypeVar("Question")
Read = TypeVar("Read", bound="ReadQuestion")


class ReadQuestion(Protocol):
    """What was read of a question. inputs: of one or more studies, an entry for each preprocessing; () where nothing
    could be read. merges: whether it may be asked together with others, all inputs being single images of one size.
    """

    @property
    def inputs(self) -> tuple[Inputs, ...]: ...
    @property
    def merges(self) -> bool: ...


class Observer(Protocol):
    """Is told what the model was asked."""

    def asked(self, images: int, seconds: float) -> None: ...


class QueueFullError(Exception):
    """There is no room for a request's images. seconds: in which there may be."""

    def __init__(self, seconds: float) -> None:
        super().__init__("queue full")
        self.seconds = seconds


@dataclass
class _Job(Generic[Question, Read]):
    question: Question
    size: int
    future: Future[tuple[Read, np.ndarray]] = field(default_factory=Future)
    read: Read | None = None


class Batcher(Generic[Question, Read]):
    """read: makes inputs of a question, in its thread. ask: inputs → probabilities [B, K], in the model's thread.

    limit: images that may wait or be worked on. batch: images asked about at once; the first of them waits at most
    wait_seconds for others. A question that cannot be read, or asked, fails alone: its future has the exception.
    """

    def __init__(
        self,
        read: Callable[[Question], Read],
        ask: Callable[[Sequence[Inputs]], np.ndarray],
        observer: Observer,
        limit: int,
        batch: int,
        wait_seconds: float,
    ) -> None:
        self._read, self._ask, self._observer = read, ask, observer
        self._limit, self._batch, self._wait = limit, batch, wait_seconds
        self._lock, self._waiting, self._stopping = threading.Lock(), 0, False
        self._per_image = 0.1  # seconds, of the last batches
        self._to_read: queue.SimpleQueue[_Job[Question, Read] | None] = queue.SimpleQueue()
        # What is read and waits is bounded: a reader that is faster than the model must not fill the memory.
        self._to_ask: queue.Queue[_Job[Question, Read] | None] = queue.Queue(2 * batch)
        self._failed: tuple[float, str] | None = None  # when the model's last batch failed, and why
        works = (("reader", self._read_all), ("model", self._ask_all))
        self._threads = [threading.Thread(target=work, name=name, daemon=True) for name, work in works]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def stop(self, most_seconds: float = 60.0) -> None:
        """Answer what waits, and end; what hangs is left after so many seconds. Nothing is taken from now on."""
        with self._lock:
            self._stopping = True
        self._to_read.put(None)
        until = time.monotonic() + most_seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    @property
    def waiting(self) -> int:
        """Images that wait or are worked on."""
        return self._waiting

    @property
    def ended(self) -> str:
        """Why nothing is taken any more, '' where questions are."""
        if self._stopping:
            return "the server is stopping"
        return "" if all(thread.is_alive() for thread in self._threads) else "a thread of the server has ended"

    @property
    def problem(self) -> str:
        """Why others should be asked, '' where all is well. What fails once may be asked again after a while."""
        recent = self._failed is not None and time.monotonic() - self._failed[0] < REST_SECONDS
        return self.ended or (self._failed[1] if self._failed is not None and recent else "")

    def submit(self, questions: Sequence[tuple[Question, int]]) -> list[Future[tuple[Read, np.ndarray]]]:
        """All or none of the (question, its number of images): the futures of (what was read, probabilities).

        Raises QueueFullError.
        """
        jobs = [_Job[Question, Read](question, size) for question, size in questions]
        wanted = sum(job.size for job in jobs)
        with self._lock:
            if self._stopping or self._waiting + wanted > self._limit:
                raise QueueFullError(self._waiting * self._per_image)
            self._waiting += wanted
        for job in jobs:
            self._to_read.put(job)
        return [job.future for job in jobs]

    def _leave(self, job: _Job[Question, Read]) -> None:
        """Its place is free: only when it has left the queues, or what was given up would pile up in them."""
        with self._lock:
            self._waiting -= job.size

    def _fail(self, job: _Job[Question, Read], error: Exception) -> None:
        if not isinstance(error, HybridMedNetError):
            logger.error("a question could not be answered", exc_info=error)
        self._leave(job)
        with suppress(InvalidStateError):  # cancelled: nobody waits for it any more
            job.future.set_exception(error)

    def _read_all(self) -> None:
        while (job := self._to_read.get()) is not None:
            if job.future.cancelled():  # nobody waits for it any more
                self._leave(job)
                continue
            try:
                job.read = self._read(job.question)
            except Exception as error:
                self._fail(job, error)
                continue
            if job.read.inputs:
                self._to_ask.put(job)
            else:  # nothing of it could be read
                self._leave(job)
                with suppress(InvalidStateError):
                    job.future.set_result((job.read, np.empty((0, 0))))
        self._to_ask.put(None)

    def _ask_all(self) -> None:
        left: _Job[Question, Read] | None = None
        while True:
            first = left or self._to_ask.get()
            if first is None:
                return
            jobs, left, ended = self._gathered(first)
            self._answer(jobs)
            if ended:
                return

    def _gathered(
        self, first: _Job[Question, Read]
    ) -> tuple[list[_Job[Question, Read]], _Job[Question, Read] | None, bool]:
        """(a batch, a job that is none of it, whether the end was met)."""
        jobs, until = [first], time.monotonic() + self._wait
        while _merges(first) and len(jobs) < self._batch:
            try:
                job = self._to_ask.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if job is None:
                return jobs, None, True
            if not _merges(job):
                return jobs, job, False
            jobs.append(job)
        return jobs, None, False

    def _answer(self, jobs: list[_Job[Question, Read]]) -> None:
        pairs = []
        for job in jobs:
            if job.read is None or job.future.cancelled():
                self._leave(job)
            else:
                pairs.append((job, job.read))
        if not pairs:
            return
        begin = time.monotonic()
        try:
            probabilities = self._ask([together(column) for column in zip(*(read.inputs for _, read in pairs))])
        except Exception as error:
            self._failed = time.monotonic(), f"the model could not be asked ({type(error).__name__})"
            for job, _ in pairs:
                self._fail(job, error)
            return
        self._failed = None
        images, seconds = sum(job.size for job, _ in pairs), time.monotonic() - begin
        self._per_image = 0.8 * self._per_image + 0.2 * seconds / max(images, 1)
        self._observer.asked(images, seconds)
        start = 0
        for job, read in pairs:
            end = start + read.inputs[0].studies
            self._leave(job)
            with suppress(InvalidStateError):
                job.future.set_result((read, probabilities[start:end]))
            start = end


def together(inputs: Sequence[Inputs]) -> Inputs:
    """Single images of several questions as one batch; a question that does not merge comes alone."""
    if len(inputs) == 1:
        return inputs[0]
    return Inputs.of_images(torch.cat([one.single_images() for one in inputs]))


def _merges(job: _Job[Question, Read]) -> bool:
    return job.read is not None and job.read.merges
