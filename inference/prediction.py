"""The pass over images: probabilities, findings and warnings into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor

from inference.ensemble import Ensemble
from inference.results import Row
from utils.batch import Inputs
from utils.progress import Progress
from utils.transfers import pipelined, prefetch_to_device

# What is measured of each image beside its inputs, to see whether it is like the training images.
Traits = TypeVar("Traits")
Traits_co = TypeVar("Traits_co", covariant=True)
# (row's number, traits of the image) → in which ways it is unlike the training images
Unlike = Callable[[int, Traits], Sequence[str]]
# (the inputs of B studies for each preprocessing, the traits of each study)
Joint = tuple[tuple[Inputs, ...], Sequence[Traits]]


class JointLoader(Protocol[Traits_co]):
    """Gives (number of the batch, rows int64 [B], what was read of them or None), as a StudyLoader does."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Tensor, Joint[Traits_co] | None]]: ...


class _Sent(NamedTuple):
    """A batch: its rows, its inputs, its traits."""

    rows: list[int]
    inputs: tuple[Inputs, ...]
    traits: Sequence


def batches_to_do(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """The batches of which a row has no result yet, whole: so each row is computed beside the same others as in a pass
    that nothing interrupts, and its figures are the same to the last digit.
    """
    batches = [list(range(first, min(first + batch_size, len(rows)))) for first in range(0, len(rows), batch_size)]
    return [batch for batch in batches if any(rows[number].probabilities is None for number in batch)]


def predict_rows(
    loader: JointLoader[Traits],
    ensemble: Ensemble,
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    unlike: Unlike[Traits],
    finished: Callable[[Sequence[int]], None],
) -> None:
    """Fill rows, batch by batch. batches: the numbers of the rows in each of the loader's. finished: is handed those of
    a batch that is done, in the batches' order; a row without probabilities then could not be read.

    A model's NaN is an error of its row.
    """
    bar = Progress(len(batches), "predict", every=max(len(batches) // 10, 1))
    try:
        for number, pending in pipelined(_pending_batches(loader, ensemble)):
            if pending is not None:
                batch, result = pending
                probabilities = result()
                for position, row in enumerate(batch.rows):
                    rows[row].fill(probabilities[position], unlike(row, batch.traits[position]), ensemble)
            finished(batches[number])
            bar.advance(1)
    finally:
        bar.close()


def _pending_batches(
    loader: JointLoader[Traits], ensemble: Ensemble
) -> Iterator[tuple[int, tuple[_Sent, Callable[[], np.ndarray]] | None]]:
    """The number of each batch, and what gives its probabilities; None for a batch without images."""
    device = ensemble.members[0].predictor.device

    def send(batch: _Sent) -> _Sent:
        return batch._replace(inputs=tuple(one.to(device) for one in batch.inputs))

    batches = (None if read is None else _Sent(rows.tolist(), *read) for _, rows, read in loader.epoch(0))
    ahead = prefetch_to_device(batches, send, device)
    for number, (_, sent) in enumerate(ahead):
        yield number, None if sent is None else (sent, ensemble.begin(sent.inputs))
