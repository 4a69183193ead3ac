"""Fusion of a pyramid into one map, with weights that depend on the image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.layers import conv_nd, interpolation_matrix, norm_nd, resize_to, shrinks
from models.resize_norm_relu_sum import add_rectified, can_add_rectified
from utils.blocks import Block, State, run_plainly


class FusionLevel(nn.Sequential):
    """1×1 convolution, normalisation and activation of one level, called with the sum that it is added to.

    Shapes: x [B, C, *spatial], weights [B], total [B, out_channels, *size] or None for zero → [B, out_channels, *size].
    """

    def forward(  # type: ignore[override]  # nn.Sequential's has one argument
        self, x: Tensor, weights: Tensor, total: Tensor | None, size: Sequence[int]
    ) -> Tensor:
        """total + weights · ReLU(norm(resize(conv(x))))."""
        conv, norm, activation = self.children()
        x = conv(x)
        if can_add_rectified(norm, x, size):
            return add_rectified(total, x, norm, weights, size)
        level = activation(norm(resize_to(x, size))) * weights.reshape(-1, *[1] * (x.ndim - 1))
        return level if total is None else total + level


class DynamicFusion(nn.Module):
    """A weighted sum of all levels at the size of one of them; the weights are a softmax over levels.

    y = Σ_i w_i · ReLU(norm_i(resize(conv_i(x_i)))), w = softmax(W · concat_i mean(resize(x_i)) + b).

    Convolutions of 1×1 are done at each level's own size: they commute with resizing, which is linear with
    weights that add up to one. With target_level 0, dims 2 and BatchNorm this is the previous release's fusion,
    number by number.

    spatial_dims, norm: spatial axes, and the normalisation of `norm_nd`.
    Shapes: levels [B, channels[i], *spatial_i], finest first → [B, out_channels, *spatial_t], t = target_level.
    """

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int = 512,
        target_level: int = 0,
        spatial_dims: int = 2,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.target_level = target_level
        self.scale_convs = nn.ModuleList(
            FusionLevel(conv_nd(spatial_dims, c, out_channels, 1), norm_nd(norm, spatial_dims, out_channels), nn.ReLU())
            for c in channels
        )
        self.weight_generator = nn.Linear(sum(channels), len(channels))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return run_plainly(self.steps(), State(levels=tuple(features))).current()

    def steps(self) -> list[Block]:
        """The levels' weights, then one step per level, finest first: levels in → x, the fused map, out."""
        levels = [
            Block(f"fusion level {i}", partial(self._add_level, i), (level,))
            for i, level in enumerate(self.scale_convs)
        ]
        return [Block("fusion weights", self._begin, (self.weight_generator,)), *levels]

    def _begin(self, state: State) -> State:
        """levels → levels of which none is larger than the target, their weights, and the target's size."""
        size = tuple(state.levels[self.target_level].shape[2:])
        levels = tuple(resize_to(x, size) if shrinks(x, size) else x for x in state.levels)
        weights = self.level_weights(levels, size)
        return State(levels=levels, weights=weights, size=size, attended=state.attended)

    def _add_level(self, i: int, state: State) -> State:
        """levels x_i, x_{i+1} …, total → x_{i+1} …, total with level i; after the last level x is the total."""
        x, *coarser = state.levels
        assert state.weights is not None
        total = self.scale_convs[i](x, state.weights[:, i], state.total, state.size)
        if coarser:
            return state._replace(levels=tuple(coarser), total=total)
        return State(total, attended=state.attended)

    def centres(self, levels: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Where the fused map's cells lie, from where those of the levels do: [cells] per axis in, and out.

        Each level's centres are resized as the level is; the mean of all levels, as each has the same share at first,
        but for those of a single cell along an axis, which say the same everywhere.
        """
        size = tuple(len(axis) for axis in levels[self.target_level])
        placed = [resize_to(_coordinates(level), size)[0] for level in levels]
        found = []
        for axis, target in enumerate(placed[self.target_level]):
            telling = [maps[axis] for maps, level in zip(placed, levels) if len(level[axis]) > 1] or [target]
            found.append(torch.stack(telling).mean(0).movedim(axis, 0).reshape(size[axis], -1).mean(1))
        return found

    def level_weights(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """How much each level counts: [B, levels], rows add up to one."""
        means = torch.cat([mean_after_resize(x, size) for x in features], dim=1)
        return self.weight_generator(means).softmax(dim=1)


def _coordinates(centres: Sequence[Tensor]) -> Tensor:
    """[cells] per axis → [1, axes, *cells]: the place of every cell."""
    return torch.stack(torch.meshgrid(*centres, indexing="ij"))[None]


def mean_after_resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """The mean of every channel of `resize_to(x, size)` without building it: [B, C, *spatial] → [B, C].

    Linear growth counts border samples differently, but separably: the mean is a weighted one.
    """
    if shrinks(x, size):
        return resize_to(x, size).mean(tuple(range(2, x.ndim)))
    axes = "dhw"[-len(size) :]
    # How much each of the old samples adds to the mean of the new ones.
    weights = [interpolation_matrix(old, new, x).mean(0) for old, new in zip(x.shape[2:], size)]
    return torch.einsum(f"bc{axes},{','.join(axes)}->bc", x, *weights)
