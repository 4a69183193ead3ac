"""Gradient checkpointing for networks that are not ours: a chain of their modules is recomputed, by hooks.

The network's own forward pass is unchanged. Between the call of a run's first module and the return of its last
one nothing that autograd saves is kept; when the first of it is asked for, the modules of the run are called again, one
after another, from the run's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from configs.errors import ModelError
from utils.gradient_checkpointing.activation_memory import FlopCount, reparametrized, storage_key
from utils.gradient_checkpointing.plan import Plan, Storages, Trace, choose_plan
from utils.gradient_checkpointing.recomputation import RngAndAutocastState, untouched_statistics
from utils.torch_private import BatchNorm, FakeTensorMode, tensor_version, tree_leaves, tree_map_only

_ATTRIBUTE = "_chain_checkpointing"


def checkpoint_chain(model: nn.Module, segments: int | None) -> None:
    """Arrange for `model` to find, plan and recompute its chain of blocks, from its next forward pass in training."""
    remove_gradient_checkpointing(model)
    candidates = dict(_candidates(model))
    if len(candidates) < 2:
        raise ModelError(
            f"{type(model).__name__} has no sequence of blocks: no nn.Sequential or nn.ModuleList with two modules"
        )
    if segments is not None and not 1 <= segments <= len(candidates):
        raise ModelError(
            f"{segments} segments asked for, but {type(model).__name__} has {len(candidates)} blocks at most"
        )
    object.__setattr__(model, _ATTRIBUTE, _Chain(model, list(candidates), segments))


def remove_gradient_checkpointing(model: nn.Module) -> nn.Module:
    """Undo `apply_gradient_checkpointing` on a network that is not ours; no matter if it never was. Returns it."""
    chain = model.__dict__.pop(_ATTRIBUTE, None)
    if chain is not None:
        chain.detach()
    return model


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Members of sequences that are no sequences themselves, by their name in the model."""
    containers = (nn.Sequential, nn.ModuleList)
    for name, module in model.named_modules():
        if isinstance(module, containers):
            for key, child in module.named_children():
                if not isinstance(child, containers):
                    yield f"{name}.{key}".lstrip("."), child


class _Chain:
    """What a network remembers of its checkpointing: the hooks, and the plan once there is one."""

    def __init__(self, model: nn.Module, candidates: list[str], segments: int | None) -> None:
        self.candidates, self.segments = candidates, segments
        self.plan: Plan | None = None
        self.blocks: list[nn.Module] = []
        self.open: _Run | None = None
        self.quiet = False  # hooks do nothing: while planning and while recomputing
        self.handles = [
            model.register_forward_pre_hook(self.before_model, with_kwargs=True),
            model.register_forward_hook(self.after_model, always_call=True),
        ]

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()

    def before_model(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.quiet or self.plan is not None or not (model.training and torch.is_grad_enabled()):
            return
        self.quiet = True
        try:
            names, trace = _Recording(model, self.candidates).run(args, kwargs)
        finally:
            self.quiet = False
        self.plan = choose_plan(trace, self.segments)
        self.blocks = [model.get_submodule(name) for name in names]
        for i, module in enumerate(self.blocks):
            self.handles.append(module.register_forward_pre_hook(_BlockHook(self, i, model).before))
            self.handles.append(module.register_forward_hook(_BlockHook(self, i, model).after))

    def after_model(self, model: nn.Module, args: tuple, output: object) -> None:
        """Also called after an error in the forward pass, which may have left a run open."""
        if self.open is not None and not self.quiet:
            run, self.open = self.open, None
            run.close()


class _BlockHook:
    """What happens before and after block i of the chain."""

    def __init__(self, chain: _Chain, i: int, model: nn.Module) -> None:
        self.chain, self.i, self.model = chain, i, model

    def before(self, module: nn.Module, args: tuple) -> None:
        chain = self.chain
        if chain.quiet or not (self.model.training and torch.is_grad_enabled()):
            return
        assert chain.plan is not None
        if chain.open is not None:
            chain.open.must_follow(args[0])
        ends = dict(chain.plan.runs)
        if self.i in ends:
            chain.open = _Run(chain, chain.blocks[self.i : ends[self.i]], args[0])

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        chain = self.chain
        if chain.quiet or chain.open is None:
            return
        chain.open.last = output
        if module is chain.open.modules[-1]:
            run, chain.open = chain.open, None
            run.close()


class _Run:
    """A stretch of the forward pass whose saved tensors are not kept; afterwards, their recomputation.

    Tensors are known by the order in which they are saved, which is the same both times. Parameters and the input of
    the run are kept as they are.
    """

    def __init__(self, chain: _Chain, modules: list[nn.Module], x: Tensor) -> None:
        self.chain, self.modules, self.input, self.last = chain, modules, x, x
        self.version = tensor_version(x)
        self.rng_and_autocast = RngAndAutocastState(x.device)
        parts = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        self.kept = {storage_key(t) for t in (*parts, x)}
        self.count = 0
        self.values: dict[int, Tensor] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self.hooks.__enter__()

    def must_follow(self, x: Tensor) -> None:
        if x is not self.last:
            raise ModelError(
                "gradient checkpointing: the network calls its blocks in another way than when they were planned; "
                "remove_gradient_checkpointing(model) goes back"
            )

    def close(self) -> None:
        self.hooks.__exit__(None, None, None)
        del self.hooks, self.last  # they refer to this run and to its output, which must not outlive its use
        if tensor_version(self.input) != self.version:
            raise ModelError(
                f"gradient checkpointing: {type(self.modules[0]).__name__} changes its input in place, from which it "
                "would be recomputed: build it with inplace=False, or choose another number of segments"
            )

    def _pack(self, tensor: Tensor) -> Tensor | int:
        if storage_key(tensor) in self.kept:
            return tensor
        self.count += 1
        return self.count - 1

    def _unpack(self, packed: Tensor | int) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if packed not in self.values:
            self._recompute()
        return self.values.pop(packed)

    def _recompute(self) -> None:
        """Call the run's modules again and note what they save, in order."""
        norms = [m for module in self.modules for m in module.modules() if isinstance(m, BatchNorm)]
        x = self.input.detach().requires_grad_(self.input.requires_grad)
        self.values.clear()
        number = iter(range(self.count))

        def pack(tensor: Tensor) -> Tensor:
            if storage_key(tensor) in self.kept:
                return tensor
            # Detached: an operation that held its own result, with its history, would never be freed.
            self.values[next(number)] = tensor = tensor.detach()
            return tensor

        self.chain.quiet = True
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                stack.enter_context(self.rng_and_autocast.again())
                stack.enter_context(untouched_statistics(norms))
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
                for module in self.modules:
                    x = module(x)
        finally:
            self.chain.quiet = False


class _Recording:
    """One forward pass on fake tensors: which candidates are called in a chain, and what each of them saves."""

    def __init__(self, model: nn.Module, candidates: list[str]) -> None:
        self.model = model
        self.modules = {model.get_submodule(name): name for name in candidates}
        self.chains: list[_Links] = []
        self.depth = 0
        self.alive: list[Tensor] = []
        self.given: set[int] = set()
        self.stack = ExitStack()  # what is open while a module of the chain runs

    def run(self, args: tuple, kwargs: dict) -> tuple[list[str], Trace]:
        """Names of the chain's modules and their trace; ModelError where there is no chain."""
        handles = []
        for module in self.modules:
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._after))
        try:
            self._run_on_fakes(args, kwargs)
        finally:
            for handle in handles:
                handle.remove()
        chains = [chain for chain in self.chains if len(chain.names) > 1]
        if not chains:
            raise ModelError(
                f"{type(self.model).__name__} cannot be checkpointed: no two modules of its sequences are called one "
                "after another, with one tensor in and one out"
            )
        if any(len(set(chain.names)) < len(chain.names) for chain in chains):
            raise ModelError(f"{type(self.model).__name__} cannot be checkpointed: it calls one module several times")
        longest = max(chains, key=lambda chain: sum(sum(saved.values()) for saved in chain.saved))
        return longest.names, longest.trace()

    def _run_on_fakes(self, args: tuple, kwargs: dict) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True) as fakes, reparametrized(self.model, fakes) as tensors:
            given = tree_map_only(Tensor, fakes.from_tensor, (args, kwargs))
            leaves = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
            self.given = {storage_key(x) for x in (*tensors, *leaves)}
            self.alive += [*tensors, *leaves]
            try:
                self.model(*given[0], **given[1])
            except ModelError:
                raise
            except Exception as error:  # a foreign forward pass may raise any type where values are missing
                raise ModelError(
                    f"{type(self.model).__name__} cannot be planned without running it: {str(error)[:200]}"
                ) from error
            finally:
                self.stack.close()  # a module that raised has left it open

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        x = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
        if x is None or not self.chains or self.chains[-1].end is not x:
            self.chains.append(_Links([], [], [{} if x is None else self._storages([x])], []))
        self.packed: list[Tensor] = []
        self.stack = ExitStack()
        self.stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor))
        self.flops = self.stack.enter_context(FlopCount())
        self.takes_one = x is not None

    def _after(self, module: nn.Module, args: tuple, output: object) -> None:
        self.depth -= 1
        if self.depth:
            return
        self.stack.close()
        chain = self.chains[-1]
        if not (self.takes_one and isinstance(output, Tensor)):
            self.chains.append(_Links([], [], [{}], []))
            return
        chain.add(self.modules[module], self._storages(self.packed), self._storages([output]), self.flops.total)
        chain.end = output

    def _pack(self, tensor: Tensor) -> Tensor:
        self.packed.append(tensor)
        return tensor

    def _storages(self, tensors: list[Tensor]) -> Storages:
        self.alive += tensors
        sizes = {storage_key(t): t.untyped_storage().nbytes() for t in tensors}
        return {key: size for key, size in sizes.items() if key not in self.given}


class _Links:
    """Modules called one after another."""

    def __init__(self, names: list[str], saved: list[Storages], states: list[Storages], flops: list[int]) -> None:
        self.names, self.saved, self.states, self.flops = names, saved, states, flops
        self.end: Tensor | None = None

    def add(self, name: str, saved: Storages, state: Storages, flops: int) -> None:
        self.names.append(name)
        self.saved.append(saved)
        self.states.append(state)
        self.flops.append(flops)

    def trace(self) -> Trace:
        return Trace(tuple(self.names), tuple(self.saved), tuple(self.states), tuple(self.flops))
