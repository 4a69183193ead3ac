"""Small layers that the rest of the network is made of, for vectors, images and volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from utils.kernels import is_exported
from utils.torch_private import BatchNorm

NORMS = ("batch", "group")
_T = TypeVar("_T")
# Arguments of a convolution or a pooling: channels, sizes, `bias`, a padding mode.
_Argument: TypeAlias = int | str | tuple[int, ...]
_LayerClass: TypeAlias = Callable[..., nn.Module]
_CONV: dict[int, _LayerClass] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE: dict[int, _LayerClass] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_AVG_POOL: dict[int, _LayerClass] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def conv_nd(spatial_dims: int, *args: _Argument, **kwargs: _Argument) -> nn.Module:
    """nn.Conv1d, nn.Conv2d or nn.Conv3d with these arguments; ValueError for other dims."""
    return _of_spatial_dims(_CONV, spatial_dims)(*args, **kwargs)


def conv_transpose_nd(spatial_dims: int, *args: _Argument, **kwargs: _Argument) -> nn.Module:
    """nn.ConvTranspose1d, 2d or 3d with these arguments; ValueError for other dims."""
    return _of_spatial_dims(_CONV_TRANSPOSE, spatial_dims)(*args, **kwargs)


def avg_pool_nd(spatial_dims: int, *args: _Argument, **kwargs: _Argument) -> nn.Module:
    """nn.AvgPool1d, 2d or 3d with these arguments; ValueError for other dims."""
    return _of_spatial_dims(_AVG_POOL, spatial_dims)(*args, **kwargs)


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """nn.Linear with these arguments: the member of this family that has no dims."""
    return nn.Linear(in_features, out_features, bias)


def norm_nd(kind: str, spatial_dims: int, channels: int) -> nn.Module:
    """Normalisation of [B, channels, *spatial] with `spatial_dims` spatial axes; dims 0 or 1 serve vectors [B,
    channels].

    kind: 'batch' for BatchNorm that also trains on one value per channel; 'group' for GroupNorm32, which sees no other
    sample of the batch and so suits batches too small for statistics. ValueError for other kinds and dims.
    """
    batch_norm = _of_spatial_dims({0: BatchNorm1d, 1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}, spatial_dims)
    if kind == "batch":
        return batch_norm(channels)
    if kind == "group":
        return GroupNorm32(group_count(channels), channels)
    raise ValueError(f"unknown norm '{kind}': one of {', '.join(NORMS)}")


def group_count(channels: int) -> int:
    """How many groups: the largest divisor of `channels` up to 32 that leaves 16 channels or more in a group.

    Both numbers are from Wu & He 2018, arXiv:1803.08494, table 3. In a vector, or a map of one place, a group of one
    channel would be normalised to nothing and one of two to its sign, so small widths get fewer groups.
    """
    most = max(min(32, channels // 16), 1)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _of_spatial_dims(table: Mapping[int, _T], spatial_dims: int) -> _T:
    if spatial_dims not in table:
        raise ValueError(f"spatial_dims is {spatial_dims!r}: one of {', '.join(map(str, table))}")
    return table[spatial_dims]


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 (float64 stays), returned in the input's type.

    Half types lose the small differences of large sums, whether the module is one of them or autocast is on.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *spatial] → the same shape and type."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = (None if p is None else p.to(wide) for p in (self.weight, self.bias))
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


class _OneValueBatchNorm(BatchNorm):
    """Batch normalisation that also trains on a batch with a single value per channel.

    The variance of one value is zero, so PyTorch refuses such a batch. Here it is normalised with the running
    statistics, which it leaves as they are. Any other batch is torch.nn.BatchNorm's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *spatial] → the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, every batch normalisation of `module` uses its running statistics and leaves them as they are."""
    training = [norm for norm in module.modules() if isinstance(norm, BatchNorm) and norm.training]
    for norm in training:
        norm.training = False
    try:
        yield
    finally:
        for norm in training:
            norm.training = True


@contextmanager
def training_on_one_value(module: nn.Module) -> Iterator[None]:
    """Inside, a batch normalisation of `module` that meets a single value per channel uses its running statistics."""

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm.training and inputs[0].numel() == inputs[0].shape[1]:
            norm.training = False
            changed.append(norm)

    def after(norm: nn.Module, *_: object) -> None:
        if changed and changed[-1] is norm:
            changed.pop().training = True

    changed: list[nn.Module] = []
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)]
    hooks = [norm.register_forward_pre_hook(before) for norm in norms]
    hooks += [norm.register_forward_hook(after, always_call=True) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class BatchNorm1d(_OneValueBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d that accepts a batch of one in training."""


class BatchNorm2d(_OneValueBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d that accepts a batch of one 1×1 map in training."""


class BatchNorm3d(_OneValueBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d that accepts a batch of one 1×1×1 map in training."""


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, *spatial] → tokens [B, N, C], N = product of spatial."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(rearrange(x, "b c ... -> b (...) c"))


def _adaptive_mean_3d(x: Tensor, size: Sequence[int]) -> Tensor:
    """F.adaptive_avg_pool3d; in exported graphs by its 2-D kin, height and width first, as ONNX has no 3-D one.

    A cell is a product of intervals, so its mean is the mean along one axis after the others.
    """
    depth, height, width = size
    if not is_exported():
        return F.adaptive_avg_pool3d(x, (depth, height, width))
    flat = F.adaptive_avg_pool2d(x.flatten(1, 2), (height, width)).unflatten(1, x.shape[1:3]).flatten(3)
    return F.adaptive_avg_pool2d(flat, (depth, height * width)).unflatten(-1, (height, width))


_ADAPTIVE_MEAN: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: _adaptive_mean_3d,
}
_LINEAR_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _mean_over_cells(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Adaptive average pooling to `size`; in images whose cells are all alike the plain one, which is the same.

    On CUDA the gradient of the adaptive one is a sum of atomics.
    """
    rows, columns = x.shape[-2:]
    if len(size) == 2 and rows % size[0] == columns % size[1] == 0:
        return F.avg_pool2d(x, (rows // size[0], columns // size[1]))
    return _of_spatial_dims(_ADAPTIVE_MEAN, len(size))(x, size)


def shrinks(x: Tensor, size: Sequence[int]) -> bool:
    """Whether no axis of [B, C, *spatial] grows on the way to `size`."""
    return all(new <= old for new, old in zip(size, x.shape[2:], strict=True))


def resize_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, *spatial] → [B, C, *size]: mean over areas where it shrinks, (bi-, tri-)linear where an axis grows."""
    size = tuple(size)
    if x.shape[2:] == size:
        return x
    if shrinks(x, size):
        return _mean_over_cells(x, size)
    if _grows_by_matrices(x):
        with torch.autocast(x.device.type, enabled=False):
            return along_axes(x, [interpolation_matrix(old, new, x) for old, new in zip(x.shape[2:], size)])
    return F.interpolate(x, size=size, mode=_of_spatial_dims(_LINEAR_MODE, len(size)), align_corners=False)


def _grows_by_matrices(x: Tensor) -> bool:
    """Whether linear growth is faster as a matrix per axis. Exported graphs keep the operator.

    On a CPU torch computes maps of many channels channels_last and copies the result back, which takes ten times what
    it computes; compilers do better. On CUDA it gives a place of the map to a thread, which walks over the batch and
    its channels: 12 ms for 128 × 512 maps from 7 to 14 px (H200), whose bytes take a fiftieth of that.
    """
    if torch.jit.is_tracing() or is_exported():
        return False
    if x.device.type == "cuda":
        return x.ndim > 3
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.ndim == 4 and x.shape[1] > 4
    compiled = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return plain and not compiled and x.is_contiguous()


def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """A matrix [new, old] applied to each spatial axis: [B, C, *old] → [B, C, *new], in the memory format of x.

    The last axis goes first. Each is one product of matrices over memory as it lies.
    """
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    if last:
        x = x.permute(0, 2, 3, 1)
    first = 1 if last else 2
    for axis, matrix in reversed(list(enumerate(matrices, start=first))):
        if axis == x.ndim - 1:
            x = x @ matrix.T
        else:
            shape = (*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])
            x = (matrix @ x.flatten(axis + 1).flatten(0, axis - 1)).view(shape)
    return x.permute(0, 3, 1, 2) if last else x


def interpolation_matrix(old: int, new: int, like: Tensor) -> Tensor:
    """What linear interpolation (align_corners=False) multiplies an axis with: [new, old], rows add up to one."""
    identity = torch.eye(old, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(identity, size=new, mode="linear", align_corners=False)[0].T


def token_grid(x: Tensor, side: int) -> tuple[int, ...]:
    """Cells an axis of `pooled_tokens`."""
    return tuple(min(side, length) for length in x.shape[2:])


def pooled_tokens(x: Tensor, side: int) -> Tensor:
    """[B, C, *spatial] → [B, N, C]: means over a grid of at most `side` cells per axis, row by row."""
    cells = token_grid(x, side)
    return rearrange(_mean_over_cells(x, cells), "b c ... -> b (...) c")


def global_average_and_max(x: Tensor) -> Tensor:
    """[B, C, *spatial] → [B, 2C]: the mean of every channel, then its maximum.

    max, not amax: its gradient goes to one place by index. amax compares values again in the backward pass, which
    gives 0/0 where torch.compile recomputes them in another precision.
    """
    flat = x.flatten(2)
    return torch.cat([flat.mean(-1), flat.max(-1).values], dim=1)
