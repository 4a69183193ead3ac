"""Gradient checkpointing: runs of blocks are recomputed in the backward pass instead of kept in memory.

Loss, gradients and buffers are those of the plain step, bit for bit: random states and autocast are restored for the
recomputation, and running statistics are not touched by it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from configs.default_config import GradientCheckpointing
from configs.errors import ModelError
from utils.blocks import Block, State, block, run_plainly
from utils.gradient_checkpointing.activation_memory import SavedActivations, trace_blocks
from utils.gradient_checkpointing.chain import checkpoint_chain, remove_gradient_checkpointing
from utils.gradient_checkpointing.plan import Plan, choose_plan
from utils.gradient_checkpointing.recomputation import CheckpointFunction, run_recomputed
from utils.torch_private import tree_leaves

__all__ = [
    "CheckpointFunction",
    "Checkpointable",
    "CheckpointedSequential",
    "apply_gradient_checkpointing",
    "checkpoint_sequential",
    "checkpointing_options",
    "estimate_memory_savings",
    "remove_gradient_checkpointing",
    "run_recomputed",
]

# Images in the batch that a plan is made for by default: two, since batch normalisation needs them.
PLANNED_BATCH = 2


class CheckpointingOptions(TypedDict):
    """See `Checkpointable.enable_gradient_checkpointing`."""

    segments: int | None
    fraction: float
    memory_budget_gb: float | None


def checkpointing_options(settings: GradientCheckpointing) -> CheckpointingOptions:
    """The settings as arguments of `enable_gradient_checkpointing`."""
    return {
        "segments": None if settings.segments == "auto" else settings.segments,
        "fraction": settings.fraction,
        "memory_budget_gb": settings.memory_budget_gb,
    }


class Checkpointable:
    """Mix-in for an nn.Module that is a flat list of blocks: any run of them can be recomputed instead of kept.

    A subclass has `blocks(x)`, and the attributes in_channels and image_size, for which plans are made.
    """

    in_channels: int
    image_size: tuple[int, ...]
    _plan: Plan | None = None

    def blocks(self, x: Tensor) -> list[Block]:
        """The network for input x: State(x) in, its outputs out. The number of blocks does not depend on x."""
        raise NotImplementedError

    def enable_gradient_checkpointing(
        self,
        segments: int | None = None,
        fraction: float = 1.0,
        memory_budget_gb: float | None = None,
        batch_size: int = PLANNED_BATCH,
        autocast: torch.dtype | None = None,
    ) -> Plan:
        """Recompute activations from the next training step on; returns what was chosen and is expected.

        segments: into how many runs the blocks are cut, by bytes; the last run is kept, so 1 recomputes nothing.
            None: the cheapest within the budget, or has the lowest peak without one.
        fraction: at most this share of the blocks is recomputed, from the first on: less time, less saving.
        memory_budget_gb: 1e9 bytes that activations saved for the backward pass may take for a micro-batch of
            `batch_size` with mixed precision `autocast` (None: float32).
        Raises ModelError for more segments than blocks, and for a budget that cannot be met.
        """
        assert isinstance(self, nn.Module)
        shape = (batch_size, self.in_channels, *self.image_size)
        budget = None if memory_budget_gb is None else memory_budget_gb * 1e9
        trace = trace_blocks(self, self.blocks, shape, autocast)
        if len(trace) == 1:
            raise ModelError(
                f"{type(self).__name__} '{trace.names[0]}' cannot be recomputed: its family has no list of blocks "
                "here; take a backbone that list_backbones() names, or set gradient_checkpointing.enabled to false"
            )
        self._plan = choose_plan(trace, segments, fraction, budget)
        return self._plan

    def disable_gradient_checkpointing(self) -> None:
        """Keep all activations from the next training step on."""
        self._plan = None

    def is_gradient_checkpointing_enabled(self) -> bool:
        """True only if training really recomputes something."""
        plan = self.checkpointing_plan()
        return plan is not None and bool(plan.runs)

    def checkpointing_plan(self) -> Plan | None:
        """The active plan, None where none was requested."""
        return self._plan

    def recomputes(self) -> bool:
        """Whether a forward pass now would be checkpointed: enabled, in training and with gradients."""
        training = getattr(self, "training", False)
        return training and torch.is_grad_enabled() and self.is_gradient_checkpointing_enabled()

    def run_blocks(self, blocks: Sequence[Block], x: Tensor) -> State:
        """All of its blocks on x, recomputed by the plan where there is one to follow.

        blocks: as `blocks` gives them, so that a subclass may bind what they need beside x.
        """
        plan = self.checkpointing_plan()
        if plan is None or not self.recomputes():
            return run_plainly(blocks, State(x))
        return run_recomputed(blocks, State(x), plan.runs)


def checkpoint_sequential(
    functions: nn.Sequential | Sequence[Callable[[Tensor], Tensor]],
    segments: int,
    input: Tensor,
    preserve_rng_state: bool = True,
) -> Tensor:
    """functions[-1](… functions[0](input)), in `segments` runs of equal length; all but the last are recomputed.

    preserve_rng_state: False where nothing draws random numbers, which saves a little time.
    Raises ModelError for more segments than functions.
    """
    functions = list(functions)
    if not 1 <= segments <= len(functions):
        raise ModelError(
            f"checkpoint_sequential: {segments} segments asked for, but there are {len(functions)} functions to cut "
            f"between: 1 to {len(functions)}"
        )
    blocks = [block(str(i), function) for i, function in enumerate(functions)]
    if not torch.is_grad_enabled():
        return run_plainly(blocks, State(input)).current()
    cuts = [len(functions) * i // segments for i in range(segments)]
    return run_recomputed(blocks, State(input), list(itertools.pairwise(cuts)), preserve_rng_state).current()


class CheckpointedSequential(nn.Sequential):
    """An nn.Sequential that recomputes activations in training. Names in its state_dict are nn.Sequential's.

    segments: into how many runs it is cut, by the bytes that its modules save for the first input in training; the last
    run is kept. None: the plan of the lowest peak. Raises ModelError for more segments than modules.
    """

    def __init__(self, *modules: nn.Module, segments: int | None = None) -> None:
        super().__init__(*modules)
        if segments is not None and not 1 <= segments <= len(self):
            raise ModelError(f"CheckpointedSequential: {segments} segments of {len(self)} modules: 1 to {len(self)}")
        self.segments = segments
        self._plan: Plan | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        if self._plan is None or self._plan.blocks != len(self):
            self._plan = choose_plan(trace_blocks(self, self._blocks, input.shape, dtype=input.dtype), self.segments)
        return run_recomputed(self._blocks(input), State(input), self._plan.runs).current()

    def _blocks(self, x: Tensor) -> list[Block]:
        return [block(name, module) for name, module in self.named_children()]


def apply_gradient_checkpointing(model: nn.Module, segments: int | None = None) -> nn.Module:
    """Make any network that has a sequence of blocks inside recompute its activations; returns the same network.

    Ours know how. In others the longest chain is looked for of modules in an nn.Sequential or nn.ModuleList that the
    network's own forward pass calls one after another, each with the last one's output: when it is first trained, on
    tensors without values. Methods and names of parameters stay; `remove_gradient_checkpointing` undoes it.

    Raises ModelError where there is no such chain, or fewer blocks than segments; in the first forward pass in training
    where it only shows then.
    """
    if isinstance(model, Checkpointable):
        model.enable_gradient_checkpointing(segments)
    else:
        checkpoint_chain(model, segments)
    return model


def estimate_memory_savings(
    model: nn.Module,
    input_shape: Sequence[int],
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    segments: int | None = None,
) -> dict[str, float]:
    """What checkpointing would save, measured by two training steps of a copy of the model in float32.

    input_shape: (C, *spatial). Returns without_checkpoint, with_checkpoint and savings in MB of 1e6 bytes, and
    savings_percent. On a CPU: the peak of activations saved for the backward pass; on CUDA: the peak of all memory
    that a step takes beside weights, gradients among it. The model is not changed.
    """
    device = torch.device(device)
    copied = remove_gradient_checkpointing(copy.deepcopy(model)).to(device).train()
    if isinstance(copied, Checkpointable):
        copied.disable_gradient_checkpointing()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        x = torch.randn(batch_size, *input_shape, device=device)
        plain = _step_bytes(copied, x) / 1e6
        recomputed = _step_bytes(apply_gradient_checkpointing(copied, segments), x) / 1e6
    return {
        "without_checkpoint": plain,
        "with_checkpoint": recomputed,
        "savings": plain - recomputed,
        "savings_percent": 100 * (plain - recomputed) / plain if plain else 0.0,
    }


def _step_bytes(model: nn.Module, x: Tensor) -> int:
    """Peak bytes of one training step; its gradients are dropped again."""
    try:
        if x.device.type != "cuda":
            with SavedActivations(model, x) as memory:
                loss = _sum_of(model(x))
                memory.start_backward()
                loss.backward()
            return memory.peak
        torch.cuda.synchronize(x.device)
        before = torch.cuda.memory_allocated(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        _sum_of(model(x)).backward()
        return torch.cuda.max_memory_allocated(x.device) - before
    finally:
        model.zero_grad(set_to_none=True)


def _sum_of(outputs: object) -> Tensor:
    """Of all tensors in a model's outputs."""
    leaves = tree_leaves(outputs)
    return torch.stack([y.float().sum() for y in leaves if isinstance(y, Tensor)]).sum()
