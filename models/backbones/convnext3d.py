"""ConvNeXt for volumes, by inflating the weights of the 2-D network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from configs.errors import ModelError
from models.backbones.base import BaseVisionBackbone
from models.backbones.inflation import VOLUME_STRIDES, inflate, load_strictly, pad_to_divisor
from models.backbones.timm_backbones import TIMM_BACKBONES, TimmBackbone
from models.layers import conv_nd
from utils.blocks import Block, block, identity

# Channels and blocks of the four levels.
CONVNEXT3D_VARIANTS = {"tiny": ((96, 192, 384, 768), (3, 3, 9, 3))}
_EPS = 1e-6


class ConvNeXt3D(BaseVisionBackbone):
    """ConvNeXt with a third axis in every kernel; four levels at strides 4, 8, 16 and 32 in every axis.

    Sources: Liu et al., CVPR 2022, arXiv:2201.03545; inflation by Carreira & Zisserman, CVPR 2017, arXiv:1705.07750:
    4×4, 2×2 and 7×7 kernels are repeated along depth and divided by its length; linear layers, norms and layer scales
    are the 2-D ones. Where a volume is constant along depth, and away from the zeros beyond its ends, features are
    those of the 2-D network. Differs from it where a side is no multiple of 32: zeros are added at its end where
    ConvNeXt cuts the rest off, so that a thin volume keeps all its slices.

    weights: True for timm's published 2-D ones; a mapping that is either 2-D, with timm's or the paper's names, or
    this module's own; both are taken strictly, but for the projection to feature_dim. False for random ones.
    Shapes: [B, in_channels, D, H, W] of any size → [B, channels[i], ⌈D / stride_i⌉, …].
    Raises ModelError for an unknown variant and for weights that are not available or do not fit.
    """

    spatial_dims = 3

    def __init__(
        self,
        variant: str = "tiny",
        weights: bool | Mapping[str, Tensor] = False,
        in_channels: int = 3,
        feature_dim: int | None = None,
        drop_path: float = 0.0,
        image_size: Sequence[int] = (64, 64, 64),
    ) -> None:
        if variant not in CONVNEXT3D_VARIANTS:
            raise ModelError(f"unknown ConvNeXt 3-D variant '{variant}': one of {', '.join(CONVNEXT3D_VARIANTS)}")
        channels, depths = CONVNEXT3D_VARIANTS[variant]
        super().__init__(channels, VOLUME_STRIDES, feature_dim, in_channels, image_size)
        last = sum(depths) - 1
        rates = iter([drop_path * i / last for i in range(last + 1)])
        self.stem = nn.Sequential(_Downsampling(in_channels, channels[0], 4), _ChannelNorm(channels[0]))
        self.stages = nn.ModuleList(
            _Stage(channels[max(i - 1, 0)], c, [next(rates) for _ in range(depth)])
            for i, (c, depth) in enumerate(zip(channels, depths))
        )
        _initialise(self)
        if weights is not False:
            self._load(weights, f"convnext3d_{variant}", f"convnext_{variant}")

    def _load(self, weights: bool | Mapping[str, Tensor], name: str, flat_name: str) -> None:
        """Weights with a 5-D stem are this module's own; all others are timm's to read, convert and refuse."""
        if not (isinstance(weights, Mapping) and weights.get("stem.0.weight", torch.empty(0)).ndim == 5):
            flat = TimmBackbone(name, TIMM_BACKBONES[flat_name], weights=weights, in_channels=self.in_channels)
            weights = inflate_convnext(flat.body.state_dict())
        own = self.projection.state_dict(prefix="projection.")
        load_strictly(self, {**own, **weights}, name)

    def blocks(self, x: Tensor) -> list[Block]:
        """Stem, downsamplings and blocks; a level leaves after its last block."""
        blocks = [block("stem", self.stem)]
        for i, stage in enumerate(self.stages):
            if i:
                blocks.append(block(f"downsampling {i}", stage.get_submodule("downsample")))
            *inner, last = stage.get_submodule("blocks").children()
            blocks += [block(f"level {i} block {j}", layer) for j, layer in enumerate(inner)]
            blocks.append(block(f"level {i} block {len(inner)}", last, identity, last=i + 1 == len(self.stages)))
        return blocks


def _initialise(network: nn.Module) -> None:
    """As the paper does: normal with deviation 0.02 cut at two units, biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def inflate_convnext(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A 2-D ConvNeXt's tensors → the 3-D one's: every kernel as deep as it is wide, all else as it is."""
    return {key: inflate(tensor, tensor.shape[-1]) if tensor.ndim == 4 else tensor for key, tensor in weights.items()}


class _Downsampling(nn.Conv3d):
    """Kernels of `factor` with that stride, on sides padded to a multiple of it."""

    def __init__(self, in_channels: int, channels: int, factor: int) -> None:
        super().__init__(in_channels, channels, factor, stride=factor)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_to_divisor(x, self.stride[0], 2))


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, D, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Stage(nn.Module):
    """Downsampling by two, if the channels change, then blocks with these rates of stochastic depth."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[float]) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if in_channels != channels:
            self.downsample = nn.Sequential(_ChannelNorm(in_channels), _Downsampling(in_channels, channels, 2))
        self.blocks = nn.Sequential(*(_Block(channels, rate) for rate in rates))


class _Block(nn.Module):
    """x + gamma · mlp(norm(depthwise 7×7×7 convolution of x)), with stochastic depth. [B, C, D, H, W] → the same."""

    def __init__(self, channels: int, drop_path: float, init_scale: float = 1e-6) -> None:
        super().__init__()
        self.conv_dw = conv_nd(3, channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, 4 * channels), "fc2": nn.Linear(4 * channels, channels)})
        self.gamma = nn.Parameter(torch.full((channels,), init_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv_dw(x).movedim(1, -1))
        y = self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](y))) * self.gamma
        return x + self.drop_path(y.movedim(-1, 1))
