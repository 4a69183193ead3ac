"""Backbones from timm: one table, one adapter. The only place that may know a model's name.

timm's `forward_intermediates` gives channels-first maps for all of its families (its default
`features_only` wrapper gives Swin's channels last).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor

from configs.errors import ModelError
from models.backbones.base import BaseVisionBackbone
from models.backbones.weights import find_weights
from models.layers import running_statistics

LEVELS = 4


@dataclass(frozen=True)
class TimmSpec:
    """A line of the table.

    timm_name: architecture and, after a dot or by timm's default, the published weights.
    classic: see BaseVisionBackbone. convolutional: channels_last pays. sized: tied to the size it is made for.
    """

    timm_name: str
    classic: bool = False
    convolutional: bool = True
    sized: bool = False


TIMM_BACKBONES: dict[str, TimmSpec] = {
    **{name: TimmSpec(name, classic=True) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    **{f"convnext_{size}": TimmSpec(f"convnext_{size}") for size in ("tiny", "small", "base", "large")},
    **{
        f"swin_{size}": TimmSpec(f"swin_{size}_patch4_window7_224", convolutional=False, sized=True)
        for size in ("tiny", "small", "base")
    },
    # Only the tf_ ports of EfficientNetV2 have published weights.
    **{f"efficientnetv2_{size}": TimmSpec(f"tf_efficientnetv2_{size}") for size in ("s", "m", "l")},
    "tf_efficientnet_lite0": TimmSpec("tf_efficientnet_lite0"),
}


class TimmBackbone(BaseVisionBackbone):
    """A timm model without its head, read at its four coarsest levels.

    name: what the user calls it, for errors.
    image_size matters to families that are tied to it (Swin); others take any size.
    weights: True, False, or a mapping name → tensor already read from a file.
    """

    def __init__(
        self,
        name: str,
        spec: TimmSpec,
        weights: bool | Mapping[str, Tensor] = False,
        in_channels: int = 3,
        feature_dim: int | None = None,
        drop_path: float = 0.0,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        body = _create(name, spec, weights, in_channels, drop_path, image_size)
        levels = list(range(len(body.feature_info)))[-LEVELS:]
        config = body.pretrained_cfg
        super().__init__(
            [body.feature_info[i]["num_chs"] for i in levels],
            [body.feature_info[i]["reduction"] for i in levels],
            feature_dim,
            config["mean"],
            config["std"],
        )
        self.classic, self.prefers_channels_last = spec.classic, spec.convolutional
        self.image_size = tuple(image_size) if spec.sized else None
        self.levels = body.prune_intermediate_layers(levels, prune_norm=True, prune_head=True)
        self.body = body

    def forward_features(self, x: Tensor) -> list[Tensor]:
        if self.image_size is not None and tuple(x.shape[2:]) != self.image_size:
            raise ModelError(
                f"this backbone is built for {self.image_size[0]}×{self.image_size[1]} pictures and got "
                f"{x.shape[2]}×{x.shape[3]}: set MODEL.input_size to the size of the pictures"
            )
        # One picture whose coarsest map is a single value has no variance to normalise by.
        one_value = self.training and len(x) == 1 and max(x.shape[2:]) <= self.feature_strides[-1]
        with running_statistics(self.body) if one_value else nullcontext():
            return self.body.forward_intermediates(x, indices=self.levels, intermediates_only=True, output_fmt="NCHW")


def _create(
    name: str,
    spec: TimmSpec,
    weights: bool | Mapping[str, Tensor],
    in_channels: int,
    drop_path: float,
    size: tuple[int, int],
) -> Any:
    options: dict[str, Any] = {"in_chans": in_channels, "drop_path_rate": drop_path}
    if spec.sized:
        options["img_size"] = size
    if weights is False:
        return timm.create_model(spec.timm_name, pretrained=False, num_classes=0, **options)
    if weights is True:
        weights = find_weights(timm.get_pretrained_cfg(spec.timm_name), name)
    return _create_with_weights(name, spec.timm_name, dict(weights), options)


# What the last linear layer is called in the files that timm's loaders understand.
_CLASSIFIERS = ("head.fc.weight", "head.weight", "fc.weight", "classifier.weight")


def _create_with_weights(name: str, timm_name: str, weights: dict[str, Tensor], options: dict[str, Any]) -> Any:
    """Let timm convert and load the weights; as many classes as the file has make its loading strict."""
    classes = next((len(weights[key]) for key in _CLASSIFIERS if key in weights and weights[key].ndim == 2), 0)
    overlay = {"state_dict": dict(weights), "num_classes": classes}
    try:
        return timm.create_model(
            timm_name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **options
        )
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        expected = timm.create_model(timm_name, pretrained=False, num_classes=classes, **options).state_dict()
        raise ModelError(f"these weights do not fit {name}: {_difference(expected, weights, error)}") from None


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], error: Exception) -> str:
    """Both sides of a mismatch: names that only one has, shapes that differ; else the loader's own words."""
    lacking = [key for key in expected if key not in found]
    beyond = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    parts = [
        f"{len(rows)} {what} ({', '.join(_one_of_each(rows)[:4])}, …)"
        for rows, what in (
            (lacking, "tensors of the network are not in the file"),
            (beyond, "tensors of the file are not in the network"),
            (shapes, "tensors have another shape"),
        )
        if rows
    ]
    return "; ".join(parts) or " ".join(str(error).split())[:600]


def _one_of_each(names: list[str]) -> list[str]:
    """The first name under each top-level module: 'conv1.weight', 'layer1.0.conv1.weight', …"""
    return list({name.partition(".")[0]: name for name in reversed(names)}.values())[::-1]
