"""A user's own DataLoader, or any iterable of batches, as a Loader whose epochs are functions of (seed, epoch)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from configs.errors import DataError
from training.user_batches import Given, LabelForm, read_batch
from utils.batch import Batch

# Any: whatever a user's loader gives; `read_batch` looks at it.
Batches: TypeAlias = Iterable[Any]
_END = object()


class RandomStream:
    """The global generators of the CPU (torch's, NumPy's, Python's) as a stream of its own: inside `with`, what draws
    from them draws from this stream; outside they go on as if nobody had.
    """

    def __init__(self, seed: int) -> None:
        outer = _state()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what datasets and their transforms use
        self.inner = _state()
        _set_state(outer)

    def __enter__(self) -> None:
        self.outer = _state()
        _set_state(self.inner)

    def __exit__(self, *_: object) -> None:
        self.inner = _state()
        _set_state(self.outer)


def _state() -> tuple[Any, ...]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


def _set_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])  # noqa: NPY002


class UserLoader:
    """A Loader (see training/loader.py) over batches that can be iterated again and again and have a length.

    name: what the user calls it, for errors. form: of its labels.

    What an epoch draws from the global generators, in this process, is a function of (seed, epoch): so the order of a
    DataLoader with shuffle=True, its workers' seeds, and random transforms in this process. A generator that the
    loader, or its sampler, was given is seeded by its own first seed and the epoch; `set_epoch` is called on whatever
    of loader, sampler and dataset has one. An epoch that is resumed in the middle loads what it skips. What keeps a
    random state elsewhere (workers that persist from epoch to epoch, transforms with a generator of their own) goes on
    as it is: of those a resumed run does not draw the same again.
    """

    def __init__(self, batches: Batches, name: str, form: LabelForm, seed: int) -> None:
        self.batches, self.name, self.form, self.seed = batches, name, form, seed
        self._first_seeds = {id(one): (one, one.initial_seed()) for one in _generators(batches)}

    def __len__(self) -> int:
        return length(self.batches, self.name)

    def names(self, index: Tensor) -> list[str]:
        """Images of a loader have no names: their places in the epoch."""
        return [f"{self.name}[{row}]" for row in index.tolist()]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Batch | None]]:
        """See Loader."""
        self._announce(epoch)
        row = 0
        try:
            for number, item in enumerate(self._items(epoch)):
                where = f"batch {number} of {self.name}"
                given = read_batch(item, where)
                size = len(given) if isinstance(given, Batch) else given.inputs.studies
                if number >= start:
                    yield number, self._batch(given, row, where) if size else None
                row += size
        finally:  # the next one who is given these generators finds their first seeds
            for generator, first in self._first_seeds.values():
                generator.manual_seed(first)

    def _items(self, epoch: int) -> Iterator[object]:
        stream = RandomStream(mixed_seed(self.seed, epoch))
        with stream:
            iterator = iter(self.batches)
        while True:
            with stream:
                item = next(iterator, _END)
            if item is _END:
                return
            yield item

    def _announce(self, epoch: int) -> None:
        for generator, first in self._first_seeds.values():
            generator.manual_seed(mixed_seed(first, epoch))
        for part in _parts(self.batches):
            if callable(announce := getattr(part, "set_epoch", None)):
                announce(epoch)

    def _batch(self, given: Given | Batch, row: int, where: str) -> Batch:
        if isinstance(given, Batch):
            return given
        index = torch.arange(row, row + given.inputs.studies)
        return Batch(given.inputs, self.form.targets(given, where), index)


def length(batches: Batches, name: str) -> int:
    """Batches per epoch. Raises DataError where there is none, or nobody can say."""
    try:
        count = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader of an IterableDataset
        count = None
    if count is None:
        raise DataError(
            f"{name} ({type(batches).__name__}) has no len(): the learning rate follows the number of batches in an "
            "epoch, so give the dataset a __len__, or wrap the loader in a class that has one"
        )
    if count == 0:
        raise DataError(f"{name} is empty: it has no batch (fewer images than a batch, with drop_last=True?)")
    return count


def check_loader(batches: Batches, name: str) -> None:
    """Raises DataError for what cannot be gone through once an epoch."""
    if not isinstance(batches, Iterable):
        raise DataError(f"{name} is {type(batches).__name__}: it must be a DataLoader, or iterable")
    if isinstance(batches, Iterator):
        raise DataError(f"{name} is {type(batches).__name__}, which can be gone through once: give what it is made by")
    length(batches, name)


def first_batch(batches: Batches, name: str, seed: int) -> Given | Batch:
    """The first batch of epoch 0, by a look that leaves the loader's random numbers as they are."""
    with RandomStream(mixed_seed(seed, 0)):
        item = next(iter(batches), _END)
    if item is _END:
        raise DataError(f"{name} is empty: it gave no batch")
    return read_batch(item, f"batch 0 of {name}")


def mixed_seed(seed: int, epoch: int) -> int:
    """For one epoch; 63 bits."""
    return int(np.random.SeedSequence([seed & (1 << 64) - 1, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _parts(batches: object) -> list[object]:
    """A DataLoader and what it draws by, each once."""
    sampler, batch_sampler = getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)
    found = (
        batches,
        sampler,
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(batches, "dataset", None),
    )
    return list({id(part): part for part in found if part is not None}.values())


def _generators(batches: object) -> list[torch.Generator]:
    found = (getattr(part, "generator", None) for part in _parts(batches))
    return [one for one in found if isinstance(one, torch.Generator)]
