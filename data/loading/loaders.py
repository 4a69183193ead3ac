"""Batches from a dataset_index: order and augmentation are functions of (seed, epoch, sample) and of nothing else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from configs.errors import CacheError, DataError
from data.loading.mixing import Mixing
from data.loading.remarks import ImageRemarks
from data.loading.sampling import draw, times_before
from data.loading.sending import Piped, end_where_nothing_can_be_sent, send
from data.loading.worker_watch import ResilientLoader, WorkerFailures
from data.readers.remarks import Remark, collecting
from data.study import DatasetIndex
from data.transforms.images import sample_rng
from data.transforms.input_transform import AnyReadTransform, ReadBatch, TransformTo
from utils.batch import Batch, Targets

logger = logging.getLogger(__name__)

# In a number that stands for an epoch: how often a study has been drawn in it before. No run has so many epochs.
_TIMES_SHIFT = 32

Transform = TypeVar("Transform", bound=TransformTo[object], covariant=True)
Content = TypeVar("Content")
Other = TypeVar("Other")


@dataclass(frozen=True)
class Labels:
    """Targets and masks of the whole dataset_index: [N, K], and [N, G] where there are coarse classes."""

    target: np.ndarray
    mask: np.ndarray
    coarse_target: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> Targets:
        """Those of some studies."""

        def pick(column: np.ndarray | None) -> Tensor | None:
            return None if column is None else torch.from_numpy(column[rows])

        labels, mask = torch.from_numpy(self.target[rows]), torch.from_numpy(self.mask[rows])
        return Targets(labels, mask, pick(self.coarse_target), pick(self.coarse_mask))


@dataclass
class UnreadableImages:
    """Which images could not be read, shared by all loaders of a run.

    limit: how many are tolerated (DATA.max_bad_images); one more is a DataError that names them all.
    remarks: what is to be said of those that could be read.
    """

    limit: int
    reasons: dict[int, str] = field(default_factory=dict)
    remarks: ImageRemarks = field(default_factory=ImageRemarks)

    def add(self, index: int, reason: str) -> None:
        if index in self.reasons:
            return
        self.reasons[index] = reason
        logger.warning("image left out (%d of at most %d): %s", len(self.reasons), self.limit, reason)
        if len(self.reasons) > self.limit:
            listed = "\n  ".join(self.reasons.values())
            raise DataError(
                f"{len(self.reasons)} images cannot be read, DATA.max_bad_images allows {self.limit}: "
                f"repair or remove them, or raise that number\n  {listed}"
            )

    def end_epoch(self) -> None:
        """Called when all images of a loader were read."""
        self.remarks.tell()


Failure = tuple[int, str]  # an image's row, of DatasetIndex.image_index, and why it cannot be read


class Item(NamedTuple):
    """A study: its row, what a transform made of it, None where nothing of it can be read, and what is to be said of
    its images, by their rows.
    """

    row: int
    value: object  # known to the transform alone, which collates it
    failures: tuple[Failure, ...] = ()
    remarks: tuple[tuple[int, tuple[Remark, ...]], ...] = ()
    fatal: bool = False  # the last failure is not this study's


class ImageDataset(Dataset[Item], Generic[Transform]):
    """dataset[(epoch, index)] → Item, as a transform makes it of a study."""

    def __init__(self, dataset_index: DatasetIndex, transform: Transform, seed: int) -> None:
        self.dataset_index, self.transform, self.seed = dataset_index, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        with collecting() as remarks:
            try:
                value = self.transform.apply(self.dataset_index, index, sample_rng(self.seed, epoch, index))
            except DataError as error:
                return Item(index, None, ((index, str(error)),), fatal=isinstance(error, CacheError))
        return Item(index, value, (), ((index, tuple(remarks.values())),) if remarks else ())


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, index), a list per batch, from batch `start` of epoch `epoch` on.

    weights: how often each index is drawn in an epoch, which is as long as ever, see `draw`; None: once. A study that
    is drawn again has another number in place of the epoch, so that it is augmented in another way.
    """

    def __init__(
        self,
        indices: Sequence[int] | np.ndarray,
        batch_size: int,
        shuffle: bool,
        seed: int,
        weights: np.ndarray | None = None,
    ) -> None:
        self.indices, self.weights = np.asarray(indices, np.int64), weights
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, times = self.indices, None
        if self.weights is not None:
            order = self.indices[draw(self.weights, self.seed, self.epoch)]
            times = times_before(order)
        elif self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        for first in range(self.start * self.batch_size, len(order), self.batch_size):
            rows = order[first : first + self.batch_size].tolist()
            again = [0] * len(rows) if times is None else times[first : first + self.batch_size].tolist()
            yield [(self.epoch + (time << _TIMES_SHIFT), row) for row, time in zip(rows, again, strict=True)]


class StudyLoader(Generic[Content]):
    """What a dataset's transform makes of its studies, a batch at a time, read by workers.

    `loader.epoch(n, start)` gives epoch n from batch `start` on, so that an interrupted epoch continues where it was.
    A study of which nothing can be read is left out of its batch; images that cannot be read are reported to `bad`.
    failures: what is tolerated of workers that are killed or hang, and counted; None: nothing.
    """

    def __init__(
        self,
        dataset: ImageDataset[TransformTo[Content]],
        batches: EpochBatchSampler,
        bad: UnreadableImages,
        num_workers: int = 0,
        pin_memory: bool = False,
        failures: WorkerFailures | None = None,
    ) -> None:
        self.dataset, self.batches, self.bad = dataset, batches, bad
        self._told_of_pipe = False
        self._loader = ResilientLoader(
            dataset,
            batches,
            failures or WorkerFailures(),
            num_workers,
            collate_fn=partial(_collate, transform=dataset.transform),
            pin_memory=pin_memory,
            worker_init_fn=_init_worker,
            generator=torch.Generator().manual_seed(0),  # else each epoch would draw from the global stream
        )

    def __len__(self) -> int:
        return len(self.batches)

    def like(
        self, dataset: ImageDataset[TransformTo[Other]], batches: EpochBatchSampler, bad: UnreadableImages
    ) -> StudyLoader[Other]:
        """A loader of something else with as many workers, watched in the same way."""
        watched = self._loader.failures
        failures = WorkerFailures(watched.limit, watched.timeout, watched.times)
        return StudyLoader(dataset, batches, bad, self._loader.num_workers, failures=failures)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Tensor, Content | None]]:
        """(number of the batch in its epoch, rows int64 [n], what was made of them); None where none could be read."""
        for number, sent in self._loader.epoch(epoch, start):
            read = self._opened(sent) if isinstance(sent, Piped) else sent
            if read.fatal is not None:
                raise CacheError(read.fatal)
            for failed, reason in read.failures:
                self.bad.add(failed, reason)
            for row, remarks in read.remarks:
                self.bad.remarks.add(row, self.dataset.dataset_index.image_index.studies[row].name, remarks)
            yield number, read.rows, read.content
        self.bad.end_epoch()

    def _opened(self, sent: Piped[_Read[Content]]) -> _Read[Content]:
        if not self._told_of_pipe:
            logger.warning(
                "%s: batches come through a pipe, which is slower; give more (docker run --shm-size=2g), or lower "
                "DATA.num_workers",
                sent.reason,
            )
            self._told_of_pipe = True
        return sent.open()


class ImageLoader:
    """The batches of one split: what a StudyLoader reads, with the labels; see there for the parameters.

    mixing: of single images, in training; None: they stay as they are.
    """

    def __init__(
        self,
        dataset: ImageDataset[AnyReadTransform],
        labels: Labels,
        batches: EpochBatchSampler,
        bad: UnreadableImages,
        num_workers: int = 0,
        pin_memory: bool = False,
        failures: WorkerFailures | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        self.dataset, self.labels, self.batches, self.bad, self.mixing = dataset, labels, batches, bad, mixing
        self.studies: StudyLoader[ReadBatch] = StudyLoader(dataset, batches, bad, num_workers, pin_memory, failures)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def indices(self) -> np.ndarray:
        """Rows of the dataset index that belong to this split."""
        return self.batches.indices

    def own_labels(self) -> Labels:
        """Those of this split, row by row."""
        labels, rows = self.labels, self.indices
        coarse = (None if column is None else column[rows] for column in (labels.coarse_target, labels.coarse_mask))
        return Labels(labels.target[rows], labels.mask[rows], *coarse)

    def names(self, index: Tensor) -> list[str]:
        """What the images of a batch are called."""
        return [self.dataset.dataset_index.studies[i].name for i in index.tolist()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch | None]]:
        """(number of the batch in its epoch, the batch); None where none of its images could be read."""
        for number, rows, read in self.studies.epoch(epoch, start):
            yield number, None if read is None else self._mixed(self._batch(rows, read), epoch, number)

    def _mixed(self, batch: Batch, epoch: int, number: int) -> Batch:
        if self.mixing is None:
            return batch
        mix = self.mixing.draw(epoch, number, len(batch), batch.inputs.image.shape[2:])
        return batch if mix is None else replace(batch, targets=mix.targets(batch.targets), mix=mix)

    def _batch(self, rows: Tensor, read: ReadBatch) -> Batch:
        targets, device_transform = self.labels.of(rows.numpy()), self.dataset.transform.device_transform
        return Batch(read.inputs, targets, rows, read.augmentation_params, device_transform, read.guidance)


class _Read(NamedTuple, Generic[Content]):
    """What comes out of a worker; a NamedTuple, as DataLoader pins the tensors of one."""

    rows: Tensor
    content: Content | None  # None where nothing could be read
    failures: list[tuple[int, str]]
    remarks: list[tuple[int, tuple[Remark, ...]]]
    fatal: str | None = None  # why nothing more can be read


def _collate(items: list[Item], transform: TransformTo[Content]) -> _Read[Content] | Piped[_Read[Content]]:
    failures = [failure for item in items for failure in item.failures]
    read = [item for item in items if item.value is not None]
    rows = torch.tensor([item.row for item in read], dtype=torch.int64)
    remarks = [remark for item in items for remark in item.remarks]
    fatal = next((item.failures[-1][1] for item in items if item.fatal), None)
    content = transform.collate([item.value for item in read]) if read else None
    return send(_Read(rows, content, failures, remarks, fatal))


def _init_worker(_: int) -> None:
    """One thread per worker. Ctrl-C and a batch system's SIGTERM reach workers too, but the main process decides."""
    import cv2

    cv2.setNumThreads(0)
    end_where_nothing_can_be_sent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _obey_main_process() -> None:
    """Leave on a SIGTERM of the main process (`Process.terminate`); it could not save if others ended its workers."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
