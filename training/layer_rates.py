"""Learning rates of a backbone: a factor for all of it, and a decay from its last block to its first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from configs.errors import ConfigError
from training.freezing import backbones_of, blocks_of
from utils.blocks import Block

# Layers of different rates that the log does not list one by one.
_MANY = 4


def backbone_rate_factors(model: nn.Module, factor: float = 1.0, decay: float = 1.0) -> dict[nn.Parameter, float]:
    """factor · decay^(n − i) for the parameters of layer i = 0 … n − 1 of n; {} where all of that is 1.

    A layer is a block of the backbone; one without a matrix (a norm between blocks) belongs to the layer before it. So
    the last layer has decay^1 and the first, patches or stem, decay^n, as in BEiT (Bao et al. 2021, arXiv:2106.08254,
    `get_num_layer_for_vit`) and timm's `param_groups_layer_decay`, which has the last norm with the head. What follows
    the backbone, and layers that published weights do not have, have no factor. A parameter that several blocks read
    has the first one's.
    Raises ConfigError for a network without such a backbone.
    """
    if factor == 1 and decay == 1:
        return {}
    found: dict[nn.Parameter, float] = {}
    for backbone in backbones_of(model, "TRAIN.layer_decay and TRAIN.backbone_learning_rate_factor"):
        layers = _layers(blocks_of(backbone))
        if len(layers) == 1 and decay != 1:
            name = blocks_of(backbone)[0].name
            raise ConfigError(
                f"TRAIN.layer_decay {decay:g}: '{name}' has no list of blocks here; leave it 1, or take a backbone "
                "that list_backbones() names"
            )
        added = {parameter for module in backbone.new_layers() for parameter in module.parameters()}
        for number, layer in enumerate(layers):
            scale = factor * decay ** (len(layers) - number)
            found |= {p: scale for p in layer if p not in found and p not in added}
        rest = factor * decay ** len(layers)  # in no block: what is read before the first one
        found |= {p: rest for p in backbone.parameters() if p not in found and p not in added}
    return found


def _layers(blocks: Sequence[Block]) -> list[list[nn.Parameter]]:
    layers: list[list[nn.Parameter]] = []
    for one in blocks:
        parameters = list(one.all_parameters())
        if layers and all(parameter.ndim < 2 for parameter in parameters):
            layers[-1] += parameters
        elif parameters:
            layers.append(parameters)
    return layers


def describe_rates(groups: Sequence[Mapping[str, object]], peak: float) -> list[str]:
    """Per rate, the highest first: 'learning rate 1e-05 (0.1 of 0.0001): 3,371,024 parameters', those that are trained.
    Of many layers one line, with their highest and lowest rate.

    groups: of an optimizer, with `rate_factor`. peak: the schedule's.
    """
    counts: dict[float, int] = {}
    for group in groups:
        factor, parameters = group.get("rate_factor", 1.0), group["params"]
        assert isinstance(factor, float) and isinstance(parameters, list)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        counts[factor] = counts.get(factor, 0) + trained
    trained_at = {factor: count for factor, count in sorted(counts.items(), reverse=True) if count}
    layers = {factor: count for factor, count in trained_at.items() if factor < 1}
    if len(layers) < _MANY:
        layers = {}
    lines = []
    for factor, count in trained_at.items():
        of_peak = "" if factor == 1 else f" ({factor:.3g} of {peak:g})"
        lines += [] if factor in layers else [f"learning rate {factor * peak:.3g}{of_peak}: {count:,} parameters"]
    if layers:
        high, low, count = max(layers), min(layers), sum(layers.values())
        rates = f"{high * peak:.3g} to {low * peak:.3g} ({high:.3g} to {low:.3g} of {peak:g})"
        lines.append(f"learning rates {rates} in {len(layers)} layers: {count:,} parameters")
    return lines
