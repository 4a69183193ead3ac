"""Batches from a catalogue: order and augmentation are functions of (seed, epoch, sample) and of nothing else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from configs.errors import DataError
from data.sample import Catalogue
from data.transforms import Preprocess, sample_rng
from data.volume_transforms import VolumePreprocess
from data.worker_watch import WatchedLoader, WorkerFailures

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """One micro-batch.

    image: float32 [B, C, H, W], or [B, C, D, H, W] of volumes.
    target: float32 [B, K]; mask: bool [B, K], True where the label is known.
    index: int64 [B], rows of the catalogue. coarse_target, coarse_mask: [B, G], where there are coarse classes.
    """

    image: Tensor
    target: Tensor
    mask: Tensor
    index: Tensor
    coarse_target: Tensor | None = None
    coarse_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """The same batch on a device, the pictures in a memory format."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        image = self.image.to(device, non_blocking=True, memory_format=memory_format)
        labels = [move(t) for t in (self.target, self.mask, self.index, self.coarse_target, self.coarse_mask)]
        return Batch(image, *labels)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Labels:
    """Targets and masks of the whole catalogue: [N, K], and [N, G] where there are coarse classes."""

    target: np.ndarray
    mask: np.ndarray
    coarse_target: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None


@dataclass
class BadPictures:
    """Which pictures could not be read, shared by all loaders of a run.

    limit: how many are tolerated (DATA.max_bad_images); one more is a DataError that names them all.
    """

    limit: int
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, index: int, reason: str) -> None:
        if index in self.reasons:
            return
        self.reasons[index] = reason
        logger.warning("picture left out (%d of at most %d): %s", len(self.reasons), self.limit, reason)
        if len(self.reasons) > self.limit:
            listed = "\n  ".join(self.reasons.values())
            raise DataError(
                f"{len(self.reasons)} pictures cannot be read, DATA.max_bad_images allows {self.limit}: "
                f"mend or remove them, or raise that number\n  {listed}"
            )


class PictureDataset(Dataset):
    """dataset[(epoch, index)] → (index, picture float32 [C, H, W], None), or (index, None, why it cannot be read).

    preprocess: fits what the catalogue reads, pictures or volumes; those are float32 [C, D, H, W].
    """

    def __init__(self, catalogue: Catalogue, preprocess: Preprocess | VolumePreprocess, seed: int) -> None:
        self.catalogue, self.seed = catalogue, seed
        self.preprocess: Any = preprocess

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor | None, str | None]:
        epoch, index = key
        try:
            picture = self.catalogue.read(index)
        except DataError as error:
            return index, None, str(error)
        rng = sample_rng(self.seed, epoch, index) if self.preprocess.augmentation else None
        return index, torch.from_numpy(self.preprocess(picture, rng)), None


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, index), a list a batch, from batch `start` of epoch `epoch` on."""

    def __init__(self, indices: Sequence[int] | np.ndarray, batch_size: int, shuffle: bool, seed: int) -> None:
        self.indices = np.asarray(indices, np.int64)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.indices
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        for first in range(self.start * self.batch_size, len(order), self.batch_size):
            yield [(self.epoch, int(index)) for index in order[first : first + self.batch_size]]


class PictureLoader:
    """The batches of one split.

    `loader.epoch(n, start)` gives epoch n from batch `start` on, so that an interrupted epoch goes on where it was.
    An unreadable picture is left out of its batch and reported to `bad`; a batch without pictures is left out.
    failures: what is tolerated of workers that are killed or hang, and counted; None: nothing.
    """

    def __init__(
        self,
        dataset: PictureDataset,
        labels: Labels,
        batches: EpochBatches,
        bad: BadPictures,
        num_workers: int = 0,
        pin_memory: bool = False,
        failures: WorkerFailures | None = None,
    ) -> None:
        self.dataset, self.labels, self.batches, self.bad = dataset, labels, batches, bad
        self._loader = WatchedLoader(
            dataset,
            batches,
            failures or WorkerFailures(),
            num_workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            worker_init_fn=_init_worker,
            generator=torch.Generator().manual_seed(0),  # else each epoch would draw from the global stream
        )

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def indices(self) -> np.ndarray:
        """Rows of the catalogue that belong to this split."""
        return self.batches.indices

    def like(self, dataset: PictureDataset, batches: EpochBatches, bad: BadPictures) -> PictureLoader:
        """A loader of something else with as many workers, watched in the same way."""
        failures = WorkerFailures(self._loader.failures.limit, self._loader.failures.timeout)
        return PictureLoader(dataset, self.labels, batches, bad, self._loader.num_workers, failures=failures)

    def names(self, index: Tensor) -> list[str]:
        """What the pictures of a batch are called."""
        return [self.dataset.catalogue.samples[i].image for i in index.tolist()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch | None]]:
        """(number of the batch in its epoch, the batch); None where none of its pictures could be read."""
        for number, (index, images, failures) in self._loader.epoch(epoch, start):
            for failed, reason in failures:
                self.bad.add(failed, reason)
            yield number, self._batch(index, images) if images is not None else None

    def _batch(self, index: Tensor, images: Tensor) -> Batch:
        rows = index.numpy()

        def pick(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array[rows])

        target, mask = torch.from_numpy(self.labels.target[rows]), torch.from_numpy(self.labels.mask[rows])
        return Batch(images, target, mask, index, pick(self.labels.coarse_target), pick(self.labels.coarse_mask))


def _collate(items: list[tuple[int, Tensor | None, str | None]]):
    failures = [(index, reason) for index, picture, reason in items if picture is None]
    pictures = [picture for _, picture, _ in items if picture is not None]
    index = torch.tensor([index for index, picture, _ in items if picture is not None], dtype=torch.int64)
    return index, torch.stack(pictures) if pictures else None, failures


def _init_worker(_: int) -> None:
    """One thread a worker. Ctrl-C and a batch system's SIGTERM reach workers too, but the main process decides."""
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _obey_main_process() -> None:
    """Leave on a SIGTERM of the main process (`Process.terminate`); it could not save if others ended its workers."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
