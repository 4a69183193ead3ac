"""Attention in shifted windows of an image, on whole maps: nothing is rolled, cut into windows or put together again.

Source: Liu et al. 2021, arXiv:2103.14030. On a GPU by a kernel that has to agree with the plain form; elsewhere timm's
block computes what it always did.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from utils.kernels import Kernel, KernelChoice
from utils.torch_private import relative_position_bias

# Places of a window and numbers of a head that one tile of the kernel holds.
MOST_POSITIONS, HEAD_WIDTHS = 64, (16, 32, 64)


def plain_window_attention(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """softmax(q kᵀ / √c + bias + mask) v within every window, in plain PyTorch.

    qkv [B, H, W, 3, heads, c], bias [heads, N, N], mask [windows, N, N] or None → [B, H, W, heads, c]. H and W are
    multiples of the window's sides, N is its area. Windows begin `shift` places later and go around the border, as if
    the map had been rolled by -shift; windows are counted row by row from the first one.
    """
    height, width = qkv.shape[1] // window[0], qkv.shape[2] // window[1]
    parts = {"i": height, "j": width}
    query, key, value = rearrange(
        torch.roll(qkv, [-n for n in shift], (1, 2)), "b (i p) (j q) three s c -> three b (i j) s (p q) c", **parts
    )
    scores = query @ key.mT * qkv.shape[-1] ** -0.5 + bias
    if mask is not None:
        scores = scores + mask[:, None]
    y = scores.softmax(-1).to(value.dtype) @ value
    y = rearrange(y, "b (i j) s (p q) c -> b (i p) (j q) s c", p=window[0], **parts)
    return torch.roll(y, list(shift), (1, 2))


def _load_triton() -> Kernel:
    from models.backbones.window_attention_triton import triton_window_attention

    return triton_window_attention


def _example(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor | None], Tensor]:
    """Two images of six windows of 49 places, shifted; random states are left alone."""
    generator = torch.Generator().manual_seed(0)
    qkv, dy, bias = (
        torch.randn(shape, generator=generator) for shape in ((2, 14, 21, 3, 2, 32), (2, 14, 21, 2, 32), (2, 49, 49))
    )
    mask = (torch.rand(6, 49, 49, generator=generator) < 0.3).float() * -100
    qkv, dy = qkv.to(device, dtype), dy.to(device, dtype)
    return [qkv.requires_grad_(), bias.to(device).requires_grad_(), mask.to(device)], dy


WINDOW_ATTENTION = KernelChoice(
    "window attention",
    "the plain form",
    plain_window_attention,
    {"cuda": (("the Triton kernel", _load_triton),)},
    _example,
    ((7, 7), (3, 3)),
)


class SwinBlock(SwinTransformerBlock):
    """timm's block, whose attention is computed on the whole map where there is a kernel for it."""

    kernels = WINDOW_ATTENTION

    def _attn(self, x: Tensor) -> Tensor:
        kernel = self._kernel(x)
        if kernel is None:
            return super()._attn(x)
        attention = self.attn
        qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
        bias = relative_position_bias(attention)[0].float()
        y = kernel(qkv, bias, self.attn_mask, self.window_size, self.shift_size)
        return attention.proj_drop(attention.proj(y.flatten(-2)))

    def _kernel(self, x: Tensor) -> Kernel | None:
        """None for timm's own way: no kernel here, or a case that it has no tile for.

        A map that windows do not divide is among them: timm rolls it before padding it.
        """
        attention, rows, columns = self.attn, x.shape[1], x.shape[2]
        whole = rows % self.window_size[0] == 0 and columns % self.window_size[1] == 0
        fits = (
            attention.window_area <= MOST_POSITIONS
            and attention.qkv.out_features // 3 // attention.num_heads in HEAD_WIDTHS
        )
        dropout = self.training and attention.attn_drop.p > 0
        if not whole or not fits or dropout or self.dynamic_mask:
            return None
        kind = x.device.type
        low = kind != "meta" and torch.is_autocast_enabled(kind)
        kernel = self.kernels.of(x.device, torch.get_autocast_dtype(kind) if low else x.dtype)
        return None if kernel is self.kernels.plain else kernel


def use_window_kernels(body: nn.Module) -> None:
    """Make timm's Swin blocks SwinBlocks, which have the same parameters under the same names."""
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = SwinBlock
