"""Recomputing runs of blocks in the backward pass, so that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Protocol, TypedDict

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from utils.blocks import Block, State, leading_frozen, run_plainly
from utils.gradient_checkpointing.activation_memory import recomputation
from utils.torch_private import BatchNorm, TreeSpec, tree_flatten, tree_unflatten


def run_recomputed(
    blocks: Sequence[Block],
    state: State,
    runs: Sequence[tuple[int, int]],
    preserve_rng_state: bool = True,
) -> State:
    """Run all blocks; those in `runs`, [first, end) from block 0 on, are recomputed in the backward pass.

    The running statistics of batch normalisations in the blocks' modules are not touched by it. Blocks at the beginning
    in which nothing is trained keep nothing for the backward pass, so there is nothing to be saved by doing them again.
    """
    frozen = 0 if any(tensor.requires_grad for tensor in state.tensors()) else leading_frozen(blocks)
    state = run_plainly(blocks[:frozen], state)
    done = frozen
    for start, end in runs:
        if end <= frozen:
            continue
        start = max(start, frozen)
        assert start == done, "runs follow one another from the first block on"
        # Flat, as torch's checkpoint saves tensors among its arguments and merely holds what is nested in them.
        leaves, structure = tree_flatten(state)
        state = checkpoint(
            partial(_run, blocks[start:end], structure),
            *leaves,
            use_reentrant=False,
            preserve_rng_state=preserve_rng_state,
            **_contexts(_batch_norms(blocks[start:end])),
        )
        done = end
    return run_plainly(blocks[done:], state)


def _run(blocks: Sequence[Block], structure: TreeSpec, *leaves: object) -> State:
    return run_plainly(blocks, tree_unflatten(leaves, structure))


def _batch_norms(blocks: Sequence[Block]) -> list[BatchNorm]:
    modules = (part for step in blocks for module in step.modules for part in module.modules())
    return [module for module in dict.fromkeys(modules) if isinstance(module, BatchNorm)]


def _contexts(norms: Sequence[BatchNorm]) -> dict:
    """The option of torch's checkpoint for a context around the recomputation.

    None under torch.compile: its backward pass repeats values only, and statistics are written once.
    """
    if torch.compiler.is_compiling():
        return {}

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _as_before(norms, tuple(_RECOMPUTE_CONTEXTS))

    return {"context_fn": contexts}


# Factories of the contexts that are active now, the outermost first; see `again_in_recomputation`.
_RECOMPUTE_CONTEXTS: list[Callable[[], AbstractContextManager]] = []


@contextmanager
def again_in_recomputation(make: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """What is computed inside is computed again within a context that `make` gives, in any thread.

    For contexts that change what operations compute; torch restores autocast and random states itself.
    """
    _RECOMPUTE_CONTEXTS.append(make)
    try:
        yield
    finally:
        _RECOMPUTE_CONTEXTS.pop()


@contextmanager
def _as_before(norms: Sequence[BatchNorm], contexts: Sequence[Callable[[], AbstractContextManager]]) -> Iterator[None]:
    with untouched_statistics(norms), ExitStack() as stack:
        for make in contexts:
            stack.enter_context(make())
        yield


@contextmanager
def untouched_statistics(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Inside, batch normalisation computes what it did, and leaves its running statistics as they are.

    A momentum of zero keeps them (switching track_running_stats off would change what is saved for the backward
    pass); the counter of batches is a copy meanwhile. What is already not finite stays so.
    """
    with ExitStack() as stack, recomputation():
        for norm in norms:
            if norm.training and norm.track_running_stats:
                stack.enter_context(_untouched(norm))
        yield


@contextmanager
def _untouched(norm: BatchNorm) -> Iterator[None]:
    momentum, counter = norm.momentum, norm.num_batches_tracked
    norm.momentum = 0.0
    norm.num_batches_tracked = None if counter is None else counter.clone()
    try:
        yield
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, counter


class _AutocastOptions(TypedDict):
    """Arguments of torch.autocast."""

    device_type: str
    dtype: torch.dtype
    enabled: bool
    cache_enabled: bool


class RngAndAutocastState:
    """What a forward pass depends on beside its inputs: random states and autocast, as they are now.

    `again` applies them temporarily; the random streams continue afterwards as if nothing had been drawn.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu_random = torch.get_rng_state()
        self.cuda_random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.autocast: list[_AutocastOptions] = [
            {
                "device_type": kind,
                "dtype": torch.get_autocast_dtype(kind),
                "enabled": torch.is_autocast_enabled(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for kind in {"cpu", device.type}
            if kind in ("cpu", "cuda")
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        with ExitStack() as stack:
            devices = [] if self.cuda_random is None else [self.device]
            stack.enter_context(torch.random.fork_rng(devices))
            torch.set_rng_state(self.cpu_random)
            if self.cuda_random is not None:
                torch.cuda.set_rng_state(self.cuda_random, self.device)
            for options in self.autocast:
                stack.enter_context(torch.autocast(**options))
            yield


class _Context(Protocol):
    """What autograd hands from forward to backward, with what CheckpointFunction keeps there."""

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    count: int
    rng_and_autocast: RngAndAutocastState

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...


class CheckpointFunction(torch.autograd.Function):
    """Checkpointing by hand, to be read: keep the inputs, compute without recording, compute again with it.

    CheckpointFunction.apply(function, count, *tensors): the first `count` tensors are the inputs of `function`, the
    others the parameters that it uses, so that autograd knows of them. Inputs that are not used or need no gradient are
    allowed; `function` returns a tensor or a tuple of tensors. `run_recomputed` does the same by torch's own function,
    and stops as soon as it has what it needs; this one is its counterpart in tests.
    """

    @staticmethod
    def forward(
        ctx: _Context, function: Callable[..., Tensor | tuple[Tensor, ...]], count: int, *tensors: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        ctx.function, ctx.count = function, count
        ctx.rng_and_autocast = RngAndAutocastState(tensors[0].device)
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return function(*tensors[:count])

    @staticmethod
    def backward(ctx: _Context, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in saved[: ctx.count]]
        tensors = [*inputs, *saved[ctx.count :]]
        with torch.enable_grad(), ctx.rng_and_autocast.again():
            outputs = ctx.function(*inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        wanted = [x for x in tensors if x.requires_grad]
        given = [(y, g) for y, g in zip(outputs, output_gradients) if y.requires_grad]
        found = iter(
            torch.autograd.grad([y for y, _ in given], wanted, [g for _, g in given], allow_unused=True)
            if given
            else [None] * len(wanted)
        )
        return None, None, *(next(found) if x.requires_grad else None for x in tensors)
