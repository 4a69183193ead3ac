"""The pass over pictures: probabilities, findings and warnings into rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from inference.ensemble import Ensemble
from inference.results import Row
from utils.progress import Progress

# (row's number, traits of the picture) → in which ways it is unlike the training pictures
Unlike = Callable[[int, Sequence[float]], Sequence[str]]
# (row's number, the row, an input [1, C, *spatial] for each preprocessing): draws, and notes it in the row
Draw = Callable[[int, Row, Sequence[Tensor]], None]


def predict_rows(
    loader: Any,
    split: Callable[[Tensor], tuple[list[Tensor], Tensor]],
    ensemble: Ensemble,
    rows: Sequence[Row],
    unlike: Unlike,
    draw: Draw | None = None,
) -> None:
    """Fill the rows, one a picture of the loader.

    loader: a PictureLoader of joint inputs; what it cannot read stays to the caller. split: takes these apart, see
    JointPreprocess. A model's NaN is an error of its row.
    """
    bar = Progress(len(loader), "predict", every=max(len(loader) // 10, 1))
    try:
        for _, batch in loader.epoch(0):
            if batch is not None:
                inputs, traits = split(batch.image)
                probabilities = ensemble.probabilities(inputs)
                for place, number in enumerate(batch.index.tolist()):
                    warnings = unlike(number, traits[place].tolist())
                    if rows[number].fill(probabilities[place], warnings, ensemble) and draw is not None:
                        draw(number, rows[number], [one[place : place + 1] for one in inputs])
            bar.advance(1)
    finally:
        bar.close()
