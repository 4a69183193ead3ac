"""HybridMedNet: backbone → (FPN) → attention → fusion → head."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol, overload

import torch
from torch import Tensor, nn

from configs.default_config import Config, ModelSettings
from configs.errors import ModelError, WeightsUnavailableError
from configs.section import settled
from models.attention import CBAMMaps, PyramidAttention, TokenMaps, create_attention
from models.backbones import BaseVisionBackbone, create_backbone
from models.builder import network_arguments
from models.fpn import FeaturePyramidNetwork
from models.fusion import DynamicFusion
from models.heads import HierarchicalHead, MultiLabelHead
from models.state_dicts import fit_state_dict
from utils.batch import Inputs, Logits
from utils.blocks import Block, State
from utils.evaluation_mode import evaluating
from utils.gradient_checkpointing import PLANNED_BATCH, Checkpointable, checkpointing_options
from utils.gradient_checkpointing.plan import Plan

logger = logging.getLogger(__name__)

# The previous release fused at stride 4, where each convolution costs sixteen times as much as at 16; finer maps are
# averaged down before it.
CLASSIC_FUSION_STRIDE, MODERN_FUSION_STRIDE = 4, 16


class LoadedKeys(Protocol):
    """What torch's load_state_dict returns."""

    @property
    def missing_keys(self) -> list[str]: ...
    @property
    def unexpected_keys(self) -> list[str]: ...


class HybridMedNet(Checkpointable, nn.Module):
    """A classifier of medical images or volumes, built from the MODEL section of a Config.

    settings: that section; or a whole Config, which says the other arguments too, and in which null is as
        `Config.complete` says: 14 classes of 224 × 224 pixels.
    image_size: (height, width) or (depth, height, width) of the input.
    planned_batch, planned_autocast: the micro-batch and the type of mixed precision (None: float32) that
        MODEL.gradient_checkpointing is planned for.

    MODEL.init_from is not read here but by `create_model`, which records the outcome in `started_from`.

    forward: Inputs of one image a study and no table, or a Tensor, which stands for `Inputs.of_images` of it:
    [B, in_channels, *spatial] → logits [B, num_classes]; with MODEL.hierarchical
    Logits(coarse [B, num_coarse_classes], fine [B, num_classes]). spatial is (H, W), or (D, H, W) with a backbone
    for volumes. Raises ModelError for several views or a table.
    Where MODEL.pretrained asks for pretrained weights that are not available, the network waits for those of a file:
    until `load_state_dict` has brought them, `forward` raises WeightsUnavailableError (`create_model` does so at once).
    Raises ModelError where the backbone cannot be built, or cannot be checkpointed as asked.
    """

    takes_inputs = True  # see utils.batch.call_model

    @overload
    def __init__(self, settings: Config) -> None: ...

    @overload
    def __init__(
        self,
        settings: ModelSettings,
        image_size: Sequence[int],
        planned_batch: int = PLANNED_BATCH,
        planned_autocast: torch.dtype | None = None,
    ) -> None: ...

    def __init__(
        self,
        settings: ModelSettings | Config,
        image_size: Sequence[int] | None = None,
        planned_batch: int = PLANNED_BATCH,
        planned_autocast: torch.dtype | None = None,
    ) -> None:
        if isinstance(settings, Config):
            settings, image_size, planned_batch, planned_autocast = network_arguments(settings)
        if image_size is None:
            raise ModelError("HybridMedNet(settings) needs image_size: (height, width) or (depth, height, width)")
        super().__init__()
        self.started_from = ""
        self.removed_channels: list = []  # by structured pruning, for checkpoints
        self.in_channels, self.image_size = settings.in_channels, tuple(image_size)
        self.lacking_weights = ""  # why the published weights are not there
        self.backbone = self._create_backbone(settings)
        # norm is for fusion and head: the FPN has none, and a backbone keeps what its weights were trained with.
        spatial_dims, norm = self.backbone.spatial_dims, settings.norm
        self.attention_mode = attention_mode(settings, self.backbone.classic)
        classic = self.backbone.classic and self.attention_mode in ("cbam", "none")
        channels = self.backbone.feature_channels
        use_fpn = classic if settings.fpn == "auto" else settings.fpn
        self.fpn = FeaturePyramidNetwork(channels, settings.fpn_channels, spatial_dims) if use_fpn else nn.Identity()
        channels = [settings.fpn_channels] * len(channels) if use_fpn else channels
        self.attention: PyramidAttention = create_attention(
            self.attention_mode, channels, settings.num_heads, spatial_dims
        )
        level = self._fusion_level(settings, classic)
        self.fusion = DynamicFusion(channels, settings.fusion_channels, level, spatial_dims, norm)
        self.classifier = _create_head(settings)
        if settings.gradient_checkpointing.enabled:
            options = checkpointing_options(settings.gradient_checkpointing)
            self.enable_gradient_checkpointing(**options, batch_size=planned_batch, autocast=planned_autocast)

    def _create_backbone(self, settings: ModelSettings) -> BaseVisionBackbone:
        make = partial(
            create_backbone,
            in_channels=settings.in_channels,
            drop_path=settings.drop_path,
            image_size=self.image_size,
        )
        try:
            return make(settings.backbone, settings.pretrained)
        except WeightsUnavailableError as error:
            self.lacking_weights = str(error)
            logger.warning("%s The network is of no use before load_state_dict has brought other weights", error)
            return make(settings.backbone, False)

    def forward(self, x: Tensor | Inputs) -> Tensor | Logits:
        if self.lacking_weights:
            raise WeightsUnavailableError(self.lacking_weights)
        image = x.single_images() if isinstance(x, Inputs) else x
        if self.recomputes():
            logits = self.run_blocks(self.blocks(image), image).logits
            assert logits is not None
            return logits
        return self.forward_head(self.forward_features(image))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The backbone's pyramid: [B, in_channels, *spatial] → levels [B, C_i, *spatial_i], finest first."""
        return self.backbone.forward_features(x)

    def forward_fused(self, features: list[Tensor]) -> Tensor:
        """That pyramid through FPN, attention and fusion: levels → [B, fusion_channels, *spatial_t]."""
        return self.fusion(self.attention(self.fpn(features)))

    def forward_head(self, features: list[Tensor]) -> Tensor | Logits:
        """The rest of `forward`, from the backbone's pyramid on."""
        return self.classifier(self.forward_fused(features))

    def get_attention_maps(self, x: Tensor) -> Mapping[int, CBAMMaps | TokenMaps]:
        """The weights of the attention between backbone and fusion for x, by level (0 the finest).

        CBAM: CBAMMaps. Multi-scale and cross-scale: TokenMaps. {} where MODEL.attention is none. They are computed in
        evaluation mode by the very projections that `forward` uses, without gradients; the network stays as it was.
        """
        with evaluating(self), torch.no_grad():
            return self.attention.attention_maps(self.fpn(self.forward_features(x)))

    def load_state_dict(
        self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False
    ) -> LoadedKeys:
        """torch's, for state dicts of the previous release too, and with prefixes that wrappers leave.

        Names and shapes are compared first: WeightsError (a RuntimeError) lists all differences and nothing is loaded.
        strict=False lets names differ, and returns which, but not shapes.
        """
        keys = super().load_state_dict(fit_state_dict(self.state_dict(), state_dict, strict), strict, assign)
        if not any(name.startswith("backbone.") for name in keys.missing_keys):
            self.lacking_weights = ""
        return keys

    def blocks(self, x: Tensor) -> list[Block]:
        """What `forward` does, as a flat list that gradient checkpointing can cut anywhere: x → logits."""
        neck = self.fpn.steps() if isinstance(self.fpn, FeaturePyramidNetwork) else []
        steps = [*neck, *self.attention.steps(), *self.fusion.steps()]
        return [*self.backbone.blocks(x), *steps, Block("classifier", self._classify, (self.classifier,))]

    def summary(self) -> str:
        """A line for the log: its size, what is recomputed, whose weights it started from."""
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        parts = [f"{millions:.1f} M parameters", self.checkpointing_plan() or "no gradient checkpointing"]
        return ", ".join(map(str, [*parts, self.started_from] if self.started_from else parts))

    def checkpointing_plan(self) -> Plan | None:
        """Its own, else the backbone's: that is of the first blocks, and the others are kept."""
        return self._plan or self.backbone.checkpointing_plan()

    def disable_gradient_checkpointing(self) -> None:
        super().disable_gradient_checkpointing()
        self.backbone.disable_gradient_checkpointing()

    def _classify(self, state: State) -> State:
        return State(logits=self.classifier(state.current()))

    def _fusion_level(self, settings: ModelSettings, classic: bool) -> int:
        """The level whose stride is nearest to the one asked for."""
        default = CLASSIC_FUSION_STRIDE if classic else MODERN_FUSION_STRIDE
        wanted: int = default if settings.fusion_stride == "auto" else settings.fusion_stride
        strides = self.backbone.feature_strides
        return min(range(len(strides)), key=lambda i: abs(strides[i] - wanted))


def attention_mode(settings: ModelSettings, classic: bool) -> str:
    """What `attention: auto` means: CBAM for classic ResNets, else as the two older switches say."""
    if settings.attention != "auto":
        return settings.attention
    if classic or not settings.use_modern_attention:
        return "cbam"
    return "cross_scale" if settings.use_cross_scale_attention else "multi_scale"


def _create_head(settings: ModelSettings) -> nn.Module:
    channels, classes = settings.fusion_channels, settled(settings.num_classes, "MODEL.num_classes")
    if settings.hierarchical:
        coarse = settled(settings.num_coarse_classes, "MODEL.num_coarse_classes")
        return HierarchicalHead(channels, coarse, classes, settings.dropout, settings.norm)
    return MultiLabelHead(channels, classes, settings.dropout, settings.norm)
