"""Names of the previous release's ResNets → current ones: its state dicts under the names of HybridMedNet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from configs.errors import WeightsError
from utils.checkpoint.tensors import is_plain

# None of these prefixes is in use now, so that current names pass through unchanged.
_BEGINNINGS = (
    ("feature_extractor.backbone.conv1.0.", "backbone.body.conv1."),
    ("feature_extractor.backbone.conv1.1.", "backbone.body.bn1."),
    ("feature_extractor.backbone.", "backbone.body."),
    ("feature_extractor.fpn.", "fpn."),
    ("fusion.weight_generator.1.", "fusion.weight_generator."),
)
_T = TypeVar("_T")
_CLASS = re.compile(r"classifier\.classifiers\.(0|[1-9][0-9]{0,5})\.((?:0|3)\.(?:weight|bias))")
# A part of each class's network → the matrix or vector of all classes.
_PARTS = {"0.weight": "hidden.weight", "0.bias": "hidden.bias", "3.weight": "weight", "3.bias": "bias"}


def rename_previous_release(weights: Mapping[str, object]) -> dict[str, object]:
    """Old names → current ones; the flat head's networks, one per class, become rows of one matrix.

    Names that are not old pass through unchanged. Raises WeightsError where the classes are not complete, 0 to K − 1.
    """
    classes: dict[int, dict[str, object]] = {}
    others: dict[str, object] = {}
    for name, tensor in weights.items():
        match = _CLASS.fullmatch(name)
        if match is None:
            others[name] = tensor
        else:
            classes.setdefault(int(match[1]), {})[match[2]] = tensor
    renamed = rename_each(_rename, others)
    generator = renamed.get("fusion.weight_generator.weight")
    if is_plain(generator) and generator.shape[2:] == (1, 1):
        renamed["fusion.weight_generator.weight"] = generator.flatten(1)  # was a 1×1 convolution, is a linear layer
    return rename_each(str, renamed, _join_classes(classes))


def rename_each(rename: Callable[[str], str], *weights: Mapping[str, _T]) -> dict[str, _T]:
    """All tensors under their new names. Raises WeightsError where two would have the same one."""
    renamed: dict[str, _T] = {}
    for name, tensor in ((rename(name), tensor) for part in weights for name, tensor in part.items()):
        if name in renamed:
            raise WeightsError(f"these weights have two tensors that would both be '{name}'")
        renamed[name] = tensor
    return renamed


def _rename(name: str) -> str:
    for before, after in _BEGINNINGS:
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def _join_classes(classes: Mapping[int, Mapping[str, object]]) -> dict[str, Tensor]:
    """{k: {'0.weight': [h, C], '0.bias': [h], '3.weight': [1, h], '3.bias': [1]}} → [K·h, C], [K·h], [K, h], [K]."""
    if not classes:
        return {}
    gaps = [f"classifiers.{k}.{part}" for k in range(len(classes)) for part in _PARTS if part not in classes.get(k, {})]
    if gaps:
        raise WeightsError(
            f"the head of these weights has {len(classes)} classes, the last of them number {max(classes)}, but lacks "
            f"{', '.join(gaps[:10])}{', …' if len(gaps) > 10 else ''}"
        )
    return {f"classifier.classifiers.{today}": _join(classes, part) for part, today in _PARTS.items()}


def _join(classes: Mapping[int, Mapping[str, object]], part: str) -> Tensor:
    rows = [classes[k][part] for k in range(len(classes))]
    plain = [row for row in rows if is_plain(row) and row.ndim]
    kinds = {f"{tuple(row.shape)} {row.dtype}" for row in plain}
    if len(plain) < len(rows):
        kinds.add("no plain numbers")
    if len(kinds) > 1 or not plain:
        raise WeightsError(f"the classes of these weights differ: classifiers.*.{part} has {', '.join(sorted(kinds))}")
    return torch.cat(plain)


# Blocks in each stage, with two or three convolutions in a block.
_RESNETS: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 2, 2), 2): "resnet18",
    ((3, 4, 6, 3), 2): "resnet34",
    ((3, 4, 6, 3), 3): "resnet50",
    ((3, 4, 23, 3), 3): "resnet101",
}


def settings_of_previous_release(weights: Mapping[str, Tensor]) -> dict[str, str | int | bool] | None:
    """MODEL settings of the network that weights under current names are of; None if they are of none like it."""
    body = "backbone.body."
    stages = [{name.split(".")[3] for name in weights if name.startswith(f"{body}layer{n}.")} for n in (1, 2, 3, 4)]
    convolutions = 3 if f"{body}layer1.0.conv3.weight" in weights else 2
    backbone = _RESNETS.get((tuple(map(len, stages)), convolutions))
    hierarchical = "classifier.fine_classifier.4.weight" in weights
    head = weights.get("classifier.fine_classifier.4.weight" if hierarchical else "classifier.classifiers.weight")
    shapes = [weights.get(name) for name in ("fpn.lateral_convs.0.weight", "fusion.scale_convs.0.0.weight")]
    if backbone is None or head is None or any(tensor is None for tensor in shapes):
        return None
    coarse = {"num_coarse_classes": len(weights["classifier.coarse_classifier.4.weight"])} if hierarchical else {}
    fpn_channels, fusion_channels = (len(tensor) for tensor in shapes if tensor is not None)
    return {
        "backbone": backbone,
        "in_channels": weights[f"{body}conv1.weight"].shape[1],
        "num_classes": len(head),
        "hierarchical": hierarchical,
        "fpn_channels": fpn_channels,
        "fusion_channels": fusion_channels,
        **coarse,
    }
