"""sum + w · ReLU(norm(resize(x))) in training, at the cost of a map of x's own size.

Written with modules, every level of a fusion keeps three maps of the target's size: the resized one, the normalised one
and the rectified one. Linear resizing commutes with any affine map a channel, so normalisation and weight become one
such map of the small x, moments of the resized map follow from x alone, and the backward pass resizes and rectifies x
again. What is kept is x and two numbers per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from models.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, along_axes, interpolation_matrix, resize_to
from utils.torch_private import BatchNorm

_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


def can_add_rectified(norm: nn.Module, x: Tensor, size: Sequence[int]) -> TypeGuard[BatchNorm]:
    """Whether `add_rectified` may take the place of the modules: in training only, where something is to be saved.

    Not with other norms, with one value per channel, which has no variance, and not in graphs that are compiled or
    exported: a compiler finds out for itself what to recompute.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    several = len(x) * torch.Size(size).numel() > 1
    return several and type(norm) in _NORMS and norm.training and bool(norm.track_running_stats)


def add_rectified(total: Tensor | None, x: Tensor, norm: BatchNorm, weights: Tensor, size: Sequence[int]) -> Tensor:
    """total + weights · ReLU(norm(resize(x))), as the modules compute it; moves the running statistics.

    x: [B, C, *spatial], no axis of which is longer than in `size`. weights: [B], above zero. total: [B, C, *size], or
    None for zero. norm: one for which `can_add_rectified`.
    """
    size = tuple(size)
    mean, variance = ResizedMoments.apply(x, size)
    _move_statistics(norm, mean.detach(), variance.detach(), len(x) * torch.Size(size).numel())
    gain = norm.weight.to(mean.dtype) * torch.rsqrt(variance + norm.eps)
    weights = weights.to(mean.dtype)[:, None]
    scale, shift = weights * gain, weights * (norm.bias.to(mean.dtype) - mean * gain)
    return AddRectified.apply(total, x, scale, shift, size)


@torch.no_grad()
def _move_statistics(norm: BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """As nn.BatchNorm does: the running variance is that of a sample of `count` values."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    for running, value in ((norm.running_mean, mean), (norm.running_var, variance * (count / (count - 1)))):
        running.mul_(1 - momentum).add_(value.to(running.dtype), alpha=momentum)


class _Context(Protocol):
    """What autograd hands from forward to backward; `size` is kept there by the functions below."""

    size: tuple[int, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...


class ResizedMoments(torch.autograd.Function):
    """Mean and variance a channel of `resize_to(x, size)`, which is not built. [B, C, *spatial] → [C], [C].

    With u = A x along each axis (A: linear interpolation, rows add up to one), mean(u) = aᵀx with the column means a
    of A, and mean((u − m)²) = (x − m)ᵀ G (x − m) with G = AᵀA / rows. In float32 or wider.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ctx.size = size
        axes = [0, *range(2, x.ndim)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.shape[2:] == size:
            variance, mean = torch.var_mean(wide, axes, correction=0)
        else:
            with torch.autocast(x.device.type, enabled=False):
                means, squares = zip(*_moments(x, size))
                mean = along_axes(wide, [a[None] for a in means]).mean(axes)
                centred = wide - _as_map(mean, x)
                variance = (centred * along_axes(centred, squares)).sum(axes) / len(x)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, mean_gradient: Tensor, variance_gradient: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        of_mean, of_variance = mean_gradient / len(x), 2 * variance_gradient / len(x)
        if x.shape[2:] == ctx.size:
            count = torch.Size(ctx.size).numel()
            slope, offset = of_variance / count, (of_mean - of_variance * mean) / count
            return torch.addcmul(_as_map(offset, x), x.to(mean.dtype), _as_map(slope, x)).to(x.dtype), None
        with torch.autocast(x.device.type, enabled=False):
            means, squares = zip(*_moments(x, ctx.size))
            along = along_axes(x.to(mean.dtype) - _as_map(mean, x), squares)
        positions = _outer(means)
        return (_as_map(of_variance, x) * along + _as_map(of_mean, x) * positions).to(x.dtype), None


class AddRectified(torch.autograd.Function):
    """total + ReLU(resize(x · scale + shift)), of which x, scale and shift are kept.

    total: [B, C, *size] or None; x: [B, C, *spatial]; scale, shift: [B, C] → [B, C, *size], in x's type.
    """

    @staticmethod
    def forward(
        ctx: _Context, total: Tensor | None, x: Tensor, scale: Tensor, shift: Tensor, size: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        ctx.size = size
        with torch.autocast(x.device.type, enabled=False):
            level = _resized(x, scale, shift, size).relu_()
            return level if total is None else level.add_(total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
            level = _resized(x, scale, shift, ctx.size)
        passed = torch.ops.aten.threshold_backward(gradient.to(level.dtype), level.detach(), 0)
        total = gradient if ctx.needs_input_grad[0] else None
        return total, *torch.autograd.grad(level, (x, scale, shift), passed), None


def _resized(x: Tensor, scale: Tensor, shift: Tensor, size: tuple[int, ...]) -> Tensor:
    scale, shift = (t.reshape(*t.shape, *[1] * (x.ndim - 2)) for t in (scale, shift))
    return resize_to(torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype), size)


def _as_map(values: Tensor, like: Tensor) -> Tensor:
    """[C] → [1, C, 1 …]."""
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _outer(vectors: Sequence[Tensor]) -> Tensor:
    """[a], [b], … → [a, b, …], the products."""
    product = vectors[0]
    for vector in vectors[1:]:
        product = product[..., None] * vector
    return product


def _moments(x: Tensor, size: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Column means a [old] and AᵀA / rows [old, old] of each axis's interpolation.

    Small, and made anew: kept ones would be of another device, or without values where a trace had made them.
    """
    like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
    matrices = [interpolation_matrix(old, new, like) for old, new in zip(x.shape[2:], size)]
    return [(matrix.mean(0), matrix.T @ matrix / len(matrix)) for matrix in matrices]
