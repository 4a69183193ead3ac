"""Filling a cache: every image of a dataset index read once, by as many workers as training has."""

from __future__ import annotations

import errno
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from configs.errors import ConfigError
from data.cache.file import MAGIC, CacheDescription, CacheIndex, SharedBytes, free_memory, open_cache_file, write_index
from data.cache.reader import (
    AnyPreprocess,
    CachedReader,
    Encoded,
    EncodedBatch,
    Encoder,
    Recipe,
    empty_records,
    find,
    with_reader,
)
from data.cache.stamps import contents, forget, stamps
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, StudyLoader, UnreadableImages
from data.loading.remarks import as_json
from data.study import DatasetIndex
from utils.atomic_file import remove, replacing
from utils.progress import Progress

logger = logging.getLogger(__name__)

_BATCH, _BATCH_BYTES = 64, 2**26
# Seconds without a write after which a temporary file is of a process that was killed.
_ABANDONED = 3600.0
# Chunks of shared memory: large enough that even a cache of all memory is few open files.
_LEAST_CHUNK, _MOST_CHUNKS = 2**26, 64


class Builder:
    """Reads all images of a loader's dataset index and hands their bytes to a sink; of studies, image by image.

    loader: of the dataset index to be cached; its workers decode. bad: counts what cannot be read. style: of the
    progress, see `Progress`. with_content: whether files are digested, see data/cache/stamps.py.
    """

    def __init__(
        self,
        loader: ImageLoader,
        preprocess: AnyPreprocess,
        bad: UnreadableImages,
        style: str,
        with_content: bool = False,
    ) -> None:
        self._with_content = with_content
        self.dataset_index, self.preprocess = loader.dataset.dataset_index.image_index, preprocess
        self._loader, self._bad, self._style = loader, bad, style

    def fill(self, write: Callable[[np.ndarray], object], check_room: Callable[[int], None]) -> CacheIndex:
        """write: takes the bytes of each image, in the order of their offsets. check_room: called early with how many
        bytes there will be, by images from all over the dataset index; raises where they are too many.

        Raises DataError where more images cannot be read than is tolerated, or workers fail too often.
        """
        count = len(self.dataset_index.studies)
        loader = self._encoding_loader()
        size = loader.batches.batch_size
        records, end, announced = empty_records(count), 0, False
        with closing(Progress(count, "decoding images", self._style, -(-count // 10), unit="image")) as progress:
            for number, rows, batch in loader.epoch(0):
                if batch is not None:
                    encoded = batch.split(self.preprocess.size)
                    if not announced:
                        check_room(len(batch.pixels) * count // len(encoded))
                        announced = True
                    end = _append(records, rows.tolist(), encoded, end, write)
                progress.advance(min(size, count - number * size))
        remarks = as_json(self._bad.remarks, count)
        return CacheIndex(records, {"unreadable": self._unreadable(records), "remarks": remarks})

    def _encoding_loader(self) -> StudyLoader[EncodedBatch]:
        """All rows, each image as the bytes that are kept; the first batch is from all over the dataset index."""
        count, encoder = len(self.dataset_index.studies), Encoder(self.preprocess, self._with_content)
        first = np.unique(
            np.linspace(0, count - 1, max(1, min(_BATCH, _BATCH_BYTES // encoder.most_bytes))).astype(int)
        )
        rows = np.concatenate([first, np.setdiff1d(np.arange(count), first)])
        dataset = ImageDataset(self.dataset_index, encoder, seed=0)
        return self._loader.studies.like(dataset, EpochBatchSampler(rows, len(first), False, 0), self._bad)

    def _unreadable(self, records: np.ndarray) -> dict[str, str]:
        return {str(row): self._bad.reasons[row] for row in np.flatnonzero(records["kind"] == 0).tolist()}


def _append(
    records: np.ndarray, rows: list[int], encoded: list[Encoded], end: int, write: Callable[[np.ndarray], object]
) -> int:
    """Write images and their records; returns where the next one begins."""
    for row, (kind, spacing, pixels, content) in zip(rows, encoded):
        write(pixels)
        record = records[row]
        record["kind"], record["offset"], record["length"] = kind, end, len(pixels)
        record["crc"], record["spacing"], record["content"] = zlib.crc32(pixels.data), spacing, content
        end += len(pixels)
    return end


def cached_in_memory(builder: Builder) -> DatasetIndex:
    """The builder's dataset index, its images in memory that all workers share.

    Raises ConfigError where they need more than there is, and as `Builder.fill` does.
    """
    sink = SharedBytes(_LEAST_CHUNK)

    def check_room(needed: int) -> None:
        free = free_memory()
        if free is not None and needed > free:
            raise ConfigError(
                f"DATA.cache=ram needs about {_gb(needed)} of shared memory, {_gb(free)} are free (/dev/shm counts): "
                "use disk, or a smaller DATA.image_size, or none"
            )
        sink.chunk_bytes = max(_LEAST_CHUNK, needed // _MOST_CHUNKS)

    index = builder.fill(sink.write, check_room)
    sink.finish()
    logger.info("%s images are decoded and in memory", f"{len(index.records):,}")
    return with_reader(builder.dataset_index, CachedReader(index, sink, builder.preprocess.size, "the cache in memory"))


def cached_on_disk(builder: Builder, folder: Path, source: Path, by_content: bool = False) -> DatasetIndex:
    """The builder's dataset index, its images in a file of `folder`, which is made if it is not there or not theirs.

    source: where the images are from. by_content: compare the content of all files with what the cache was made of,
    whatever the file system says of them. Raises ConfigError where the folder cannot be written or its disk is too
    small, and as `Builder.fill` does.
    """
    recipe, now = Recipe.of(builder.dataset_index, builder.preprocess, source), stamps(builder.dataset_index)
    path = folder / recipe.file_name()
    found = find(path, recipe, builder.dataset_index, now, by_content)
    if found is None:
        _write(builder, path, recipe, now)
        found = open_cache_file(path, len(now))
    else:
        logger.info("decoded images are read from '%s'", path)
    index, kept = found
    return with_reader(builder.dataset_index, CachedReader(index, kept, builder.preprocess.size, f"the cache '{path}'"))


def _write(builder: Builder, path: Path, recipe: Recipe, now: np.ndarray) -> None:
    with _explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        forget(path)
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(MAGIC)
            index = builder.fill(
                lambda pixels: file.write(pixels.data), lambda needed: _check_disk(path.parent, needed)
            )
            index.records["stamp"] = now
            unread = np.flatnonzero(index.records["kind"] == 0)
            index.records["content"][unread] = contents(builder.dataset_index, unread)
            about: CacheDescription = {"settings": recipe.settings, "libraries": recipe.libraries, **index.about}
            write_index(file, file.tell() - len(MAGIC), CacheIndex(index.records, about))
            file.flush()
    logger.info("%s decoded images are in '%s' (%s)", f"{len(now):,}", path, _gb(path.stat().st_size))


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """OSError of writing as a ConfigError that says what to set."""
    try:
        yield
    except OSError as reason:
        what = "its disk is full" if reason.errno in (errno.ENOSPC, errno.EDQUOT) else reason.strerror or str(reason)
        raise ConfigError(
            f"DATA.cache=disk cannot write into '{folder}' ({what}): set DATA.cache_dir to a folder with room that can "
            "be written, or DATA.cache=none"
        ) from reason


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"DATA.cache=disk needs about {_gb(needed)} in '{folder}', {_gb(free)} are free: set DATA.cache_dir to a "
            "folder with more room, or a smaller DATA.image_size, or DATA.cache=none"
        )


def _clear_abandoned(path: Path) -> None:
    """Remove what killed processes left of this cache; one that is being written changes all the time."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        try:
            abandoned = time.time() - leftover.stat().st_mtime > _ABANDONED
        except OSError:
            continue
        if abandoned:
            remove(leftover)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
