"""Which pixel a cell of a level is centred on, by the arithmetic of strides and paddings for an input of a given size.

No two families agree: patches are centred, a ResNet's first cell looks at the first pixel, and TensorFlow's padding
lies before or behind the image as its size asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.evaluation_mode import evaluating
from utils.torch_private import DispatchMode, reparametrize_module, tree_leaves


class CellGrid(NamedTuple):
    """Cell i is centred on pixel first + i · stride along each axis; pixels are counted from 0."""

    first: tuple[float, ...]
    stride: tuple[float, ...]

    @classmethod
    def of_patches(cls, stride: float, dims: int) -> CellGrid:
        """Cells that tile the image from its first pixel on."""
        return cls(((stride - 1) / 2,) * dims, (stride,) * dims)

    def centres(self, cells: Sequence[int]) -> list[Tensor]:
        """float64 [cells] per axis."""
        return [
            first + stride * torch.arange(count, dtype=torch.float64)
            for first, stride, count in zip(self.first, self.stride, cells, strict=True)
        ]


def trace_cells(
    backbone: nn.Module, forward: Callable[[Tensor], list[Tensor]], shape: Sequence[int], strides: Sequence[float]
) -> list[CellGrid]:
    """The grid of every level that `forward`, a part of `backbone`, gives for an input [1, C, *spatial] of `shape`.

    Centres are those of receptive fields (Araujo et al., Distill 2019): what convolutions, poolings, paddings and
    resizings do to them is followed through one forward pass on tensors without values; where paths meet they are
    averaged.
    strides: pixels per cell, as announced: a level whose size none of these operations explains (tokens that were
    merged) is taken for one cut into patches of the map that is known.
    """
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    without_values = {name: tensor.detach().to("meta") for name, tensor in state.items()}
    dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.get_default_dtype())
    x = torch.empty(tuple(shape), dtype=dtype, device="meta")
    with (
        evaluating(backbone),
        torch.inference_mode(False),
        torch.no_grad(),
        reparametrize_module(backbone, without_values),
        _CellTracer(x) as tracer,
    ):
        levels = forward(x)
    return [tracer.grid_of_level(level, stride) for level, stride in zip(levels, strides, strict=True)]


class _Cells(NamedTuple):
    """sizes: of the map that the grid is of, which a tensor derived from it may have in another form, as tokens."""

    sizes: tuple[int, ...]
    grid: CellGrid

    @classmethod
    def of_pixels(cls, sizes: Sequence[int]) -> _Cells:
        return cls(tuple(sizes), CellGrid((0.0,) * len(sizes), (1.0,) * len(sizes)))

    def then(self, sizes: Sequence[int], shift: Sequence[float], factor: Sequence[float]) -> _Cells:
        """A map whose first cell is centred on cell `shift` of this one, and each next one `factor` cells further."""
        first = tuple(f + s * move for f, s, move in zip(self.grid.first, self.grid.stride, shift, strict=True))
        stride = tuple(s * times for s, times in zip(self.grid.stride, factor, strict=True))
        return _Cells(tuple(sizes), CellGrid(first, stride))

    def resized(self, sizes: Sequence[int]) -> _Cells:
        """Its area cut into other numbers of cells."""
        factor = [old / max(new, 1) for old, new in zip(self.sizes, sizes, strict=True)]
        return self.then(sizes, [(times - 1) / 2 for times in factor], factor)


class _CellTracer(DispatchMode):
    """Notes the cells of every tensor that follows from x."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.dims = x.ndim - 2
        # With the tensor, so that it lives and its id is given to no other.
        self.known: dict[int, tuple[Tensor, _Cells]] = {id(x): (x, _Cells.of_pixels(x.shape[2:]))}

    # Any: arguments and results of whatever operation it is.
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = self._after(func.overloadpacket, args, kwargs or {}, result)
        if found is not None:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.known[id(leaf)] = (leaf, found)
        return result

    def _after(self, operation: object, args: Any, kwargs: Any, result: Any) -> _Cells | None:
        inputs = [self.known[id(leaf)][1] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.known]
        rule = _RULES.get(operation)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if rule is None or source is None or id(source) not in self.known or source.ndim != self.dims + 2:
            return _merged(inputs)
        cells, output = self.known[id(source)][1], next(y for y in tree_leaves(result) if isinstance(y, Tensor))
        if cells.sizes != tuple(source.shape[2:]):
            if rule is _padding:  # of a map with its channels last, or of windows, which is cut off again
                return cells
            cells = cells.resized(source.shape[2:])
        return rule(cells, args, tuple(output.shape[2:]))

    def grid_of_level(self, level: Tensor, stride: float) -> CellGrid:
        _, cells = self.known.get(id(level), (level, None))
        if cells is None:
            return CellGrid.of_patches(stride, self.dims)
        if cells.sizes == tuple(level.shape[2:]):
            return cells.grid
        factor = [stride / known for known in cells.grid.stride]
        return cells.then(level.shape[2:], [(times - 1) / 2 for times in factor], factor).grid


def _merged(inputs: Sequence[_Cells]) -> _Cells | None:
    """The mean grid of the largest maps: a gate that is multiplied in is of fewer cells."""
    if not inputs:
        return None
    largest = max((cells.sizes for cells in inputs), key=lambda sizes: torch.Size(sizes).numel())
    grids = [cells.grid for cells in inputs if cells.sizes == largest]
    first, stride = (tuple(sum(values) / len(grids) for values in zip(*column)) for column in zip(*grids))
    return _Cells(largest, CellGrid(first, stride))


def _each(value: int | Sequence[int], dims: int) -> list[int]:
    """A number per axis, from one for all or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _windows(
    cells: _Cells, sizes: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> _Cells:
    """Windows of `kernel` cells, `stride` apart, the first beginning `padding` before the map."""
    dims = len(sizes)
    kernels, steps, before, gaps = (_each(value, dims) for value in (kernel, stride or kernel, padding, dilation))
    return cells.then(sizes, [(k - 1) * g / 2 - p for k, g, p in zip(kernels, gaps, before)], steps)


def _convolution(cells: _Cells, args: Any, sizes: tuple[int, ...]) -> _Cells:
    _, weight, _, stride, padding, dilation, transposed = args[:7]
    kernel, dims = weight.shape[2:], len(sizes)
    if not transposed:
        return _windows(cells, sizes, kernel, stride, padding, dilation)
    steps, before, gaps = (_each(value, dims) for value in (stride, padding, dilation))
    # Cell i adds to outputs i · stride − padding + 0 … k − 1.
    shift = [(p - (k - 1) * g / 2) / s for k, g, p, s in zip(kernel, gaps, before, steps)]
    return cells.then(sizes, shift, [1 / step for step in steps])


def _pooling(cells: _Cells, args: Any, sizes: tuple[int, ...]) -> _Cells:
    kernel, stride, padding = (*args[1:], *[[], 0][len(args) - 2 :])[:3]
    return _windows(cells, sizes, kernel, stride, padding)


def _padding(cells: _Cells, args: Any, sizes: tuple[int, ...]) -> _Cells:
    """torch names the last axis first, and of each what is added before and behind."""
    before = list(reversed(args[1][::2]))[-len(sizes) :]
    before = [0] * (len(sizes) - len(before)) + before
    return cells.then(sizes, [-float(n) for n in before], [1.0] * len(sizes))


def _resizing(cells: _Cells, args: Any, sizes: tuple[int, ...]) -> _Cells:
    return cells.resized(sizes)


_aten = torch.ops.aten
_RULES: dict[object, Callable[[_Cells, Any, tuple[int, ...]], _Cells]] = {
    _aten.convolution: _convolution,
    **dict.fromkeys((_aten.max_pool2d_with_indices, _aten.max_pool2d, _aten.avg_pool2d), _pooling),
    **dict.fromkeys((_aten.max_pool3d_with_indices, _aten.avg_pool3d), _pooling),
    **dict.fromkeys((_aten.constant_pad_nd, _aten.reflection_pad2d, _aten.replication_pad2d), _padding),
    **dict.fromkeys((_aten.upsample_nearest2d, _aten.upsample_bilinear2d, _aten.upsample_bicubic2d), _resizing),
    **dict.fromkeys((_aten._adaptive_avg_pool2d, _aten.adaptive_max_pool2d), _resizing),
}
