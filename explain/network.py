"""What a network promises so that its outputs can be explained, and the map that a class is explained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from configs.errors import ExplanationError
from explain.alignment import Centres, PlacedFusion, Pyramid, level_centres
from explain.geometry import at_pixels
from utils.batch import Logits
from utils.evaluation_mode import evaluating

FUSED, AUTO = "fused", "auto"
# The last level but one, of stride 16 in most backbones, hits most on the phantom: docs/explanation.md has the figures.
AUTO_LEVEL: int | str = -2

Level = int | str


class Classifier(Protocol):
    """[B, C, *spatial] → logits [B, K], or (coarse logits, logits)."""

    def __call__(self, x: Tensor, /) -> Tensor | tuple[Tensor | None, Tensor]: ...


class TokenAttention(Protocol):
    """Self-attention of every token with every other: models' GlobalAttention, see there."""

    @property
    def weights(self) -> Sequence[Tensor]: ...

    @property
    def prefix(self) -> int: ...

    @property
    def grid(self) -> tuple[int, ...]: ...

    @property
    def stride(self) -> float: ...


class PyramidBackbone(Pyramid, Protocol):
    """What is asked of a backbone."""

    def global_attention(self, x: Tensor) -> TokenAttention | None: ...


class Fusion(Protocol):
    """target_level: whose size the fused map has."""

    target_level: int


@runtime_checkable
class PyramidModel(Classifier, Protocol):
    """HybridMedNet's promise: [B, C, *spatial] → levels → a fused map → logits, or (coarse logits, logits)."""

    @property
    def backbone(self) -> PyramidBackbone: ...

    @property
    def fusion(self) -> Fusion: ...

    @property
    def classifier(self) -> Classifier: ...

    def forward_features(self, x: Tensor) -> list[Tensor]: ...

    def forward_fused(self, features: list[Tensor]) -> Tensor: ...

    def forward_head(self, features: list[Tensor]) -> Tensor | tuple[Tensor | None, Tensor]: ...


def class_logits(model: Classifier, x: Tensor) -> Tensor:
    """[B, C, *spatial] → the logits [B, K] that maps are made for."""
    return Logits.of(model(x)).fine


def check_classes(classes: Sequence[int], count: int) -> list[int]:
    """The classes as a list; ExplanationError unless there is one, and each is from 0 to count − 1."""
    wrong = [k for k in classes if not 0 <= k < count]
    if wrong or not classes:
        raise ExplanationError(f"classes {list(classes)}: give one or more, each from 0 to {count - 1}")
    return list(classes)


@contextmanager
def explaining(model: object, gradients: bool = True) -> Iterator[None]:
    """Evaluation mode, and autograd on or off, regardless of the caller's modes, which are restored at the end."""
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        yield


def ordinary(x: Tensor) -> Tensor:
    """x without its history; a copy where it was made in inference mode, as autograd cannot use that."""
    return x.clone() if x.is_inference() else x.detach()


class Layer:
    """One map of the network for input x, from which the logits follow.

    activations: [B, C, *cells], without history. centres: the pixels its cells are centred on, per axis.
    Made and used inside `explaining`.
    """

    def __init__(self, model: PyramidModel, x: Tensor, level: Level) -> None:
        self.model, self.x = model, ordinary(x)
        with torch.no_grad():
            self._features = model.forward_features(self.x)
            self.level = resolve_level(level, len(self._features))
            fused = model.forward_fused(self._features) if self.level == FUSED else None
        self.activations = self._features[int(self.level)] if fused is None else fused
        centres = level_centres(model.backbone, self._features, self.x.shape[2:])
        self.centres: Centres = centres[model.fusion.target_level if fused is not None else int(self.level)]
        if fused is not None and isinstance(model.fusion, PlacedFusion):
            self.centres = model.fusion.centres(centres)

    def logits(self, activations: Tensor) -> Tensor:
        """The logits [B, K] that follow from this map, the other levels staying as they are."""
        if self.level == FUSED:
            return Logits.of(self.model.classifier(activations)).fine
        features = list(self._features)
        features[int(self.level)] = activations
        return Logits.of(self.model.forward_head(features)).fine

    def gradients(self, classes: Sequence[int]) -> Iterator[Tensor]:
        """d logit_k / d activations, [B, C, *cells], for each class k; one forward pass for all of them."""
        leaf = self.activations.detach().requires_grad_()
        logits = self.logits(leaf)
        # In evaluation mode no image sees another, so that the gradient of the sum is each image's own.
        for k in check_classes(classes, logits.shape[1]):
            # retain_graph each time: the caller may stop early, and the graph goes with the iterator.
            (gradient,) = torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
            yield gradient

    def to_pixels(self, maps: Tensor) -> Tensor:
        """[..., *cells] → [..., *spatial of x]."""
        return at_pixels(maps, self.x.shape[2:], self.centres)


def resolve_level(level: Level, count: int) -> Level:
    """An index from 0, or 'fused'; 'auto' is AUTO_LEVEL. Negative indices count from the coarsest level.

    Raises ExplanationError for a level that is not there.
    """
    level = AUTO_LEVEL if level == AUTO else level
    if level == FUSED:
        return FUSED
    if isinstance(level, int) and -count <= level < count:
        return level % count
    raise ExplanationError(f"unknown level {level!r}: 0 (finest) to {count - 1} (coarsest), {FUSED} or {AUTO}")
