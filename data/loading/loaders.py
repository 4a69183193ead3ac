"""Batches from a dataset_index: order and augmentation are functions of (seed, epoch, sample) and of nothing else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from configs.errors import DataError
from data.loading.worker_watch import ResilientLoader, WorkerFailures
from data.study import DatasetIndex
from data.transforms.device_augmentation import DeviceAugmentation
from data.transforms.images import Preprocess, sample_rng
from data.transforms.volumes import VolumePreprocess

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """One micro-batch.

    image: float32 [B, C, H, W], or [B, C, D, H, W] of volumes.
    target: float32 [B, K]; mask: bool [B, K], True where the label is known.
    index: int64 [B], rows of the dataset index. coarse_target, coarse_mask: [B, G], where there are coarse classes.
    device_transform: what makes float32 [B, C, H, W] of image, uint8 or float32 [B, c, H, W], and augmentation_params
    [B, 8] as soon as they are on a device; see DeviceAugmentation. None where image is finished.
    """

    image: Tensor
    target: Tensor
    mask: Tensor
    index: Tensor
    coarse_target: Tensor | None = None
    coarse_mask: Tensor | None = None
    augmentation_params: Tensor | None = None
    device_transform: Callable[[Tensor, Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """The same batch on a device, finished there, the images in a memory format."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        labels = [move(t) for t in (self.target, self.mask, self.index, self.coarse_target, self.coarse_mask)]
        return Batch(self._images(device, memory_format), *labels)  # type: ignore[arg-type]

    def _images(self, device: torch.device, memory_format: torch.memory_format) -> Tensor:
        if self.device_transform is None or self.augmentation_params is None:
            return self.image.to(device, non_blocking=True, memory_format=memory_format)
        image, augmentation_params = (
            tensor.to(device, non_blocking=True) for tensor in (self.image, self.augmentation_params)
        )
        return self.device_transform(image, augmentation_params).contiguous(memory_format=memory_format)


@dataclass(frozen=True)
class Labels:
    """Targets and masks of the whole dataset_index: [N, K], and [N, G] where there are coarse classes."""

    target: np.ndarray
    mask: np.ndarray
    coarse_target: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None


@dataclass
class UnreadableImages:
    """Which images could not be read, shared by all loaders of a run.

    limit: how many are tolerated (DATA.max_bad_images); one more is a DataError that names them all.
    """

    limit: int
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, index: int, reason: str) -> None:
        if index in self.reasons:
            return
        self.reasons[index] = reason
        logger.warning("image left out (%d of at most %d): %s", len(self.reasons), self.limit, reason)
        if len(self.reasons) > self.limit:
            listed = "\n  ".join(self.reasons.values())
            raise DataError(
                f"{len(self.reasons)} images cannot be read, DATA.max_bad_images allows {self.limit}: "
                f"mend or remove them, or raise that number\n  {listed}"
            )


class Item(NamedTuple):
    """An image: its row, float32 [C, H, W] or None, why it cannot be read, the numbers that `Batch.device_transform`
    needs.
    """

    row: int
    image: Tensor | None
    reason: str | None = None
    augmentation_params: Tensor | None = None


class ImageDataset(Dataset):
    """dataset[(epoch, index)] → Item.

    preprocess: fits what the dataset index reads, images or volumes; those are float32 [C, D, H, W].
    """

    def __init__(
        self, dataset_index: DatasetIndex, preprocess: Preprocess | VolumePreprocess | DeviceAugmentation, seed: int
    ) -> None:
        self.dataset_index, self.seed = dataset_index, seed
        self.preprocess: Any = preprocess
        self.device_transform = preprocess.device_transform if isinstance(preprocess, DeviceAugmentation) else None

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        try:
            image = self.preprocess.read(self.dataset_index, index)
        except DataError as error:
            return Item(index, None, str(error))
        rng = sample_rng(self.seed, epoch, index) if self.preprocess.augmentation else None
        if self.device_transform is not None:
            fitted, augmentation_params = self.preprocess.prepare(image, rng)
            return Item(index, fitted, augmentation_params=augmentation_params)
        return Item(index, torch.from_numpy(self.preprocess(image, rng)))


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, index), a list per batch, from batch `start` of epoch `epoch` on."""

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


def _stack(images: list[Tensor]) -> Tensor:
    """Images of one size together; fitted ones may differ in kind: then all are float32 in [0, 1] and colour."""
    if len({(image.dtype, image.shape) for image in images}) > 1:
        colour = max(len(image) for image in images)
        unit = [p.float() / 255.0 if p.dtype == torch.uint8 else p for p in images]
        images = [image.expand(colour, -1, -1) for image in unit]
    return torch.stack(images)


class ImageLoader:
    """The batches of one split.

    `loader.epoch(n, start)` gives epoch n from batch `start` on, so that an interrupted epoch goes on where it was.
    An unreadable image is left out of its batch and reported to `bad`; a batch without images is left out.
    failures: what is tolerated of workers that are killed or hang, and counted; None: nothing.
    join: makes one tensor of a batch's images.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        labels: Labels,
        batches: EpochBatchSampler,
        bad: UnreadableImages,
        num_workers: int = 0,
        pin_memory: bool = False,
        failures: WorkerFailures | None = None,
        join: Callable[[list[Tensor]], Tensor] = _stack,
    ) -> None:
        self.dataset, self.labels, self.batches, self.bad = dataset, labels, batches, bad
        self._loader = ResilientLoader(
            dataset,
            batches,
            failures or WorkerFailures(),
            num_workers,
            collate_fn=partial(_collate, join=join),
            pin_memory=pin_memory,
            worker_init_fn=_init_worker,
            generator=torch.Generator().manual_seed(0),  # else each epoch would draw from the global stream
        )

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def indices(self) -> np.ndarray:
        """Rows of the dataset index that belong to this split."""
        return self.batches.indices

    def like(
        self,
        dataset: ImageDataset,
        batches: EpochBatchSampler,
        bad: UnreadableImages,
        join: Callable[[list[Tensor]], Tensor] = _stack,
    ) -> ImageLoader:
        """A loader of something else with as many workers, watched in the same way."""
        watched = self._loader.failures
        failures = WorkerFailures(watched.limit, watched.timeout, watched.times)
        return ImageLoader(dataset, self.labels, batches, bad, self._loader.num_workers, failures=failures, join=join)

    def names(self, index: Tensor) -> list[str]:
        """What the images of a batch are called."""
        return [self.dataset.dataset_index.studies[i].image for i in index.tolist()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch | None]]:
        """(number of the batch in its epoch, the batch); None where none of its images could be read."""
        for number, read in self._loader.epoch(epoch, start):
            for failed, reason in read.failures:
                self.bad.add(failed, reason)
            yield number, self._batch(read) if read.images is not None else None

    def _batch(self, read: _Read) -> Batch:
        rows = read.rows.numpy()

        def pick(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array[rows])

        target, mask = torch.from_numpy(self.labels.target[rows]), torch.from_numpy(self.labels.mask[rows])
        coarse = pick(self.labels.coarse_target), pick(self.labels.coarse_mask)
        assert read.images is not None
        return Batch(
            read.images, target, mask, read.rows, *coarse, read.augmentation_params, self.dataset.device_transform
        )


class _Read(NamedTuple):
    """What comes out of a worker; a NamedTuple, as DataLoader pins the tensors of one."""

    rows: Tensor
    images: Tensor | None
    augmentation_params: Tensor | None
    failures: list[tuple[int, str]]


def _collate(items: list[Item], join: Callable[[list[Tensor]], Tensor] = _stack) -> _Read:
    failures = [(item.row, item.reason or "") for item in items if item.image is None]
    read = [item for item in items if item.image is not None]
    rows = torch.tensor([item.row for item in read], dtype=torch.int64)
    augmentation_params = [item.augmentation_params for item in read if item.augmentation_params is not None]
    images = join([item.image for item in read if item.image is not None]) if read else None
    return _Read(rows, images, torch.stack(augmentation_params) if augmentation_params else None, failures)


def _init_worker(_: int) -> None:
    """One thread per worker. Ctrl-C and a batch system's SIGTERM reach workers too, but the main process decides."""
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
