"""The pass over images: probabilities, findings and warnings into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from inference.ensemble import Ensemble
from inference.results import Row
from utils.progress import Progress
from utils.transfers import pipelined, prefetch_to_device

# [B, n] → (an input [B, C, *spatial] for each preprocessing, traits [B, T])
Split = Callable[[Tensor], tuple[list[Tensor], Tensor]]
# (row's number, traits of the image) → in which ways it is unlike the training images
Unlike = Callable[[int, Sequence[float]], Sequence[str]]
# (row's number, the row, an input [1, C, *spatial] for each preprocessing): draws, and notes it in the row
Draw = Callable[[int, Row, Sequence[Tensor]], None]


def predict_rows(
    loader: Any,
    split: Split,
    ensemble: Ensemble,
    rows: Sequence[Row],
    unlike: Unlike,
    draw: Draw | None = None,
) -> None:
    """Fill the rows, one an image of the loader.

    loader: a ImageLoader of joint inputs; what it cannot read stays to the caller. split: takes these apart, see
    JointPreprocess. A model's NaN is an error of its row.
    """
    bar = Progress(len(loader), "predict", every=max(len(loader) // 10, 1))
    try:
        for begun in pipelined(_begun(loader, split, ensemble)):
            if begun is not None:
                batch, result = begun
                inputs, traits = split(batch.image)
                probabilities = result()
                for position, number in enumerate(batch.index.tolist()):
                    warnings = unlike(number, traits[position].tolist())
                    if rows[number].fill(probabilities[position], warnings, ensemble) and draw is not None:
                        draw(number, rows[number], [one[position : position + 1] for one in inputs])
            bar.advance(1)
    finally:
        bar.close()


def _begun(loader: Any, split: Split, ensemble: Ensemble) -> Iterator[tuple[Any, Callable[[], np.ndarray]] | None]:
    """Each batch and what gives its probabilities; None for a batch without images. Sent whole, and split there."""
    device = ensemble.members[0].predictor.device
    pairs = (None if batch is None else (batch, batch.image) for _, batch in loader.epoch(0))

    def send(pair: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
        return pair[0], pair[1].to(device, non_blocking=True)

    for _, sent in prefetch_to_device(pairs, send, device):
        yield None if sent is None else (sent[0], ensemble.begin(split(sent[1])[0]))
