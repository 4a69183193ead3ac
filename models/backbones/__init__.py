"""Backbones by name: `list_backbones()` says which, `create_backbone(name)` builds one or refuses."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from configs.errors import ModelError
from models.backbones.base import BaseVisionBackbone as BaseVisionBackbone
from models.backbones.base import check_size
from models.backbones.convnext3d import CONVNEXT3D_VARIANTS, ConvNeXt3D
from models.backbones.named import *  # noqa: F403
from models.backbones.sizes import refuse_unfit_size
from models.backbones.swin3d import SWIN3D_VARIANTS, SwinTransformer3D
from models.backbones.timm_backbones import ANY, TIMM_BACKBONES, TimmBackbone, timm_spec
from models.backbones.vision_mamba import VIM_VARIANTS, VisionMamba
from models.backbones.weights import given_weights

# Backbones that are not timm's: the class, and its first argument. The others are those of TimmBackbone.
OWN_BACKBONES: dict[str, tuple[type[SwinTransformer3D | VisionMamba | ConvNeXt3D], str]] = {
    **{f"swin3d_{variant}": (SwinTransformer3D, variant) for variant in SWIN3D_VARIANTS},
    **{f"vim_{variant}": (VisionMamba, variant) for variant in VIM_VARIANTS},
    **{f"convnext3d_{variant}": (ConvNeXt3D, variant) for variant in CONVNEXT3D_VARIANTS},
}


def list_backbones() -> list[str]:
    """All names that `create_backbone` takes, sorted; besides these it takes timm/<any name of timm's>."""
    return sorted([*TIMM_BACKBONES, *OWN_BACKBONES])


def create_backbone(
    name: str,
    pretrained: bool | str = False,
    in_channels: int = 3,
    feature_dim: int | None = None,
    drop_path: float = 0.0,
    image_size: tuple[int, ...] | None = None,
) -> BaseVisionBackbone:
    """Build a backbone.

    pretrained: True for the published weights, False for random ones, or the path of a local file.
    feature_dim: length of the vector that `forward` gives; None: the channels of the coarsest level.
    image_size: (height, width) or (depth, height, width); None: 224 × 224, or 64 × 64 × 64 for volumes.
    Raises ModelError for an unknown name and for weights that are not available or do not fit.
    """
    check_backbone(name, image_size)
    size = {} if image_size is None else {"image_size": tuple(image_size)}
    return _maker(name)(given_weights(pretrained), in_channels, feature_dim, drop_path, **size)


def _maker(name: str) -> Callable[..., BaseVisionBackbone]:
    """The class with its first arguments."""
    spec = timm_spec(name)
    if spec is not None:
        return partial(TimmBackbone, name, spec)
    family, variant = OWN_BACKBONES[name]
    return partial(family, variant)


def backbone_dims(name: str) -> int:
    """2 for a backbone for images, 3 for one for volumes, without building it. ModelError for an unknown name."""
    check_backbone(name)
    return OWN_BACKBONES[name][0].spatial_dims if name in OWN_BACKBONES else TimmBackbone.spatial_dims


def check_backbone(name: str, image_size: tuple[int, ...] | None = None) -> None:
    """ModelError with the nearest name if there is no backbone of this one, or where it does not take such a size."""
    names = list_backbones()
    if name in names or timm_spec(name) is not None:
        if image_size is not None:
            size = check_size(name, backbone_dims(name), image_size)
            refuse_unfit_size(name, size, lambda size: _maker(name)(False, image_size=size))
        return
    if name.startswith(ANY):
        close, names = _nearest_in_timm(name), ["timm.list_models() names all of timm's"]
    else:
        close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names)}."
    raise ModelError(f"unknown backbone '{name}': {hint} list_backbones() names all {len(list_backbones())}")


def _nearest_in_timm(name: str) -> list[str]:
    import timm

    return [ANY + close for close in difflib.get_close_matches(name.removeprefix(ANY), timm.list_models(), n=1)]
