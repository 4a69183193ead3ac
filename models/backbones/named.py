"""Backbones as classes, for those who use one alone: `ResNetBackbone(50)(images)` → [B, feature_dim].

Each is the very network that `create_backbone` builds under its name in the registry: the same tensors, levels,
blocks for gradient checkpointing, and weights. Arguments of all of them:

variant: the network's name in `list_backbones()` without the family's: 50 or '50' of resnet50, 'tiny' of swin_tiny,
    'b0' of efficientnet_b0, 'v3_small' of mobilenetv3_small, 'v2_tiny' of convnextv2_tiny. The whole name will do too.
pretrained: True for the published weights, False for random ones, or the path of a local file.
in_channels: of the images or volumes.
feature_dim: length of the vector that `forward` gives; None: the channels of the coarsest level.
image_size: one number, or (height, width) or (depth, height, width); None: 224, or 64 for volumes. Swin, ViT and MaxViT
    are tied to it, others take any size.
All raise ModelError for an unknown variant and for weights that are not available or do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from configs.errors import ModelError
from models.backbones.base import check_size
from models.backbones.sizes import refuse_unfit_size
from models.backbones.swin3d import SwinTransformer3D
from models.backbones.timm_backbones import TIMM_BACKBONES, TimmBackbone
from models.backbones.vision_mamba import VisionMamba
from models.backbones.weights import given_weights

# `models` and `models.backbones` have them all from here, without naming them again.
__all__ = [
    "ConvNeXtBackbone",
    "DenseNetBackbone",
    "EfficientNetBackbone",
    "EfficientNetV2Backbone",
    "MaxViTBackbone",
    "MobileNetBackbone",
    "RegNetBackbone",
    "ResNetBackbone",
    "SwinTransformer2DBackbone",
    "SwinTransformer3DBackbone",
    "ViTBackbone",
    "VisionMambaBackbone",
]

Size = int | Sequence[int] | None


def named_size(name: str, spatial_dims: int, image_size: Size, default: int) -> tuple[int, ...]:
    """One length for every axis; a number stands for all of them. ModelError where there are too few or too many."""
    size = default if image_size is None else image_size
    return check_size(name, spatial_dims, (size,) * spatial_dims if isinstance(size, int) else size)


class TimmFamily(TimmBackbone):
    """A family of timm's: subclasses say which. [B, in_channels, H, W] → [B, feature_dim].

    families: how the registry's names begin → what stands for that in a variant.
    """

    families: ClassVar[Mapping[str, str]] = {}
    default: ClassVar[str]

    def __init__(
        self,
        variant: str | int | None = None,
        pretrained: bool | str = False,
        in_channels: int = 3,
        feature_dim: int | None = None,
        image_size: Size = None,
    ) -> None:
        name = self._registered(self.default if variant is None else str(variant))
        height, width = named_size(name, self.spatial_dims, image_size, 224)
        spec, weights = TIMM_BACKBONES[name], given_weights(pretrained)
        refuse_unfit_size(name, (height, width), lambda size: TimmBackbone(name, spec, image_size=(size[0], size[1])))
        super().__init__(name, spec, weights, in_channels, feature_dim, image_size=(height, width))

    @classmethod
    def variants(cls) -> dict[str, str]:
        """What `variant` may be → the registry's name."""
        return {
            short + name.removeprefix(begin): name
            for begin, short in cls.families.items()
            for name in TIMM_BACKBONES
            if name.startswith(begin)
        }

    @classmethod
    def _registered(cls, variant: str) -> str:
        variants = cls.variants()
        if variant in variants.values():
            return variant
        if variant not in variants:
            raise ModelError(f"unknown variant '{variant}' of {cls.__name__}: one of {', '.join(variants)}")
        return variants[variant]


class ResNetBackbone(TimmFamily):
    """18, 34, 50 (the default), 101."""

    families: ClassVar = {"resnet": ""}
    default = "50"


class MobileNetBackbone(TimmFamily):
    """'v2', 'v3_small', 'v3_large' (the default)."""

    families: ClassVar = {"mobilenet": ""}
    default = "v3_large"


class EfficientNetBackbone(TimmFamily):
    """'b0' (the default), 'b1', 'b2', 'lite0'."""

    families: ClassVar = {"efficientnet_": "", "tf_efficientnet_": ""}
    default = "b0"


class EfficientNetV2Backbone(TimmFamily):
    """'s' (the default), 'm', 'l'."""

    families: ClassVar = {"efficientnetv2_": ""}
    default = "s"


class ConvNeXtBackbone(TimmFamily):
    """'tiny' (the default), 'small', 'base', 'large', 'v2_tiny', 'v2_base'."""

    families: ClassVar = {"convnext_": "", "convnextv2_": "v2_"}
    default = "tiny"


class RegNetBackbone(TimmFamily):
    """RegNetY by its billions of operations times ten: '004', '008', '016' (the default), '032', '080', '160'."""

    families: ClassVar = {"regnety_": ""}
    default = "016"


class DenseNetBackbone(TimmFamily):
    """121 (the default), 169, 201."""

    families: ClassVar = {"densenet": ""}
    default = "121"


class MaxViTBackbone(TimmFamily):
    """'tiny'."""

    families: ClassVar = {"maxvit_": ""}
    default = "tiny"


class ViTBackbone(TimmFamily):
    """'tiny', 'small', 'base' (the default) with patches of 16; 'dinov2_small', 'dinov2_base' with patches of 14."""

    families: ClassVar = {"vit_": "", "dinov2_": "dinov2_"}
    default = "base"


class SwinTransformer2DBackbone(TimmFamily):
    """'tiny' (the default), 'small', 'base', 'v2_tiny'."""

    families: ClassVar = {"swin_": "", "swinv2_": "v2_"}
    default = "tiny"


class SwinTransformer3DBackbone(SwinTransformer3D):
    """'tiny' (the default), 'small', 'base'. [B, in_channels, D, H, W] → [B, feature_dim]."""

    def __init__(
        self,
        variant: str = "tiny",
        pretrained: bool | str = False,
        in_channels: int = 3,
        feature_dim: int | None = None,
        image_size: Size = None,
    ) -> None:
        size = named_size(f"swin3d_{variant}", self.spatial_dims, image_size, 64)
        super().__init__(variant, given_weights(pretrained), in_channels, feature_dim, image_size=size)


class VisionMambaBackbone(VisionMamba):
    """'tiny' (the default), 'small', 'base'. [B, in_channels, H, W] → [B, feature_dim]; tied to image_size."""

    def __init__(
        self,
        variant: str = "tiny",
        pretrained: bool | str = False,
        in_channels: int = 3,
        feature_dim: int | None = None,
        image_size: Size = None,
    ) -> None:
        size = named_size(f"vim_{variant}", self.spatial_dims, image_size, 224)
        super().__init__(variant, given_weights(pretrained), in_channels, feature_dim, image_size=size)
