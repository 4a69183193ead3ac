"""timm's architectures as flat lists of parts, each computing what the architecture's own forward pass does.

The only place that knows how a family is put together. A new family is a function and a line in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from einops import rearrange
from timm.layers import Attention, resample_abs_pos_embed_nhwc
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.efficientvim import EfficientViM
from timm.models.maxxvit import MaxxVit
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import Block as TransformerBlock
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from utils.blocks import Block, block, identity
from utils.torch_private import add_position_embedding

Function = Callable[[Tensor], Tensor]
# A module of one of timm's many classes. Any: what they have in common (feature_info, prune_intermediate_layers) is in
# no class or protocol of timm's.
TimmModel: TypeAlias = Any
# The feature inside the stem of a family whose stages alone give too few levels.
STEM = -1


class Part(NamedTuple):
    """feature: index in the body's feature_info of the map that is there after this part, made so by `tap`.

    modules, tap_modules: those that `function` and `tap` call. parameters: those that `function` reads itself.
    """

    name: str
    function: Function
    modules: tuple[nn.Module, ...]
    feature: int | None = None
    tap: Function = identity
    tap_modules: tuple[nn.Module, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()

    @classmethod
    def of(cls, name: str, module: nn.Module, feature: int | None = None) -> Part:
        """A module as a part."""
        return cls(name, module, (module,), feature)

    @classmethod
    def chain(cls, name: str, modules: Sequence[nn.Module], feature: int | None = None) -> Part:
        """Modules that are called one after another."""
        return cls(name, chain(*modules), tuple(modules), feature)

    def as_block(self, tapped: bool = False, last: bool = False) -> Block:
        """tapped: the feature leaves as a level. last: it is the last one."""
        modules = (*self.modules, *(self.tap_modules if tapped else ()))
        return block(self.name, self.function, self.tap if tapped else None, last, modules, self.parameters)


def parts_of(body: nn.Module, x: Tensor) -> list[Part] | None:
    """The parts of a timm model for input x; None where its family has no line in FAMILIES."""
    for family, parts in FAMILIES.items():
        if isinstance(body, family):
            return list(parts(body, x))
    return None


def chain(*functions: Function) -> Function:
    """One function after another."""

    def run(x: Tensor) -> Tensor:
        for function in functions:
            x = function(x)
        return x

    return run


def own_parameters(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Those that belong to no module inside of it."""
    return tuple(module.parameters(recurse=False))


def channels_first(x: Tensor) -> Tensor:
    """[B, H, W, C] → [B, C, H, W] as it lies in memory, which is channels_last: attention makes tokens of it again."""
    return rearrange(x, "b h w c -> b c h w")


def _sequence(
    name: str,
    blocks: nn.Module,
    feature: int | None,
    tap: Function = identity,
    tap_modules: tuple[nn.Module, ...] = (),
) -> Iterator[Part]:
    """The blocks of one stage; the last one's output is `feature`."""
    named = list(blocks.named_children())
    for i, (key, module) in enumerate(named):
        is_last = i == len(named) - 1
        yield Part(f"{name}.{key}", module, (module,), feature if is_last else None, tap, tap_modules)


def _resnet(body: ResNet, x: Tensor) -> Iterator[Part]:
    yield Part.chain("stem", [body.conv1, body.bn1, body.act1], 0)
    yield Part.of("maxpool", body.maxpool)
    for stage in range(1, 5):
        yield from _sequence(f"layer{stage}", getattr(body, f"layer{stage}"), stage)


def _efficientnet(body: EfficientNet | MobileNetV3, x: Tensor) -> Iterator[Part]:
    features = {stage: feature for feature, stage in enumerate(body.stage_ends)}
    yield Part.chain("stem", [body.conv_stem, body.bn1], features.get(0))
    for stage, blocks in enumerate(body.blocks, start=1):
        yield from _sequence(f"blocks.{stage - 1}", blocks, features.get(stage))


def _stages(stages: Iterable[nn.Module], name: str, tap: Function = identity) -> Iterator[Part]:
    """Stages that are a downsampling and a sequence of blocks."""
    for i, stage in enumerate(stages):
        downsample = stage.get_submodule("downsample")
        if not isinstance(downsample, nn.Identity):
            yield Part.of(f"{name}.{i}.downsample", downsample)
        yield from _sequence(f"{name}.{i}.blocks", stage.get_submodule("blocks"), i, tap)


def _convnext(body: ConvNeXt, x: Tensor) -> Iterator[Part]:
    yield Part.of("stem", body.stem)
    yield from _stages(body.stages, "stages")


def _swin(body: SwinTransformer | SwinTransformerV2, x: Tensor) -> Iterator[Part]:
    yield Part.of("patch_embed", body.patch_embed)
    yield from _stages(body.layers, "layers", channels_first)


def _regnet(body: RegNet, x: Tensor) -> Iterator[Part]:
    yield Part.of("stem", body.stem, 0)
    for stage in range(1, 5):
        yield from _sequence(f"s{stage}", getattr(body, f"s{stage}"), stage)


def _maxvit(body: MaxxVit, x: Tensor) -> Iterator[Part]:
    yield Part.of("stem", body.stem, 0)
    for i, stage in enumerate(body.stages):
        yield from _sequence(f"stages.{i}.blocks", stage.get_submodule("blocks"), i + 1)


def _densenet(body: DenseNet, x: Tensor) -> Iterator[Part]:
    """A dense layer appends its output to its input, so that the list of maps is one growing tensor."""
    features = {index: feature for feature, index in enumerate(body.feature_ends)}
    for i, (name, module) in enumerate(body.features.named_children()):
        if not isinstance(module, nn.ModuleDict):
            yield Part.of(name, module, features.get(i))
            continue
        layers = list(module.items())
        for j, (key, layer) in enumerate(layers):
            feature = features.get(i) if j == len(layers) - 1 else None
            yield Part(f"{name}.{key}", partial(_grow, layer), (layer,), feature)


def _grow(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([x, layer(x)], 1)


def _vit(body: VisionTransformer, x: Tensor) -> Iterator[Part]:
    height, width = body.patch_embed.dynamic_feat_size(tuple(x.shape[2:]))

    def to_map(tokens: Tensor) -> Tensor:
        tokens = body.norm(tokens)[:, body.num_prefix_tokens :]
        return rearrange(tokens, "b (h w) c -> b c h w", h=height, w=width).contiguous()

    yield _vit_embedding(body)
    yield from _sequence("blocks", body.blocks, len(body.blocks) - 1, to_map, (body.norm,))


def _vit_embedding(body: VisionTransformer) -> Part:
    """Patches, prefix tokens and positions → tokens."""
    functions = (body.patch_embed, partial(add_position_embedding, body), body.patch_drop, body.norm_pre)
    modules = (body.patch_embed, body.pos_drop, body.patch_drop, body.norm_pre)
    return Part("patch_embed", chain(*functions), modules, parameters=own_parameters(body))


def _sam(body: VisionTransformerSAM, x: Tensor) -> Iterator[Part]:
    """Its position tables are made for 1024 px, and interpolated for other sizes here and inside timm's blocks."""

    def embed(x: Tensor) -> Tensor:
        x = body.patch_embed(x)
        if body.pos_embed is not None:
            x = x + resample_abs_pos_embed_nhwc(body.pos_embed, x.shape[1:3])
        return body.norm_pre(body.patch_drop(body.pos_drop(x)))

    def neck(x: Tensor) -> Tensor:
        return body.neck(rearrange(x, "b h w c -> b c h w"))

    modules = (body.patch_embed, body.pos_drop, body.patch_drop, body.norm_pre)
    yield Part("patch_embed", embed, modules, parameters=own_parameters(body))
    yield from _sequence("blocks", body.blocks, len(body.blocks) - 1, neck, (body.neck,))


def _efficientvim(body: TimmModel, x: Tensor) -> Iterator[Part]:
    """The stages alone have three levels; a fourth is the stem's map at stride 8."""
    stem = body.patch_embed.conv
    for i, module in enumerate(stem):
        yield Part.of(f"patch_embed.{i}", module, STEM if i == len(stem) - 2 else None)
    for i, stage in enumerate(body.stages):
        for j, module in enumerate(stage.blocks):
            feature = i if j == stage.depth - 1 else None
            yield Part(f"stages.{i}.blocks.{j}", partial(_first, module), (module,), feature)
        if stage.downsample is not None:
            yield Part.of(f"stages.{i}.downsample", stage.downsample)


def _first(module: nn.Module, x: Tensor) -> Tensor:
    """The map of a block that also returns its hidden state."""
    return module(x)[0]


def attention_weights(body: nn.Module, x: Tensor) -> list[Tensor]:
    """softmax(q kᵀ / √d) of every block of a plain transformer for input x, [B, heads, tokens, tokens] each.

    [] where the body is no sequence of timm's Blocks over all tokens.
    """
    if not isinstance(body, VisionTransformer) or not all(_attends_globally(block) for block in body.blocks):
        return []
    weights = []
    for part in _vit(body, x):
        if isinstance(part.function, TransformerBlock):
            attention = part.function.attn
            assert isinstance(attention, Attention)
            weights.append(_softmax_weights(attention, part.function.norm1(x)))
        x = part.function(x)
    return weights


def _attends_globally(block: nn.Module) -> bool:
    return isinstance(block, TransformerBlock) and isinstance(block.attn, Attention)


def _softmax_weights(attention: Attention, tokens: Tensor) -> Tensor:
    """What timm's Attention multiplies the values with; its fused path never builds them."""
    qkv = rearrange(attention.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=attention.num_heads)
    query, key = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])
    return (query * attention.scale @ key.mT).softmax(-1)


FAMILIES: dict[type, Callable[[TimmModel, Tensor], Iterator[Part]]] = {
    ResNet: _resnet,
    EfficientNet: _efficientnet,
    MobileNetV3: _efficientnet,
    ConvNeXt: _convnext,
    RegNet: _regnet,
    DenseNet: _densenet,
    MaxxVit: _maxvit,
    VisionTransformer: _vit,
    SwinTransformer: _swin,
    SwinTransformerV2: _swin,
    EfficientViM: _efficientvim,
    VisionTransformerSAM: _sam,
}


def stem_level(body: TimmModel) -> tuple[int, int] | None:
    """(channels, stride) of the feature STEM, where the family has it."""
    has_it = isinstance(body, EfficientViM)
    return (body.feature_info[0]["num_chs"] // 2, 8) if has_it else None


def width_after_norm(body: TimmModel) -> int:
    """Channels of the last map of a family of one stride, behind its final norm: SAM's neck narrows it."""
    last = body.feature_info[-1]
    return last.get("num_chs_norm", last["num_chs"])


def drop_unused(body: nn.Module) -> None:
    """Take away parameters that only the classifier had a use for, and that timm's pruning leaves."""
    if isinstance(body, EfficientViM):
        del body.weights
        body.norm = nn.ModuleList()
