"""Parts of a network that are not trained, until an epoch or for good: nothing in them changes by a bit.

Their parameters have no gradients, so that an optimizer passes them over, weight decay included, and their modules are
in evaluation mode: batch normalisation uses its running statistics and leaves them alone, dropout does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from utils.blocks import Block, State
from utils.evaluation_mode import evaluating


class Backbone(Protocol):
    """models' BaseVisionBackbone, see there."""

    in_channels: int
    image_size: tuple[int, ...]
    feature_channels: list[int]

    def blocks(self, x: Tensor, /) -> list[Block]: ...
    def new_layers(self) -> list[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@runtime_checkable
class Network(Protocol):
    """HybridMedNet's promise: a backbone of blocks (one more for each further kind of view), and a classifier."""

    @property
    def backbone(self) -> Backbone: ...
    @property
    def view_backbones(self) -> Iterable[Backbone]: ...
    @property
    def classifier(self) -> nn.Module: ...
    def children(self) -> Iterator[nn.Module]: ...


@dataclass(frozen=True)
class Part:
    """Modules, each as a whole, and parameters that are read without a call of the module that has them."""

    title: str
    modules: tuple[nn.Module, ...]
    own: tuple[nn.Parameter, ...] = ()

    def parameters(self) -> list[nn.Parameter]:
        """Each once."""
        inside = (parameter for module in self.modules for parameter in module.parameters())
        return list(dict.fromkeys([*self.own, *inside]))


def backbones_of(model: nn.Module, key: str) -> list[Backbone]:
    """One per kind of view. Raises ConfigError for a network that says of none which part it is; key: that needs it."""
    if not isinstance(model, Network):
        raise ConfigError(
            f"{key} needs a network that has a backbone of blocks, as HybridMedNet; {type(model).__name__} has none: "
            "set requires_grad of its parameters yourself"
        )
    return [model.backbone, *model.view_backbones]


def blocks_of(backbone: Backbone) -> list[Block]:
    """Its blocks, but for those of layers that published weights do not have."""
    added = {parameter for module in backbone.new_layers() for parameter in module.parameters()}
    blocks = _blocks(backbone)
    return [one for one in blocks if not (parameters := set(one.all_parameters())) or not parameters <= added]


def _blocks(backbone: Backbone) -> list[Block]:
    return backbone.blocks(_image(backbone))


def _image(backbone: Backbone) -> Tensor:
    return next(backbone.parameters()).new_zeros(1, backbone.in_channels, *backbone.image_size)


def frozen_part(model: nn.Module, freeze: str | int) -> Part:
    """What TRAIN.freeze names: 'backbone', 'linear_probe', 'level_2' (through the block that gives the second level of
    the pyramid), or so many blocks of the backbone, the first ones.

    Raises ConfigError where the network has fewer of them, or no such parts at all.
    """
    backbones = backbones_of(model, "TRAIN.freeze")
    if freeze == "linear_probe":
        assert isinstance(model, Network)
        return Part("all but the head", tuple(part for part in model.children() if part is not model.classifier))
    counts = [_count(backbone, freeze) for backbone in backbones]
    modules: list[nn.Module] = []
    own: list[nn.Parameter] = []
    for backbone, count in zip(backbones, counts):
        added = {module for layer in backbone.new_layers() for module in layer.modules()}
        for one in blocks_of(backbone)[:count]:
            modules += [module for module in one.modules if module not in added]
            own += one.parameters
    title = "the backbone" if freeze == "backbone" else f"the first {counts[0]} blocks of the backbone"
    return Part(title, tuple(dict.fromkeys(modules)), tuple(dict.fromkeys(own)))


def _count(backbone: Backbone, freeze: str | int) -> int:
    blocks = blocks_of(backbone)
    if freeze == "backbone":
        return len(blocks)
    if isinstance(freeze, int):
        if freeze > len(blocks):
            names = f"{blocks[0].name}, {blocks[1].name}, …, {blocks[-1].name}" if len(blocks) > 2 else blocks[0].name
            raise ConfigError(
                f"TRAIN.freeze {freeze}: the backbone has {len(blocks)} blocks ({names}): set a number up to that, or "
                "backbone"
            )
        return freeze
    level, levels = int(freeze.removeprefix("level_")), len(backbone.feature_channels)
    if len(blocks) == 1:
        raise ConfigError(
            f"TRAIN.freeze '{freeze}': '{blocks[0].name}' has no list of blocks here; freeze the whole backbone, or "
            "take one that list_backbones() names"
        )
    if level > levels:
        raise ConfigError(f"TRAIN.freeze '{freeze}': the backbone has {levels} levels: level_1 to level_{levels}")
    return min(_block_of_level(backbone, level) + 1, len(blocks))


def _block_of_level(backbone: Backbone, level: int) -> int:
    """The number of the block after which so many levels have left; found by a pass over an empty image."""
    assert isinstance(backbone, nn.Module)
    with evaluating(backbone), torch.no_grad():
        image = _image(backbone)
        state = State(image)
        for number, one in enumerate(backbone.blocks(image)):
            state = one.run(state)
            if len(state.levels) >= level:
                return number
    raise AssertionError("a backbone gives as many levels as it has channels for")


class Freezing:
    """A part of a network that is frozen before epoch `until`, counted from 0; None: for good.

    The parameters are in the optimizer all the same: it keeps nothing for them before their first gradient, and a
    checkpoint can be resumed with another setting.
    """

    def __init__(self, part: Part, until: int | None = None) -> None:
        self.part, self.until = part, until
        self.parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]

    def is_frozen(self, epoch: int) -> bool:
        """Whether it is in this epoch, counted from 0."""
        return self.until is None or epoch < self.until

    def apply(self, epoch: int) -> bool:
        """Make the network what it is in this epoch, after `model.train()`; whether parameters changed their state."""
        frozen = self.is_frozen(epoch)
        changed = any(parameter.requires_grad is frozen for parameter in self.parameters)
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)
        if frozen:
            for module in self.part.modules:
                module.eval()
        return changed

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, it is frozen as in the first epoch; afterwards, gradients are wanted again."""
        self.apply(0)
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)

    def __str__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.parameters)
        when = "" if self.until is None else f" until epoch {self.until + 1}"
        return f"{numbers:,} parameters of {self.part.title} are frozen{when}"
