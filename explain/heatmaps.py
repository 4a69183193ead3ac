"""Images that heatmaps are made of, one at a time, whether they stand alone or are views of studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import ExplanationError
from explain.methods import explain
from explain.network import Level, PyramidModel
from explain.sanity import Check, check

Network = TypeVar("Network", bound=nn.Module)


class Shown(NamedTuple):
    """pixels: the original. x: [1, C, *spatial], of the network. of: the whole network → that of this image, with all
    else of its study as it is."""

    pixels: object
    x: Tensor
    of: Callable[[nn.Module], PyramidModel]

    def maps(self, network: nn.Module, classes: Sequence[int], method: str, level: Level) -> Tensor:
        """[K, *spatial] of x."""
        return explain(self.of(network), self.x, classes, method, level)[0]


def as_it_is(network: nn.Module) -> PyramidModel:
    """Of an image that stands alone."""
    assert isinstance(network, PyramidModel)
    return network


def in_turn(pairs: Iterable[tuple[int, int]], classes: int) -> list[tuple[int, int]]:
    """(row, class), the first row of every class, then the second …; each pair once."""
    once = list(dict.fromkeys(pairs))
    by_class = [[pair for pair in once if pair[1] == k] for k in range(classes)]
    return [pair for turn in zip_longest(*by_class) for pair in turn if pair is not None]


def sanity(model: Network, random: Network, shown: Iterator[tuple[Shown, int]], method: str, level: Level) -> Check:
    """The cascade over images, each with one class. Raises ExplanationError where there is none."""
    inputs = list(shown)
    if not inputs:
        raise ExplanationError("--sanity needs images with a finding: there is none in this split")
    return check(model, random, lambda net: torch.stack([one.maps(net, [k], method, level) for one, k in inputs]))


def spread(count: int, at_most: int) -> np.ndarray:
    """Up to `at_most` of the first `count` numbers, evenly from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(int))
