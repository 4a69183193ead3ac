"""Attention rollout: how much of each token reaches the last block of a transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from configs.errors import ExplanationError
from explain.cam import CAM_METHODS
from explain.geometry import cells_to_pixels
from explain.network import Level, PyramidModel, explaining, ordinary

# The share of a block's output that is its input, passed on by the residual connection.
RESIDUAL = 0.5


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Ã_L … Ã_2 Ã_1 with Ã = (mean over heads of A + I) / 2: [B, heads, N, N] a block → [B, N, N], rows add up to 1.

    Row i tells how much each input token has to do with token i of the last block.
    Source: Abnar & Zuidema, ACL 2020, arXiv:2005.00928.
    """
    identity = torch.eye(weights[0].shape[-1], device=weights[0].device, dtype=weights[0].dtype)
    joint = identity
    for block in weights:
        joint = (RESIDUAL * identity + (1 - RESIDUAL) * block.mean(1)) @ joint
    return joint


def attention_rollout(model: PyramidModel, x: Tensor, classes: Sequence[int], level: Level = "auto") -> Tensor:
    """Rollout as a map: [B, C, *spatial] → float32 [B, len(classes), *spatial] in [0, 1], the same for every class.

    The paper follows the class token; this network's head reads the other tokens, so the mean of their rows is shown,
    the class token's and registers' columns left out. All values are positive and near each other, so the least
    becomes 0 and the greatest 1.
    Raises ExplanationError where the backbone has no attention over all tokens, and for a level other than 'auto'.
    """
    if level != "auto":
        raise ExplanationError(f"attention_rollout goes through all blocks: leave level at 'auto', it is {level!r}")
    with explaining(model, gradients=False):
        x = ordinary(x)
        attention = model.backbone.global_attention(x)
        if attention is None:
            raise ExplanationError(
                "attention_rollout needs a backbone whose blocks attend over the whole image (vit_…, dinov2_…); this "
                f"one has none: use {', '.join(CAM_METHODS)}, or a method on the input"
            )
        rows = rollout([block.float() for block in attention.weights])[:, attention.prefix :, attention.prefix :]
        relevance = rows.mean(1).reshape(len(x), 1, *attention.grid)
        maps = _stretch(cells_to_pixels(relevance, x.shape[2:], attention.stride))
    return maps.repeat_interleave(len(classes), dim=1)


def _stretch(maps: Tensor) -> Tensor:
    """(m − min) / (max − min) a map; a constant one is 0."""
    axes = tuple(range(2, maps.ndim))
    low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0.0)
