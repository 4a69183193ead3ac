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
# (row's number, the row, its inputs for each preprocessing): draws, and notes it in the row
Draw = Callable[[int, Row, Sequence[Inputs]], None]
# (the inputs of B studies for each preprocessing, the traits of each study)
Joint = tuple[tuple[Inputs, ...], Sequence[Traits]]


class JointLoader(Protocol[Traits_co]):
    """Gives (number of the batch, rows int64 [B], what was read of them or None), as a StudyLoader does."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Tensor, Joint[Traits_co] | None]]: ...


class _Sent(NamedTuple):
    """A batch: its rows, its inputs where they are read and on the device, its traits."""

    rows: list[int]
    read: tuple[Inputs, ...]
    inputs: tuple[Inputs, ...]
    traits: Sequence


def predict_rows(
    loader: JointLoader[Traits],
    ensemble: Ensemble,
    rows: Sequence[Row],
    unlike: Unlike[Traits],
    draw: Draw | None = None,
) -> None:
    """Fill the rows, one per image of the loader; what that cannot read stays to the caller.

    A model's NaN is an error of its row.
    """
    bar = Progress(len(loader), "predict", every=max(len(loader) // 10, 1))
    try:
        for pending in pipelined(_pending_batches(loader, ensemble)):
            if pending is not None:
                batch, result = pending
                probabilities = result()
                singles = list(zip(*(one.split(one.studies) for one in batch.read))) if draw is not None else []
                for position, number in enumerate(batch.rows):
                    warnings = unlike(number, batch.traits[position])
                    if rows[number].fill(probabilities[position], warnings, ensemble) and draw is not None:
                        draw(number, rows[number], singles[position])
            bar.advance(1)
    finally:
        bar.close()


def _pending_batches(
    loader: JointLoader[Traits], ensemble: Ensemble
) -> Iterator[tuple[_Sent, Callable[[], np.ndarray]] | None]:
    """Each batch and what gives its probabilities; None for a batch without images."""
    device = ensemble.members[0].predictor.device

    def send(batch: _Sent) -> _Sent:
        return batch._replace(inputs=tuple(one.to(device) for one in batch.read))

    batches = (None if read is None else _Sent(rows.tolist(), read[0], *read) for _, rows, read in loader.epoch(0))
    for _, sent in prefetch_to_device(batches, send, device):
        yield None if sent is None else (sent, ensemble.begin(sent.inputs))
