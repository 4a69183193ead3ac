"""What every backbone promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from configs.errors import ModelError
from models.backbones.cells import CellGrid
from utils.blocks import Block
from utils.gradient_checkpointing import Checkpointable


def check_size(name: str, spatial_dims: int, image_size: Sequence[int]) -> tuple[int, ...]:
    """image_size as a tuple; ModelError unless it has one length of 1 or more for each of a backbone's dimensions."""
    if len(image_size) == spatial_dims and min(image_size) > 0:
        return tuple(image_size)
    kind, axes = ("images", "height, width") if spatial_dims == 2 else ("volumes", "depth, height, width")
    size = "×".join(map(str, image_size))
    raise ModelError(
        f"{name} is for {kind}, not for a size of {size}: set DATA.image_size to [{axes}], or take another backbone"
    )


class GlobalAttention(NamedTuple):
    """Self-attention of every token with every other, block after block.

    weights: one [B, heads, tokens, tokens] a block, rows add up to 1. prefix: tokens before those of the grid, which
    stand for no place. grid: places per axis, row by row. stride: pixels per place.
    """

    weights: list[Tensor]
    prefix: int
    grid: tuple[int, ...]
    stride: float


class BaseVisionBackbone(Checkpointable, nn.Module, ABC):
    """A pyramid of feature maps, finest first, channels first; and one vector per image or volume.

    Attributes
    ----------
    feature_channels, feature_strides: one number per level.
    feature_dim: length of the vector that `forward` returns.
    spatial_dims: 2 for images [B, C, H, W], 3 for volumes [B, C, D, H, W].
    in_channels, image_size: of the input; the size is what checkpointing is planned for.
    mean, std: normalisation of [0, 1] images that the weights expect, three values each.
    fixed_input_size: tied to the size it is built for.
    classic: the previous release's ResNet path (FPN, CBAM, fusion at stride 4) is its default.
    prefers_channels_last: convolutional, so that the channels_last memory format pays.
    """

    spatial_dims = 2
    fixed_input_size = False
    classic = False
    prefers_channels_last = False

    def __init__(
        self,
        feature_channels: Sequence[int],
        feature_strides: Sequence[float],
        feature_dim: int | None = None,
        in_channels: int = 3,
        image_size: Sequence[int] = (224, 224),
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.feature_channels, self.feature_strides = list(feature_channels), list(feature_strides)
        self.feature_dim = feature_dim or self.feature_channels[-1]
        self.in_channels, self.image_size = in_channels, tuple(image_size)
        self.mean, self.std = tuple(mean), tuple(std)
        self.projection = nn.Linear(self.feature_channels[-1], feature_dim) if feature_dim else nn.Identity()

    @abstractmethod
    def blocks(self, x: Tensor) -> list[Block]:
        """The network for input x as a flat list: State(x) in, the levels of the pyramid out.

        As fine as the architecture's own blocks, so that checkpointing can cut between any two of them. The same
        number of blocks for every x.
        """

    def global_attention(self, x: Tensor) -> GlobalAttention | None:
        """The attention weights of all blocks for x; None where there is none, or only within windows."""
        return None

    def new_layers(self) -> list[nn.Module]:
        """Those that published weights do not have: what is frozen, or learns slowly, as `backbone` are the others."""
        return [self.projection]

    def cell_grids(self, size: Sequence[int]) -> list[CellGrid]:
        """Which pixels the cells of each level are centred on, for inputs of spatial `size`.

        Here: patches that tile the input, which padding at its ends does not move.
        """
        return [CellGrid.of_patches(stride, self.spatial_dims) for stride in self.feature_strides]

    def refuse_other_sizes(self, x: Tensor) -> None:
        """For backbones tied to the size they were built for: ModelError where x has another."""
        if tuple(x.shape[2:]) != self.image_size:
            built, got = ("×".join(map(str, size)) for size in (self.image_size, x.shape[2:]))
            raise ModelError(
                f"this backbone is built for {built} images and got {got}: "
                "set MODEL.input_size to the size of the images"
            )

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """[B, in_channels, *spatial] → [B, feature_channels[i], *spatial / stride_i] for each level."""
        return list(self.run_blocks(self.blocks(x), x).levels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, *spatial] → [B, feature_dim]: mean over the coarsest level, projected if asked for."""
        return self.projection(self.forward_features(x)[-1].flatten(2).mean(-1))
