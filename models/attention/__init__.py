"""Attention over a pyramid: each mode maps a list of levels to a list of the same shapes."""

from collections.abc import Sequence

from models.attention.cbam import CBAM, PyramidCBAM
from models.attention.cross_scale import CrossScaleAttention
from models.attention.multi_scale import MultiScaleAttention
from models.attention.pyramid import CBAMMaps, NoAttention, PyramidAttention, TokenMaps

__all__ = [
    "ATTENTION_MODES",
    "CBAM",
    "CBAMMaps",
    "CrossScaleAttention",
    "MultiScaleAttention",
    "NoAttention",
    "PyramidAttention",
    "PyramidCBAM",
    "TokenMaps",
    "create_attention",
]

ATTENTION_MODES = ("none", "cbam", "multi_scale", "cross_scale")


def create_attention(mode: str, channels: Sequence[int], num_heads: int = 8, spatial_dims: int = 2) -> PyramidAttention:
    """The attention module for a pyramid with these channels and `spatial_dims` spatial axes; ValueError for unknown
    modes.
    """
    if mode == "none":
        return NoAttention()
    if mode == "cbam":
        return PyramidCBAM(channels, spatial_dims)
    if mode == "multi_scale":
        return MultiScaleAttention(channels, num_heads, spatial_dims=spatial_dims)
    if mode == "cross_scale":
        return CrossScaleAttention(channels, num_heads, spatial_dims=spatial_dims)
    raise ValueError(f"unknown attention mode '{mode}': one of {', '.join(ATTENTION_MODES)}")
