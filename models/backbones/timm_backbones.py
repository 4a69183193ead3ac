"""Backbones from timm: one table, one adapter. The only place that may know a model's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import NotRequired, TypedDict

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from configs.errors import ModelError
from models.backbones.base import BaseVisionBackbone, GlobalAttention
from models.backbones.cells import CellGrid, trace_cells
from models.backbones.pyramid import SimplePyramid
from models.backbones.sizes import refuse_unfit_size
from models.backbones.swin_attention import use_window_kernels
from models.backbones.timm_blocks import (
    STEM,
    Part,
    TimmModel,
    attention_weights,
    drop_unused,
    parts_of,
    stem_level,
    width_after_norm,
)
from models.backbones.weights import find_weights
from models.layers import running_statistics, training_on_one_value
from utils.blocks import Block, State, block, run_plainly

LEVELS = 4
ANY = "timm/"  # the prefix of names that are timm's own


@dataclass(frozen=True)
class TimmSpec:
    """A line of the table.

    timm_name: architecture and, after a dot or by timm's default, the published weights.
    classic: see BaseVisionBackbone. convolutional: channels_last pays. fixed_input_size: tied to the size it is made
    for.
    size_divisor: what heights and widths must divide by; images are padded to it, right and bottom, with zeros.
    """

    timm_name: str
    classic: bool = False
    convolutional: bool = True
    fixed_input_size: bool = False
    size_divisor: int = 1


def _attention(timm_name: str, fixed_input_size: bool = True, size_divisor: int = 1) -> TimmSpec:
    return TimmSpec(timm_name, convolutional=False, fixed_input_size=fixed_input_size, size_divisor=size_divisor)


TIMM_BACKBONES: dict[str, TimmSpec] = {
    **{name: TimmSpec(name, classic=True) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    "mobilenetv2": TimmSpec("mobilenetv2_100"),
    **{f"mobilenetv3_{size}": TimmSpec(f"mobilenetv3_{size}_100") for size in ("small", "large")},
    **{f"efficientnet_{size}": TimmSpec(f"efficientnet_{size}") for size in ("b0", "b1", "b2")},
    # Only the tf_ ports of EfficientNetV2 have published weights.
    **{f"efficientnetv2_{size}": TimmSpec(f"tf_efficientnetv2_{size}") for size in ("s", "m", "l")},
    "tf_efficientnet_lite0": TimmSpec("tf_efficientnet_lite0"),
    **{f"convnext_{size}": TimmSpec(f"convnext_{size}") for size in ("tiny", "small", "base", "large")},
    **{f"convnextv2_{size}": TimmSpec(f"convnextv2_{size}") for size in ("tiny", "base")},
    **{f"regnety_{size}": TimmSpec(f"regnety_{size}") for size in ("004", "008", "016", "032", "080", "160")},
    **{f"densenet{depth}": TimmSpec(f"densenet{depth}") for depth in (121, 169, 201)},
    "maxvit_tiny": _attention("maxvit_tiny_tf_224", size_divisor=32),
    **{f"vit_{size}": _attention(f"vit_{size}_patch16_224", size_divisor=16) for size in ("tiny", "small", "base")},
    **{f"dinov2_{size}": _attention(f"vit_{size}_patch14_dinov2", size_divisor=14) for size in ("small", "base")},
    **{f"swin_{size}": _attention(f"swin_{size}_patch4_window7_224") for size in ("tiny", "small", "base")},
    "swinv2_tiny": _attention("swinv2_tiny_window8_256"),
    **{
        f"efficientvim_{size}": _attention(f"efficientvim_{size}", fixed_input_size=False)
        for size in ("m1", "m2", "m3", "m4")
    },
    # Made for 1024 px, where its weights fit; other sizes interpolate its position embeddings as they run.
    "sam_base": _attention("samvit_base_patch16", fixed_input_size=False, size_divisor=16),
}


def timm_spec(name: str) -> TimmSpec | None:
    """The line of the table for a name; for timm/<any name> one made from what timm knows about it, None if nothing."""
    if not name.startswith(ANY):
        return TIMM_BACKBONES.get(name)
    timm_name = name.removeprefix(ANY)
    if not timm.is_model(timm_name):
        return None
    config = timm.get_pretrained_cfg(timm_name)
    return TimmSpec(timm_name, convolutional=False, fixed_input_size=bool(config and config.fixed_input_size))


class TimmBackbone(BaseVisionBackbone):
    """A timm model without its head, read at its four coarsest levels.

    name: what the user calls it, for errors.
    image_size matters to families that are tied to it (Swin, ViT, MaxViT); others take any size.
    weights: True, False, or a mapping name → tensor already read from a file.

    Fewer than four levels are filled up: maps of one stride by a simple feature pyramid, others by pooling the
    coarsest. A family that timm_blocks.py does not know runs as a single block. One that is not in the table is tried
    on an image when it is built; ModelError says why it does not run.
    """

    def __init__(
        self,
        name: str,
        spec: TimmSpec,
        weights: bool | Mapping[str, Tensor] = False,
        in_channels: int = 3,
        feature_dim: int | None = None,
        drop_path: float = 0.0,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        padded = (_round_up(image_size[0], spec.size_divisor), _round_up(image_size[1], spec.size_divisor))
        body = _create(name, spec, weights, in_channels, drop_path, padded)
        levels = _Levels.of(body, name)
        pretrained = body.pretrained_cfg
        super().__init__(
            levels.channels,
            levels.strides,
            feature_dim,
            in_channels,
            image_size,
            pretrained["mean"],
            pretrained["std"],
        )
        self.name, self.spec = name, spec
        self.fixed_input_size, self.size_divisor = spec.fixed_input_size, spec.size_divisor
        self.classic, self.prefers_channels_last = spec.classic, spec.convolutional
        self.features, self.pooled_levels = levels.features, levels.pooled
        self.pyramid = SimplePyramid(levels.channels[0]) if levels.single else None
        _prune(body, self.features, levels.single)
        use_window_kernels(body)
        self.body = body
        self._grids: dict[tuple[int, ...], list[CellGrid]] = {}
        if name.startswith(ANY):
            self._try()

    def _try(self) -> None:
        """One image of the size it is built for: what is not in the table may not do as timm says it does."""
        size = "×".join(map(str, self.image_size))
        was_training = self.training
        x = torch.zeros(1, self.in_channels, *self.image_size, device=next(self.parameters()).device)
        try:
            with torch.no_grad():
                maps = self.eval().forward_features(x)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ModelError(f"'{self.name}' does not run on {size} images: {reason}") from None
        self.train(was_training)
        found = [y.shape[1] for y in maps]
        if found != self.feature_channels:
            raise ModelError(f"'{self.name}' gives maps of {found} channels where timm says {self.feature_channels}")

    def blocks(self, x: Tensor) -> list[Block]:
        self._check_size(x)
        padded = self._pad(x)
        parts = parts_of(self.body, padded)
        if parts is not None and padded is not x:
            parts.insert(0, Part("pad", self._pad, ()))
        blocks = self._taps(parts) if parts is not None else [self._whole()]
        blocks += [Block(f"pool.{i}", _pool_coarsest) for i in range(self.pooled_levels)]
        side, stride = max(x.shape[2:]), self.feature_strides[-1]
        if not self.training or len(x) > 1 or side >= 2 * stride:
            return blocks
        # One image whose coarsest map is a single value has no variance to normalise by. Above the stride it is one
        # only where the family rounds sizes down.
        context = running_statistics if side <= stride else training_on_one_value
        return [_within(partial(context, self.body), step) for step in blocks]

    def global_attention(self, x: Tensor) -> GlobalAttention | None:
        self._check_size(x)
        padded = self._pad(x)
        weights = attention_weights(self.body, padded)
        if not weights:
            return None
        grid = self.body.patch_embed.dynamic_feat_size(tuple(padded.shape[2:]))
        return GlobalAttention(
            weights, self.body.num_prefix_tokens, tuple(grid), self.body.feature_info[0]["reduction"]
        )

    def cell_grids(self, size: Sequence[int]) -> list[CellGrid]:
        """Followed through the network once a size: paddings may depend on it."""
        key = tuple(size)
        if key not in self._grids:
            shape = (1, self.in_channels, *key)
            self._grids[key] = trace_cells(self, self.forward_features, shape, self.feature_strides)
        return self._grids[key]

    def _check_size(self, x: Tensor) -> None:
        """ModelError for images of another size than it is built for, which are too small or to which it is tied."""
        size = tuple(x.shape[2:])
        if self.fixed_input_size:
            self.refuse_other_sizes(x)
        elif size != self.image_size:
            refuse_unfit_size(
                self.name, size, lambda size: TimmBackbone(self.name, self.spec, image_size=(size[0], size[1]))
            )

    def _pad(self, x: Tensor) -> Tensor:
        bottom, right = (_round_up(side, self.size_divisor) - side for side in x.shape[2:])
        return nn.functional.pad(x, (0, right, 0, bottom)) if bottom or right else x

    def new_layers(self) -> list[nn.Module]:
        return [*super().new_layers(), *([] if self.pyramid is None else [self.pyramid])]

    def _taps(self, parts: list[Part]) -> list[Block]:
        """Blocks up to the last level, a level leaving where its feature is; or into the simple pyramid."""
        last = max(i for i, part in enumerate(parts) if part.feature in self.features)
        if self.pyramid is not None:
            blocks = [part.as_block() for part in parts[: last + 1]]
            blocks.append(block("map", parts[last].tap, modules=parts[last].tap_modules))
            return blocks + self.pyramid.blocks()
        return [
            part.as_block(tapped=part.feature in self.features, last=i == last)
            for i, part in enumerate(parts[: last + 1])
        ]

    def _whole(self) -> Block:
        """All of a body whose parts are not known, as one block."""
        return Block(self.name, self._forward_intermediates, (self.body, *(self.pyramid or ())))

    def _forward_intermediates(self, state: State) -> State:
        single = self.pyramid is not None
        maps = self.body.forward_intermediates(
            state.current(), indices=self.features, norm=single, intermediates_only=True, output_fmt="NCHW"
        )
        if self.pyramid is not None:
            return run_plainly(self.pyramid.blocks(), State(maps[-1]))
        return State(levels=tuple(maps))


def _round_up(side: int, size_divisor: int) -> int:
    return -(-side // size_divisor) * size_divisor


def _pool_coarsest(state: State) -> State:
    coarser = nn.functional.max_pool2d(state.levels[-1], 2, ceil_mode=True)
    return state._replace(levels=(*state.levels, coarser))


def _within(context: Callable[[], AbstractContextManager[None]], step: Block) -> Block:
    def run(state: State) -> State:
        with context():
            return step.run(state)

    return step._replace(run=run)


@dataclass(frozen=True)
class _Levels:
    """features: indices into feature_info, finest first (STEM: the map inside the stem); channels and strides: of all
    levels. single: all of one stride, so that a pyramid is built on the last; pooled: how many are added by pooling."""

    features: list[int]
    channels: list[int]
    strides: list[float]
    single: bool = False
    pooled: int = 0

    @classmethod
    def of(cls, body: TimmModel, name: str) -> _Levels:
        info = getattr(body, "feature_info", None)
        if not info or not hasattr(body, "forward_intermediates"):
            raise ModelError(f"'{name}' cannot be a backbone: timm gives no feature maps for it")
        strides = [entry["reduction"] for entry in info]
        if len(set(strides)) == 1:
            width, patch = width_after_norm(body), strides[0]
            return cls(
                [len(info) - 1],
                [width] * LEVELS,
                [_exact(patch * scale) for scale in SimplePyramid.SCALES],
                single=True,
            )
        maps = [(i, entry["num_chs"], entry["reduction"]) for i, entry in enumerate(info)]
        stem = stem_level(body)
        maps = ([(STEM, *stem)] if stem else []) + maps
        missing = max(LEVELS - len(maps), 0)
        features, channels, strides = (list(column) for column in zip(*maps[-LEVELS:]))
        channels += channels[-1:] * missing
        strides += [strides[-1] * 2 ** (i + 1) for i in range(missing)]
        return cls(features, channels, strides, pooled=missing)


def _exact(stride: float) -> float:
    """4 instead of 4.0; 3.5 as it is."""
    return int(stride) if stride == int(stride) else stride


def _prune(body: TimmModel, features: list[int], single: bool) -> None:
    """Drop the classifier and what comes after the last level; the norm behind a map of one stride stays."""
    try:
        body.prune_intermediate_layers([i for i in features if i != STEM], prune_norm=not single, prune_head=True)
    except (AttributeError, NotImplementedError) as error:
        raise ModelError(f"timm cannot cut the head off this model: {error}") from None
    drop_unused(body)


class _CreateOptions(TypedDict):
    """Arguments of timm.create_model that it hands on to the architecture."""

    in_chans: int
    drop_path_rate: NotRequired[float]
    img_size: NotRequired[tuple[int, int]]


def _create(
    name: str,
    spec: TimmSpec,
    weights: bool | Mapping[str, Tensor],
    in_channels: int,
    drop_path: float,
    size: tuple[int, int],
) -> TimmModel:
    # Said even where it is none: some families have a default of their own.
    options: _CreateOptions = {"in_chans": in_channels, "drop_path_rate": drop_path}
    if spec.fixed_input_size:
        options["img_size"] = size
    if weights is True:
        weights = find_weights(timm.get_pretrained_cfg(spec.timm_name), name)
    try:
        return _create_from(name, spec.timm_name, weights, options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise ModelError(f"{name} cannot be built like this: {error}") from None
    if drop_path:
        raise ModelError(f"{name} has no stochastic depth: set MODEL.drop_path to 0, it is {drop_path:g}")
    del options["drop_path_rate"]
    return _create_from(name, spec.timm_name, weights, options)


def _create_from(name: str, timm_name: str, weights: bool | Mapping[str, Tensor], options: _CreateOptions) -> TimmModel:
    if isinstance(weights, bool):
        return timm.create_model(timm_name, pretrained=False, num_classes=0, **options)
    return _create_with_weights(name, timm_name, dict(weights), options)


# Names of the last layer in files that timm's loaders convert, where they differ from the model's own.
_CONVERTED_CLASSIFIERS = ("head.fc", "head", "fc", "classifier", "heads.0")


def _create_with_weights(name: str, timm_name: str, weights: dict[str, Tensor], options: _CreateOptions) -> TimmModel:
    """Let timm convert and load the weights; as many classes as the file has make its loading strict."""
    published = timm.get_pretrained_cfg(timm_name) or PretrainedCfg()
    errors: list[tuple[int, Exception]] = []
    for classes in _possible_classes(weights, published):
        overlay = {"state_dict": dict(weights), "num_classes": classes}
        try:
            return timm.create_model(
                timm_name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **options
            )
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            errors.append((classes, error))
    classes, first = errors[0]
    expected = timm.create_model(timm_name, pretrained=False, num_classes=classes, **options).state_dict()
    raise ModelError(f"these weights do not fit {name}: {_difference(expected, weights, first)}")


def _possible_classes(weights: Mapping[str, Tensor], published: PretrainedCfg) -> list[int]:
    """How many classes a file's classifier may have, the likeliest first.

    Its rows, where a layer has the classifier's name: timm's own for the architecture, or another that timm converts.
    Otherwise the file has no classifier, or one under a name that only timm's conversion knows, which is then that of
    the published weights.
    """
    own = published.classifier or ()
    names = [*([own] if isinstance(own, str) else own), *_CONVERTED_CLASSIFIERS]
    layers = [weights[f"{layer}.weight"] for layer in names if f"{layer}.weight" in weights]
    found = next((len(weight) for weight in layers if weight.ndim in (2, 4)), None)  # 4: a 1×1 convolution
    return [found] if found is not None else list(dict.fromkeys([0, published.num_classes]))


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], error: Exception) -> str:
    """Both sides of a mismatch: names that only one has, shapes that differ; else the loader's own words."""
    lacking = [key for key in expected if key not in found]
    beyond = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    parts = [
        f"{len(rows)} {what} ({', '.join(_one_of_each(rows)[:4])}, …)"
        for rows, what in (
            (lacking, "tensors of the network are not in the file"),
            (beyond, "tensors of the file are not in the network"),
            (shapes, "tensors have another shape"),
        )
        if rows
    ]
    return "; ".join(parts) or " ".join(str(error).split())[:600]


def _one_of_each(names: list[str]) -> list[str]:
    """The first name under each top-level module: 'conv1.weight', 'layer1.0.conv1.weight', …"""
    return list({name.partition(".")[0]: name for name in reversed(names)}.values())[::-1]
