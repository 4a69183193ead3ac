"""A network as a flat list of blocks, which may be cut anywhere.

What flows between blocks is a state: a tuple of tensors, of which the last one is what the next block works on and the
others are levels of the pyramid that have left already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

State = tuple[Tensor, ...]


class Block(NamedTuple):
    """One step: a name for messages, and a function state → state that calls the modules it is made of."""

    name: str
    run: Callable[[State], State]


def block(
    name: str,
    function: Callable[[Tensor], Tensor],
    tap: Callable[[Tensor], Tensor] | None = None,
    last: bool = False,
) -> Block:
    """A step of a backbone: (*levels, x) → (*levels, function(x)).

    tap: a level leaves after this block: (*levels, tap(y), y) with y = function(x).
    last: y itself is needed no longer: (*levels, tap(y)).
    """

    def run(state: State) -> State:
        *levels, x = state
        y = function(x)
        if tap is None:
            return (*levels, y)
        return (*levels, tap(y)) if last else (*levels, tap(y), y)

    return Block(name, run)


def identity(x: Tensor) -> Tensor:
    """x itself: the tap of a map that is channels first already, or a block that only taps."""
    return x


def run_plainly(blocks: Iterable[Block], state: State) -> State:
    """All blocks one after another, nothing recomputed."""
    for step in blocks:
        state = step.run(state)
    return state
