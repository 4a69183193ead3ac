"""Structured pruning: whole channels, and all that depends on them, are removed from a network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from configs.errors import CheckpointError, ModelError
from models.layers import conv_nd
from utils.evaluation_mode import evaluating

if TYPE_CHECKING:
    from torch_pruning import DependencyGraph

    from models.backbones.base import BaseVisionBackbone
    from models.hybrid_med_net import HybridMedNet

# One layer's channels that are taken out: [name of the layer, its outputs or its inputs, numbers of the channels].
# Any: lists out of a file, whose parts `remove_channels` converts.
Removed: TypeAlias = Sequence[list[Any]]
# As many at a time are taken, which arithmetic units like.
_MULTIPLE = 8
_ROOTS = (nn.Linear, nn.Conv2d, nn.Conv3d)


def prune_channels(model: HybridMedNet, amount: float) -> tuple[Removed, str]:
    """Take out the share `amount` of the channels of every layer of the backbone where that can be done.

    Least first, by the L2 norm of all weights that would go together (Fang et al. 2023, DepGraph, arXiv:2301.12900,
    whose package finds them). Left whole: what the backbone's levels share with FPN, attention, fusion and head, layers
    of attention with heads, and convolutions of groups.
    model: a HybridMedNet, changed in place. Returns (what `remove_channels` needs to do the same again, a line for the
    log). Raises ModelError where no channel can be taken out, or the network does not run afterwards.
    """
    import torch_pruning

    example = _example(model)
    with _traceable(model):
        before = torch_pruning.utils.count_ops_and_params(model, example)
        with _failing_as(ModelError, "TRAIN.pruning: channels of this network cannot be taken out one by one"):
            traced = _BackboneWithReaders(model.backbone)
            graph = torch_pruning.DependencyGraph().build_dependency(traced, example)
            _take_least(graph, amount, traced.left_whole())
            model(example)
        after = torch_pruning.utils.count_ops_and_params(model, example)
    removed = [[name, bool(outputs), [int(i) for i in numbers]] for name, outputs, numbers in graph.pruning_history()]
    if not removed:
        raise ModelError(
            "TRAIN.pruning: no layer of this network has channels that can be taken out, or amount is too small"
        )
    model.removed_channels = [*model.removed_channels, *removed]
    return removed, _change(before, after)


def remove_channels(model: HybridMedNet, removed: Removed) -> None:
    """Take those channels out of a network as it was built, so that weights of a pruned one fit.

    Raises CheckpointError where the list is not of this network.
    """
    if not removed:
        return
    import torch_pruning

    what = "removed_channels of this checkpoint are not of this network"
    with _traceable(model), _failing_as(CheckpointError, what):
        traced = _BackboneWithReaders(model.backbone)
        graph = torch_pruning.DependencyGraph().build_dependency(traced, _example(model))
        graph.load_pruning_history([(str(name), bool(out), [int(i) for i in which]) for name, out, which in removed])
        model(_example(model))
    model.removed_channels = [[str(name), bool(out), [int(i) for i in which]] for name, out, which in removed]


class _BackboneWithReaders(nn.Module):
    """What is traced: the backbone, and a convolution behind each level that stands for all that reads it."""

    def __init__(self, backbone: BaseVisionBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        device = next(backbone.parameters()).device
        readers = [conv_nd(backbone.spatial_dims, channels, 1, 1) for channels in backbone.feature_channels]
        self.readers = nn.ModuleList(readers).to(device)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [read(level) for read, level in zip(self.readers, self.backbone.forward_features(x), strict=True)]

    def left_whole(self) -> list[nn.Module]:
        """The readers, what a backbone has beside its body, and all that belongs to a module that has heads."""
        beside = [part for name, part in self.backbone.named_children() if name != "body"]
        headed = [module for module in self.backbone.modules() if hasattr(module, "num_heads")]
        return [module for part in (*self.readers, *beside, *headed) for module in part.modules()]


def _take_least(graph: DependencyGraph, amount: float, left_whole: Sequence[nn.Module]) -> None:
    """Prune each set of channels that depend on one another, unless it reaches a module that is to be left whole."""
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    norms, whole = GroupMagnitudeImportance(p=2), set(left_whole)
    for group in graph.get_all_groups(ignored_layers=list(left_whole), root_module_types=_ROOTS):
        modules = [dependency.target.module for dependency, _ in group]
        if any(module in whole or 1 < getattr(module, "groups", 1) < module.out_channels for module in modules):
            continue
        sizes = norms(group)
        count = int(amount * len(sizes)) // _MULTIPLE * _MULTIPLE if sizes is not None else 0
        if count:
            least = sorted(sizes.argsort(stable=True)[:count].tolist())
            # Not group.prune(least), which writes itself into the history twice.
            graph.get_pruning_group(modules[0], group[0].dep.handler, least).prune()


def _example(model: HybridMedNet) -> Tensor:
    device = next(model.parameters()).device
    return torch.zeros(2, model.in_channels, *model.image_size, device=device)


@contextmanager
def _failing_as(kind: type[Exception], what: str) -> Iterator[None]:
    """What the package raises where it does not understand a network, as an error of ours that says what."""
    try:
        yield
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        AssertionError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise kind(f"{what}: {reason}") from None


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """In eval mode, with gradients, whose graph is what the package reads; without its warnings and random numbers."""
    with evaluating(model), warnings.catch_warnings(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def _change(before: tuple[float, float], after: tuple[float, float]) -> str:
    millions = [f"{count / 1e6:.2f}" for count in (before[1], after[1])]
    operations = [f"{count / 2 / 1e9:.3f}" for count in (before[0], after[0])]  # of a batch of two
    return f"{' → '.join(millions)} M parameters, {' → '.join(operations)} G multiply-adds per image"
