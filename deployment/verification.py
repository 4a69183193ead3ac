"""Whether an exported file computes what the network does: it is run, and compared number by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from configs.errors import ExportError
from deployment.exported_network import Exportable

# The inputs, in the model's order → the outputs: one array, or as many as the model gives.
Run = Callable[..., np.ndarray | Sequence[np.ndarray]]
# float32 [N, C, *spatial], or one array for each input, [N, …].
Arrays = np.ndarray | Sequence[np.ndarray]

# Largest |Δ| of a probability against the float32 network; of a logit too, in units of the larger of 1 and itself.
# Half types keep 11 (fp16) and 8 (bf16) binary digits, of which a deep network loses some.
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
# Images at a time: one, and more than the exporter was shown.
BATCH_SIZES = (1, 3)


def random_images(image_shape: Sequence[int], count: int = 4, seed: int = 0) -> np.ndarray:
    """Normal noise like normalised images: float32 [count, C, *spatial]."""
    return np.random.default_rng(seed).standard_normal((count, *image_shape), dtype=np.float32)


def compare(model: nn.Module, run: Run, images: Arrays, batch_sizes: Sequence[int] = BATCH_SIZES) -> float:
    """The largest |Δ| of any output over these images, each batch size in turn.

    model: in eval mode; a network with (coarse, fine) outputs is compared output by output in the order it gives them.
    run: gives an array, or a sequence of as many as the model gives. images: what both are given.
    Where |value| is above 1, as logits may be, the difference is taken relative to it.
    Infinite where an output is not finite or not of the model's shape. Raises ValueError without images.
    """
    inputs = [images] if isinstance(images, np.ndarray) else list(images)
    if not len(inputs[0]):
        raise ValueError("nothing to compare: no images")
    worst = 0.0
    for size in batch_sizes:
        for batch in _batches(inputs, size):
            pairs = zip(_expected(model, batch), _listed(run(*batch)), strict=True)
            worst = max(worst, *(_difference(expected, found) for expected, found in pairs))
    return worst


def check(model: nn.Module, run: Run, images: Arrays, precision: str, batch_sizes: Sequence[int]) -> float:
    """`compare`, or ExportError where that is above BOUNDS[precision] or the file cannot be run at all."""
    try:
        difference = compare(model, run, images, batch_sizes)
    except Exception as error:  # the exported file may fail in any way, and in several runtimes
        raise ExportError(f"the exported file does not run ({type(error).__name__}: {first_line(error)})") from error
    if not difference < BOUNDS[precision]:
        raise ExportError(
            f"the exported file does not compute what the network does: largest |Δ| {difference:.1e}, allowed is less "
            f"than {BOUNDS[precision]:g} in {precision}; it was removed"
        )
    return difference


def first_line(error: BaseException) -> str:
    """What happened, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _batches(inputs: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """All rows in batches of exactly this size, the first ones again where the last batch lacks some."""
    for start in range(0, len(inputs[0]), size):
        yield [np.take(one, range(start, start + size), axis=0, mode="wrap") for one in inputs]


@torch.inference_mode()
def _expected(model: nn.Module, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
    tensors = list(map(torch.from_numpy, batch))
    if isinstance(model, Exportable):  # by name, as a model lacks some of the inputs that others have
        outputs = model(**dict(zip(model.input_names(), tensors, strict=True)))
    else:
        outputs = model(*tensors)
    return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _listed(outputs: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(y) for y in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    apart = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    return float((apart / np.maximum(np.abs(expected), 1.0)).max(initial=0.0))
