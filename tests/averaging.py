"""Backbones that blur, whose receptive fields can be seen."""

from typing import TypeVar

from torch import nn

from utils.torch_private import BatchNorm

Network = TypeVar("Network", bound=nn.Module)


def averaging(backbone: Network) -> Network:
    """Every convolution a mean, every norm the identity: what a cell sees is then all of its receptive field."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.fill_(1 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.data.zero_()
        if isinstance(module, BatchNorm):
            module.weight.data.fill_(1)
            module.running_mean.zero_()
    return backbone.eval()
