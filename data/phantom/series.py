"""What drawn images and drawn volumes share: a series of patients, and a folder that appears only when it is whole."""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count as count_up
from itertools import islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def series(of_patient: Callable[[int, int, int], Iterator[T]], count: int, size: int, seed: int) -> Iterator[T]:
    """The first `count` items of patients 0, 1, …; of_patient(seed, patient, size) gives those of one.

    Raises ValueError for a size outside 64 to 512, or a negative count or seed.
    """
    if not 64 <= size <= 512:
        raise ValueError(f"size {size}: sample data are drawn at 64 to 512 pixels or voxels")
    if count < 0 or seed < 0:
        raise ValueError(f"count {count}, seed {seed}: neither may be negative")
    every = (item for patient in count_up() for item in of_patient(seed, patient, size))
    return islice(every, count)


def write_whole_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes the new `folder` with what `fill(empty folder)` writes; it appears only when it is complete.

    It is made under another name beside its place and then renamed. Raises FileExistsError if it exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or give another folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        fill(partial)
        partial.rename(folder)
    except BaseException:  # an interrupt too must leave nothing behind
        shutil.rmtree(partial, ignore_errors=True)
        raise
