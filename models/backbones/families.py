"""Which backbones belong together, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Sizes from small to large, as names end.
SIZES = ("tiny", "t", "s", "small", "m", "base", "b", "l", "large")


def family_and_size(name: str) -> tuple[str, int]:
    """('swin', 0) for swin_tiny, ('resnet', 50) for resnet50, ('efficientnet', 2) for efficientnet_b2.

    A number behind a v is a version and belongs to the family: ('mobilenetv2', 0).
    """
    family, _, size = name.rpartition("_")
    if family and size in SIZES:
        return family, SIZES.index(size)
    match = re.fullmatch(r"(.*?)(?:_[a-z]?|(?<![v\d]))(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def smallest_of_each_family(names: Iterable[str]) -> list[str]:
    """One name a family: resnet18 of the ResNets, swin_tiny of the Swins, …"""
    smallest: dict[str, str] = {}
    for name in sorted(names, key=lambda name: family_and_size(name)[1]):
        smallest.setdefault(family_and_size(name)[0], name)
    return sorted(smallest.values())
