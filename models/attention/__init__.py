"""Attention over a pyramid: each mode maps a list of levels to a list of the same shapes."""

from collections.abc import Sequence

from torch import nn

from models.attention.cbam import CBAM, PyramidCBAM
from models.attention.cross_scale import CrossScaleAttention
from models.attention.multi_scale import MultiScaleAttention

__all__ = ["ATTENTION_MODES", "CBAM", "CrossScaleAttention", "MultiScaleAttention", "PyramidCBAM", "create_attention"]

ATTENTION_MODES = ("none", "cbam", "multi_scale", "cross_scale")


def create_attention(mode: str, channels: Sequence[int], num_heads: int = 8) -> nn.Module:
    """The attention module for a pyramid with these channels; ValueError for an unknown mode."""
    if mode == "none":
        return nn.Identity()
    if mode == "cbam":
        return PyramidCBAM(channels)
    if mode == "multi_scale":
        return MultiScaleAttention(channels, num_heads)
    if mode == "cross_scale":
        return CrossScaleAttention(channels, num_heads)
    raise ValueError(f"unknown attention mode '{mode}': one of {', '.join(ATTENTION_MODES)}")
