"""How many bytes of activations a network saves for its backward pass: predicted without memory, or counted."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from utils.blocks import Block, State
from utils.gradient_checkpointing.plan import Storages, Trace
from utils.torch_private import (
    DispatchMode,
    FakeTensor,
    FakeTensorMode,
    StorageWeakRef,
    reparametrize_module,
    storage_pointer,
    tree_leaves,
)


def trace_blocks(
    model: nn.Module,
    blocks: Callable[[Tensor], list[Block]],
    shape: Sequence[int],
    autocast: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
) -> Trace:
    """What a training step with an input of `shape` [B, C, *spatial] would save, block by block.

    Runs on fake tensors: shapes, types and storages without values. Neither memory nor random numbers are used, and
    the model stays as it is. autocast: the type of mixed precision, None for float32. dtype: of the input, where it is
    not the default one.
    """
    device = next(itertools.chain(model.parameters(), model.buffers(), [torch.empty(0)])).device
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes, training_mode(model):
        x = torch.empty(tuple(shape), device=device, dtype=dtype)
        with reparametrized(model, fakes) as given, torch.enable_grad():
            context = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
            with context:
                return _Recorder([*given, x]).record(blocks(x), State(x))


@contextmanager
def reparametrized(model: nn.Module, fakes: FakeTensorMode) -> Iterator[list[Tensor]]:
    """Inside, the model's parameters and buffers are fake tensors, which are given."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    faked = {
        name: fakes.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad) for name, tensor in state.items()
    }
    with reparametrize_module(model, faked):
        yield list(faked.values())


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in training mode; after, each is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Recorder:
    """Runs blocks and notes what they save. Tensors are held until the end, so that no key is given twice."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        """given: parameters, buffers and the input, which are held in any case."""
        self.given = {storage_key(tensor) for tensor in given}
        self.alive: list[Tensor] = list(given)

    def record(self, blocks: list[Block], state: State) -> Trace:
        saved, states, flops = [], [self._storages(state.tensors())], []
        for step in blocks:
            packed: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(_keep_in(packed), lambda x: x), FlopCount() as counter:
                state = step.run(state)
            saved.append(self._storages(packed))
            states.append(self._storages(state.tensors()))
            flops.append(counter.total)
        # Whatever comes after the network, a loss for one, keeps its outputs.
        saved[-1] = {**saved[-1], **states[-1]}
        return Trace(tuple(step.name for step in blocks), tuple(saved), tuple(states), tuple(flops))

    def _storages(self, tensors: Sequence[Tensor]) -> Storages:
        self.alive.extend(tensors)
        sizes = {storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        return {key: size for key, size in sizes.items() if key not in self.given}


def _keep_in(packed: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    return pack


def storage_key(tensor: Tensor) -> int:
    """The same for all views of one memory, for as long as one of them lives."""
    return storage_pointer(tensor)


class FlopCount(DispatchMode):
    """Counts the operations of matrix products, convolutions and attention, by torch's own formulas."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


_recomputing = threading.local()


@contextmanager
def recomputation() -> Iterator[None]:
    """Inside, operations count as a repeated forward pass, in any state of the backward pass."""
    before = getattr(_recomputing, "now", False)
    _recomputing.now = True
    try:
        yield
    finally:
        _recomputing.now = before


def _counts_for_nothing(tensor: Tensor, ignored: set[int]) -> bool:
    return isinstance(tensor, FakeTensor) or storage_key(tensor) in ignored


class SavedActivations(DispatchMode):
    """Counts on the CPU what a training step really holds for its backward pass.

    with SavedActivations(model, x) as memory:
        loss = model(x).sum()
        memory.start_backward()
        loss.backward()
    memory.peak  # bytes

    Held is every storage made in the forward pass or in its recomputation that is alive while operations of the
    backward pass run. The input, gradients and what lives only within the forward pass do not count. It knows nothing
    of plans and hooks: it looks at which storages live. Recomputation is recognised by `recomputation`, or by gradients
    being recorded in it.
    """

    def __init__(self, model: nn.Module, *inputs: Tensor) -> None:
        super().__init__()
        self.ignored = {storage_key(t) for t in [*model.parameters(), *model.buffers(), *inputs]}
        self.created: dict[int, tuple[StorageWeakRef, int]] = {}
        self.in_backward = False
        self.peak = 0

    def start_backward(self) -> None:
        """From here on operations belong to the backward pass, unless they record gradients."""
        self.in_backward = True
        self._look()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        forward = not self.in_backward or torch.is_grad_enabled() or getattr(_recomputing, "now", False)
        if not forward:
            self._look()
        result = func(*args, **(kwargs or {}))
        if forward:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and not _counts_for_nothing(tensor, self.ignored):
                    storage = tensor.untyped_storage()
                    self.created[storage_key(tensor)] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def _look(self) -> None:
        self.created = {key: entry for key, entry in self.created.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.created.values()))
