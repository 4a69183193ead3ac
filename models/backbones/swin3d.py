"""Swin Transformer for volumes, with the published weights of the Video Swin Transformer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from configs.errors import ModelError, WeightsUnavailableError
from models.backbones.base import BaseVisionBackbone
from models.backbones.inflation import VOLUME_STRIDES, load_strictly, pad_to_divisor
from models.backbones.weights import WAYS_ON
from models.backbones.window_attention import WINDOW, WindowAttention
from models.layers import conv_nd
from utils.blocks import Block, block
from utils.checkpoint import read_weights

PATCH = 4
# The window whose offsets the published position tables hold: time, height, width.
PUBLISHED_WINDOW = (8, WINDOW, WINDOW)


@dataclass(frozen=True)
class Swin3DSpec:
    """Channels of the first level, blocks and heads per level, torchvision's enumeration of published weights."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    published: str


SWIN3D_VARIANTS = {
    "tiny": Swin3DSpec(96, (2, 2, 6, 2), (3, 6, 12, 24), "Swin3D_T_Weights"),
    "small": Swin3DSpec(96, (2, 2, 18, 2), (3, 6, 12, 24), "Swin3D_S_Weights"),
    "base": Swin3DSpec(128, (2, 2, 18, 2), (4, 8, 16, 32), "Swin3D_B_Weights"),
}


class SwinTransformer3D(BaseVisionBackbone):
    """Attention in shifted windows of a volume; four levels at strides 4, 8, 16 and 32 in every axis.

    Sources: Liu et al., ICCV 2021, arXiv:2103.14030; Video Swin, Liu et al., CVPR 2022, arXiv:2106.13230. Tensors have
    the names of torchvision's SwinTransformer3d, whose weights (Kinetics-400, from the paper's authors) can be taken.
    MONAI's Swin is the other one in use; its published encoders are of another size (48 channels, two blocks per
    level), its default merging counts two of the eight neighbours twice, and it would be one more package. Both build
    the attention matrix and read a clipped window's positions from the wrong rows of their table. So the attention is
    ours:

    - depth is an axis like the others: patches of 4×4×4 instead of 2×4×4, merging 2×2×2 instead of 1×2×2;
    - an axis is cut into windows of equal length, at most 7: 8 places are 4 + 4, not 7 + 1 and 6 of padding;
    - padding is never attended to, and a smaller window reads the table by its true offsets;
    - a LayerNorm per level, as Swin's detectors have them; the published norm is the last level's.

    weights: True for the published ones; a mapping with their names or with this module's own, both taken strictly,
    but for the projection to feature_dim; False for random ones. `from_video_swin` brings published tensors to this
    network's shapes.
    Shapes: [B, in_channels, D, H, W] of any size → [B, channels · 2^i, ⌈D / stride_i⌉, …].
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
        if variant not in SWIN3D_VARIANTS:
            raise ModelError(f"unknown Swin 3-D variant '{variant}': one of {', '.join(SWIN3D_VARIANTS)}")
        spec = SWIN3D_VARIANTS[variant]
        channels = [spec.channels * 2**i for i in range(len(spec.depths))]
        super().__init__(channels, VOLUME_STRIDES, feature_dim, in_channels, image_size)
        self.patch_embed = PatchEmbedding(in_channels, channels[0])
        self.features = _stages(spec, channels, drop_path)
        self.norms = nn.ModuleList(LevelNorm(c) for c in channels)
        if weights is not False:
            self._load(published_weights(spec, variant) if weights is True else weights, f"swin3d_{variant}")

    def _load(self, weights: Mapping[str, Tensor], name: str) -> None:
        fresh: tuple[str, ...] = ("projection.",)
        if "norm.weight" in weights:
            weights = from_video_swin(weights, self.in_channels, name)
            fresh += tuple(f"norms.{i}." for i in range(len(self.norms) - 1))
        own = {key: tensor for key, tensor in self.state_dict().items() if key.startswith(fresh)}
        load_strictly(self, {**own, **weights}, name)

    def blocks(self, x: Tensor) -> list[Block]:
        """Patch embedding, every transformer block and every merging; a level leaves after its last block."""
        blocks = [block("patch_embed", self.patch_embed)]
        for level, norm in enumerate(self.norms):
            if level:
                blocks.append(block(f"merging {level}", self.features[2 * level - 1]))
            *inner, last = self.features[2 * level].children()
            blocks += [block(f"level {level} block {j}", layer) for j, layer in enumerate(inner)]
            is_last = level + 1 == len(self.norms)
            blocks.append(block(f"level {level} block {len(inner)}", last, norm, last=is_last))
        return blocks


def _stages(spec: Swin3DSpec, channels: Sequence[int], drop_path: float) -> nn.Sequential:
    """Levels and mergings in turn, at torchvision's places: 0, 2, 4, 6 and 1, 3, 5; initialised as there."""
    last = sum(spec.depths) - 1
    rates = iter([drop_path * i / last for i in range(last + 1)])
    stages: list[nn.Module] = []
    for c, depth, heads in zip(channels, spec.depths, spec.heads):
        stages += [PatchMerging(c // 2)] if stages else []
        stages.append(nn.Sequential(*(WindowBlock(c, heads, j % 2 == 1, next(rates)) for j in range(depth))))
    features = nn.Sequential(*stages)
    for module in features.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return features


class PatchEmbedding(nn.Module):
    """Patches of 4×4×4 voxels → normalised tokens. [B, in_channels, D, H, W] → [B, ⌈D/4⌉, ⌈H/4⌉, ⌈W/4⌉, C]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = conv_nd(3, in_channels, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(pad_to_divisor(x, PATCH, 2)).movedim(1, -1))


class PatchMerging(nn.Module):
    """Eight neighbours become one token. [B, D, H, W, C] → [B, ⌈D/2⌉, ⌈H/2⌉, ⌈W/2⌉, 2C].

    Neighbours are in the order depth, width, height, height fastest, so that each half is torchvision's order.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(pad_to_divisor(x, 2, 1), "b (d i) (h j) (w k) c -> b d h w (i k j c)", i=2, j=2, k=2)
        return self.reduction(self.norm(x))


class LevelNorm(nn.LayerNorm):
    """Layer normalisation of a level that leaves: [B, D, H, W, C] → [B, C, D, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).movedim(-1, 1)


class WindowBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with stochastic depth. [B, D, H, W, C] → the same."""

    def __init__(self, channels: int, heads: int, shifted: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, shifted)
        # The place of a dropout that is never used keeps torchvision's name 'mlp.3' for the second layer.
        hidden = 4 * channels
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


# ---- published weights


def published_weights(spec: Swin3DSpec, variant: str) -> dict[str, Tensor]:
    """torchvision's weights from torch.hub's cache, downloaded into it where they are not there; or ModelError."""
    from torchvision.models import video

    url: str = getattr(video, spec.published).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, a wrong hash is a RuntimeError
            raise WeightsUnavailableError(
                f"the weights {url} of 'swin3d_{variant}' are not available: {' '.join(str(error).split())[:300]}, "
                f"and they are not in the local cache. {WAYS_ON}"
            ) from None
    return read_weights(path)


def from_video_swin(weights: Mapping[str, Tensor], in_channels: int, name: str) -> dict[str, Tensor]:
    """Tensors of torchvision's SwinTransformer3d → those of SwinTransformer3D, but for the first three levels' norms.

    On a volume that is constant along depth the changed ones do what the published ones do:
    patch embedding [C, 3, 2, 4, 4]: each slice twice, halved; summed over RGB for one channel, as timm does.
    Merging [2C, 4C]: twice, halved, and its norm twice. Position tables (15 × 13 × 13): the middle 13 in depth, which
    are the offsets of windows of 7. Taken as they are: attention, MLPs, their norms, and the last norm as 'norms.3'.
    Left out: 'head', and the position indices, which are computed. ModelError where a shape is another one.
    """
    try:
        return {
            f"norms.3.{key[5:]}" if key.startswith("norm.") else key: _converted(key, tensor, in_channels)
            for key, tensor in weights.items()
            if not key.startswith("head.") and not key.endswith("relative_position_index")
        }
    except (RuntimeError, IndexError) as error:
        raise ModelError(f"these weights do not fit {name}: {' '.join(str(error).split())[:600]}") from None


def _converted(key: str, tensor: Tensor, in_channels: int) -> Tensor:
    if key == "patch_embed.proj.weight":
        tensor = tensor.repeat_interleave(PATCH // 2, dim=2) / (PATCH // 2)
        return tensor.sum(1, keepdim=True) if in_channels == 1 else tensor
    if key.endswith("relative_position_bias_table"):
        table = tensor.view(*(2 * side - 1 for side in PUBLISHED_WINDOW), -1)
        return table[1:-1].flatten(0, 2)
    if key.endswith("reduction.weight"):
        return tensor.repeat(1, 2) / 2
    if re.fullmatch(r"features\.\d\.norm\.(weight|bias)", key):
        return tensor.repeat(2)
    return tensor
