"""Backbones by name: `list_backbones()` says which, `create_backbone(name)` builds one or refuses."""

from __future__ import annotations

import difflib

from configs.errors import ModelError
from models.backbones.base import BaseVisionBackbone
from models.backbones.timm_backbones import TIMM_BACKBONES, TimmBackbone
from models.backbones.weights import read_backbone_weights

__all__ = ["BaseVisionBackbone", "check_backbone", "create_backbone", "list_backbones"]


def list_backbones() -> list[str]:
    """All names that `create_backbone` takes, sorted."""
    return sorted(TIMM_BACKBONES)


def create_backbone(
    name: str,
    pretrained: bool | str = False,
    in_channels: int = 3,
    feature_dim: int | None = None,
    drop_path: float = 0.0,
    image_size: tuple[int, int] = (224, 224),
) -> BaseVisionBackbone:
    """Build a backbone.

    pretrained: True for the published weights, False for random ones, or the path of a local file.
    feature_dim: length of the vector that `forward` gives; None: the channels of the coarsest level.
    Raises ModelError for an unknown name and for weights that cannot be had or do not fit.
    """
    check_backbone(name)
    spec = TIMM_BACKBONES[name]
    weights = read_backbone_weights(pretrained) if isinstance(pretrained, str) else pretrained
    return TimmBackbone(name, spec, weights, in_channels, feature_dim, drop_path, image_size)


def check_backbone(name: str) -> None:
    """ModelError with the nearest name if there is no backbone of this one."""
    names = list_backbones()
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names)}."
    raise ModelError(f"unknown backbone '{name}': {hint} list_backbones() names all {len(names)}")
