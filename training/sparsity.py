"""Unstructured pruning: the smallest weights are zero, and stay so while the others are trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from configs.errors import ConfigError

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SparseWeights:
    """Which weights of a network are zero for good; `apply` after an optimizer step makes them so again.

    Nothing of it is saved: a checkpoint's zeros say all, and `take_from` finds them there.
    kept: name of a parameter → bool tensor of its shape, True where it may be other than zero.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        self.names = list(kept)
        self.pairs = [(parameters[name], mask.to(parameters[name].device)) for name, mask in kept.items()]

    @torch.no_grad()
    def apply(self) -> None:
        """Put the pruned weights back to zero."""
        for parameter, mask in self.pairs:
            parameter.mul_(mask)

    def take_from(self, model: nn.Module) -> None:
        """Prune the same parameters where this network's are zero; they are its own from now on."""
        parameters = dict(model.named_parameters())
        self.pairs = [(parameters[name], parameters[name].detach() != 0) for name in self.names]

    @property
    def fraction(self) -> float:
        """Of these weights, how many are pruned."""
        zeros = sum(int((~mask).sum()) for _, mask in self.pairs)
        return zeros / max(sum(mask.numel() for _, mask in self.pairs), 1)


@torch.no_grad()
def prune_smallest(model: nn.Module, amount: float, spared: Sequence[str] = ()) -> SparseWeights:
    """Zero the share `amount` of all weights of convolutions and linear layers, the smallest |w| of the whole network.

    Global magnitude pruning (Han et al. 2015, arXiv:1506.02626; global as in Blalock et al. 2020, arXiv:2003.03033).
    spared: beginnings of names of modules that are left whole, such as the head. Biases and norms are never pruned.
    Neither file nor network become smaller or faster by it: zeros compress well, and sparse kernels use them.
    Raises ConfigError where there is nothing to prune.
    """
    weights = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS) and not name.startswith(tuple(spared))
    }
    if not weights:
        raise ConfigError("TRAIN.pruning: this network has no convolutions or linear layers to prune")
    sizes = torch.cat([weight.abs().float().flatten() for weight in weights.values()])
    pruned = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    pruned[sizes.argsort(stable=True)[: round(amount * len(sizes))]] = True
    parts = pruned.split([weight.numel() for weight in weights.values()])
    kept = {name: ~part.view_as(weight) for (name, weight), part in zip(weights.items(), parts)}
    sparse = SparseWeights(model, kept)
    sparse.apply()
    return sparse
