"""A network as a flat list of blocks, which may be cut anywhere.

What flows between blocks is a State: tensors with names. Each block reads the fields that it works on and gives a state
with what later blocks need; what is no longer read is not in it, as a state at a cut is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from utils.batch import Logits
from utils.torch_private import tree_leaves


class State(NamedTuple):
    """What one block hands to the next; a pytree, None and () where a part of the network has no use for a field.

    x: what the next block works on: the input [B, C, *spatial], the backbone's map or tokens, the FPN's coarser map,
        the fused map.
    levels: maps of the pyramid, finest first: those that have left the backbone, then those that FPN, attention and
        fusion have still to read.
    outputs: levels that the FPN has finished, finest first.
    tokens: of cross-scale attention, [B, N_i, width] per level.
    weights, total, size: of the fusion: how much each level counts [B, levels], the sum of the levels so far
        [B, C, *size] (None before the first), and its spatial size.
    logits: what the head returns.
    attended: where attention is observed (see PyramidAttention.steps), its maps so far.
    """

    x: Tensor | None = None
    levels: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    tokens: tuple[Tensor, ...] = ()
    weights: Tensor | None = None
    total: Tensor | None = None
    size: tuple[int, ...] = ()
    logits: Tensor | Logits | None = None
    attended: tuple[Tensor, ...] = ()

    def current(self) -> Tensor:
        """x, which must be there."""
        assert self.x is not None, "the block before this one left no map"
        return self.x

    def tensors(self) -> list[Tensor]:
        """All of its tensors."""
        return [leaf for leaf in tree_leaves(self) if isinstance(leaf, Tensor)]


class Block(NamedTuple):
    """One step of a network.

    name: for messages. run: state → state.
    modules: those that `run` calls, each as a whole, and no others (sharding, freezing and learning rates per layer go
        by them). Only where a foreign network runs as one block is it that network, of which parts are called.
    parameters: those that `run` reads itself, without a call of the module that has them, such as position embeddings.
    """

    name: str
    run: Callable[[State], State]
    modules: tuple[nn.Module, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()

    def all_parameters(self) -> Iterator[nn.Parameter]:
        """Its own and those of its modules, each once."""
        inside = (parameter for module in self.modules for parameter in module.parameters())
        yield from dict.fromkeys([*self.parameters, *inside])


def block(
    name: str,
    function: Callable[[Tensor], Tensor],
    tap: Callable[[Tensor], Tensor] | None = None,
    last: bool = False,
    modules: Iterable[nn.Module] | None = None,
    parameters: Iterable[nn.Parameter] = (),
) -> Block:
    """A step of a backbone: x → function(x).

    tap: a level leaves after this block: tap(function(x)) is appended to the levels.
    last: x itself is needed no longer.
    modules: those that `function` and `tap` call; None: the two themselves, as far as they are modules.
    """
    if modules is None:
        modules = [part for part in (function, tap) if isinstance(part, nn.Module)]

    def run(state: State) -> State:
        y = function(state.current())
        if tap is None:
            return state._replace(x=y)
        return State(None if last else y, (*state.levels, tap(y)))

    return Block(name, run, tuple(modules), tuple(parameters))


def identity(x: Tensor) -> Tensor:
    """x itself: the tap of a map that is channels first already, or a block that only taps."""
    return x


def run_plainly(blocks: Iterable[Block], state: State) -> State:
    """All blocks one after another, nothing recomputed."""
    for step in blocks:
        state = step.run(state)
    return state


def leading_frozen(blocks: Sequence[Block]) -> int:
    """How many blocks lie before the first that is trained: they end with one whose parameters want no gradient."""
    frozen = 0
    for number, one in enumerate(blocks, start=1):
        wanted = [parameter.requires_grad for parameter in one.all_parameters()]
        if any(wanted):
            break
        frozen = number if wanted else frozen
    return frozen
