"""Vision Mamba: an image as a sequence of patches, read in both directions by selective scans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from configs.errors import ModelError
from models.backbones.base import BaseVisionBackbone
from models.backbones.pyramid import SimplePyramid
from models.backbones.selective_scan import SCAN, selective_scan
from models.backbones.weights import fetch_weights
from utils.blocks import Block, block

PATCH, DEPTH, STATES, KERNEL, EXPAND = 16, 24, 16, 4, 2
# Width, and where the authors published the weights: repository and file.
VIM_VARIANTS = {
    "tiny": (192, "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
    "small": (384, "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
    "base": (768, "hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
}


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 where it is: the type of norms, residual sums and states."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.RMSNorm):
    """x / √(mean x² + 1e-5) · weight, computed in float32 at least. [..., D] → the same, in the type of the weight."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), self.normalized_shape, wide(self.weight), self.eps).to(self.weight.dtype)


class Mixer(nn.Module):
    """Two selective scans over the sequence, one of them backwards, gated by a third projection.

    (x, z) = in_proj(tokens); each direction: depthwise causal convolution, SiLU, (dt, B, C) = x_proj, scan; then
    out_proj((y_forward + y_backward) / 2 · SiLU(z)). Backward weights end in _b, as in the released files.

    Shapes: tokens [B, L, D] → [B, L, D].
    """

    kernels = SCAN
    conv1d: nn.Conv1d
    conv1d_b: nn.Conv1d
    x_proj: nn.Linear
    x_proj_b: nn.Linear
    dt_proj: nn.Linear
    dt_proj_b: nn.Linear
    A_log: Tensor
    A_b_log: Tensor
    D: Tensor
    D_b: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, self.rank = EXPAND * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        for suffix in ("", "_b"):
            setattr(self, f"conv1d{suffix}", nn.Conv1d(inner, inner, KERNEL, groups=inner, padding=KERNEL - 1))
            setattr(self, f"x_proj{suffix}", nn.Linear(inner, self.rank + 2 * STATES, bias=False))
            setattr(self, f"dt_proj{suffix}", _dt_projection(self.rank, inner))
            decay = torch.arange(1, STATES + 1, dtype=torch.float32).log().repeat(inner, 1)
            setattr(self, "A_log" if not suffix else "A_b_log", nn.Parameter(decay))
            setattr(self, f"D{suffix}", nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        ahead = self._scan(x, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        back = self._scan(x.flip(1), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        return self.out_proj((ahead + back.flip(1)) / 2 * F.silu(z))

    def _scan(
        self, x: Tensor, conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor
    ) -> Tensor:
        """One direction: [B, L, inner] → the same."""
        length = x.shape[1]
        x = F.silu(conv(x.transpose(1, 2))[..., :length]).transpose(1, 2)  # what looks ahead is cut off
        dt, B, C = x_proj(x).split([self.rank, STATES, STATES], dim=-1)
        delta = F.linear(dt, dt_proj.weight)
        return selective_scan(x, delta, -wide(A_log).exp(), B, C, wide(D), wide(dt_proj.bias))


def _dt_projection(rank: int, inner: int) -> nn.Linear:
    """Steps δ = softplus(bias) that begin between 0.001 and 0.1, evenly in their logarithm."""
    linear = nn.Linear(rank, inner)
    nn.init.uniform_(linear.weight, -(rank**-0.5), rank**-0.5)
    low, high = math.log(1e-3), math.log(1e-1)
    step = torch.exp(torch.rand(inner) * (high - low) + low).clamp(min=1e-4)
    with torch.no_grad():
        linear.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
    return linear


class Layer(nn.Module):
    """x + drop_path(mixer(norm(x))), the sum in float32 at least. [B, L, D] → [B, L, D]."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mixer = Mixer(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + wide(self.drop_path(self.mixer(self.norm(x))))


class PatchEmbedding(nn.Module):
    """[B, in_channels, H, W] → tokens [B, H/16 · W/16, D], row by row."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b c h w -> b (h w) c")


class VisionMambaNet(nn.Module):
    """The network of the released weights, with their names: images [B, in_channels, H, W] → logits.

    A class token stands in the middle of the sequence, at L // 2 of L patches, and the head reads that token.
    Source: Zhu et al., ICML 2024, arXiv:2401.09417. The residual sum, which the authors carry beside the last block's
    output, is one float32 stream here: the same function.
    num_classes 0: no head.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int] = (14, 14),
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
        depth: int = DEPTH,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = PatchEmbedding(in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, width))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(Layer(width, rate) for rate in rates)
        self.norm_f = RMSNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self._initialise()

    @property
    def middle(self) -> int:
        """Where the class token stands."""
        return self.grid[0] * self.grid[1] // 2

    def embed(self, x: Tensor) -> Tensor:
        """Images → tokens with the class token among them, in float32 at least."""
        tokens = wide(self.patch_embed(x))
        token = wide(self.cls_token).expand(x.shape[0], -1, -1)  # len(x) would be a constant in exported graphs
        tokens = torch.cat([tokens[:, : self.middle], token, tokens[:, self.middle :]], dim=1)
        return tokens + wide(self.pos_embed)

    def to_map(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L + 1, D] → normed map of patches [B, D, h, w]."""
        tokens = self.norm_f(tokens)
        patches = torch.cat([tokens[:, : self.middle], tokens[:, self.middle + 1 :]], dim=1)
        return rearrange(patches, "b (h w) c -> b c h w", h=self.grid[0]).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm_f(x)[:, self.middle])

    def no_weight_decay(self) -> set[str]:
        """Names, or their ends, of what does not decay: embeddings as in Vim, and ln(-A) as in Mamba."""
        return {"pos_embed", "cls_token", "A_log", "A_b_log"}

    def _initialise(self) -> None:
        """Normal embeddings; the layers' last projections scaled down by the root of their number, as in Mamba."""
        for parameter in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=(self.patch_embed.proj.weight[0].numel()) ** -0.5)
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, Layer)
                layer.mixer.out_proj.weight /= math.sqrt(len(self.layers))


class VisionMamba(BaseVisionBackbone):
    """Vision Mamba as a backbone: the map of patches at stride 16, and a simple feature pyramid on it.

    variant: tiny, small or base. weights: True for the released ones, False, or a mapping with their names, from which
    the classifier is left out; all else is taken strictly, the position embedding resized to the image's grid, and
    the patch embedding summed over the colours for in_channels 1.
    Positions of a square number of patches are those of a square image. The authors' files for patches that overlap
    (stride 8, 27 × 27 positions) are of another network with the same names, which no file tells: not for this one.
    Images have the size given at building; they are padded to a multiple of 16, right and bottom, with zeros.
    """

    fixed_input_size = True

    def __init__(
        self,
        variant: str = "tiny",
        weights: bool | Mapping[str, Tensor] = False,
        in_channels: int = 3,
        feature_dim: int | None = None,
        drop_path: float = 0.0,
        image_size: Sequence[int] = (224, 224),
    ) -> None:
        if variant not in VIM_VARIANTS:
            raise ModelError(f"unknown Vision Mamba variant '{variant}': one of {', '.join(VIM_VARIANTS)}")
        width, repository, filename = VIM_VARIANTS[variant]
        strides = [int(PATCH * scale) for scale in SimplePyramid.SCALES]
        super().__init__([width] * len(strides), strides, feature_dim, in_channels, image_size)
        self.size_divisor = PATCH
        height, breadth = (-(-side // PATCH) for side in image_size)
        self.body = VisionMambaNet(width, (height, breadth), in_channels, 0, drop_path)
        self.pyramid = SimplePyramid(width)
        if weights is True:
            weights = fetch_weights(repository, filename, f"vim_{variant}")
        if weights is not False:
            load_released(self.body, weights, f"vim_{variant}")

    def new_layers(self) -> list[nn.Module]:
        return [*super().new_layers(), self.pyramid]

    def blocks(self, x: Tensor) -> list[Block]:
        self.refuse_other_sizes(x)
        layers = [block(f"layers.{i}", layer) for i, layer in enumerate(self.body.layers)]
        body = self.body
        embed = block("embed", self._embed, modules=[body.patch_embed], parameters=[body.cls_token, body.pos_embed])
        return [embed, *layers, block("map", body.to_map, modules=[body.norm_f]), *self.pyramid.blocks()]

    def _embed(self, x: Tensor) -> Tensor:
        bottom, right = (-side % PATCH for side in x.shape[2:])
        return self.body.embed(F.pad(x, (0, right, 0, bottom)))


def load_released(network: VisionMambaNet, weights: Mapping[str, Tensor], name: str) -> None:
    """Copy released tensors into a network without a head. Raises ModelError that says what does not fit."""
    found = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}
    wanted = network.state_dict()
    found = {
        key: _fitted(key, tensor, wanted[key], network.grid) if key in wanted else tensor
        for key, tensor in found.items()
    }
    lacking, beyond = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    if lacking or beyond or shapes:
        parts = {"not in the file": lacking, "not in the network": beyond, "of another shape": shapes}
        details = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:4])}, …)" for what, keys in parts.items() if keys)
        raise ModelError(f"these weights do not fit {name}: {details}")
    network.load_state_dict(found)


def _fitted(key: str, tensor: Tensor, like: Tensor, grid: tuple[int, int]) -> Tensor:
    """A released tensor for this network's image size and channels."""
    if key == "pos_embed" and _other_grid(tensor, like, grid):
        return resize_positions(tensor, grid)
    if key == "patch_embed.proj.weight" and tensor.ndim == 4 and like.shape[1] == 1:
        return tensor.sum(1, keepdim=True)
    return tensor


def _other_grid(positions: Tensor, like: Tensor, grid: tuple[int, int]) -> bool:
    """Whether these are positions of another grid, where a square number of patches is a square: 196 are not 7 × 28."""
    if positions.ndim != 3 or positions.shape[1] < 2 or positions.shape[::2] != like.shape[::2]:
        return False  # no position embedding at all for this network: its shape is reported
    count = positions.shape[1] - 1
    return count != grid[0] * grid[1] or (grid[0] != grid[1] and math.isqrt(count) ** 2 == count)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings [1, s · s + 1, D] with the class token's in the middle → [1, h · w + 1, D], likewise.

    Bicubic over the square grid; the class token's is put back unchanged. Raises ModelError where it is not square.
    """
    count = positions.shape[1] - 1
    side = math.isqrt(count)
    if side * side != count:
        raise ModelError(f"pos_embed holds {count} patches, which are no square grid: it cannot be resized")
    middle = count // 2
    patches = torch.cat([positions[:, :middle], positions[:, middle + 1 :]], dim=1).float()
    square = rearrange(patches, "1 (h w) c -> 1 c h w", h=side)
    resized = F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
    tokens = rearrange(resized, "1 c h w -> 1 (h w) c").to(positions.dtype)
    new = grid[0] * grid[1] // 2
    return torch.cat([tokens[:, :new], positions[:, middle : middle + 1], tokens[:, new:]], dim=1)
