"""HybridMedNet: backbone → (FPN) → attention → fusion → head."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs.default_config import Config, ModelSettings
from configs.errors import ModelError, WeightsUnavailableError
from configs.section import settled
from models.attention import CBAMMaps, PyramidAttention, TokenMaps, create_attention
from models.backbones import BaseVisionBackbone, create_backbone
from models.builder import network_arguments
from models.fpn import FeaturePyramidNetwork
from models.fusion import DynamicFusion
from models.heads import HierarchicalHead, MultiLabelHead
from models.one_study import OneStudy
from models.state_dicts import fit_state_dict
from models.studies import NUMERIC, StudyMixer
from models.view_backbones import blocks_by_kind, kinds_of_images, levels_by_kind
from utils.batch import Inputs, Logits
from utils.blocks import Block, State
from utils.evaluation_mode import evaluating
from utils.gradient_checkpointing import PLANNED_BATCH, Checkpointable, checkpointing_options
from utils.gradient_checkpointing.plan import Plan

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Of names in a state dict: what joins views and adds a table, and backbones of kinds of views.
STUDY, VIEW_BACKBONES = "classifier.study.", "view_backbones."

# The previous release fused at stride 4, where each convolution costs sixteen times as much as at 16; finer maps are
# averaged down before it.
CLASSIC_FUSION_STRIDE, MODERN_FUSION_STRIDE = 4, 16


class LoadedKeys(Protocol):
    """What torch's load_state_dict returns."""

    @property
    def missing_keys(self) -> list[str]: ...
    @property
    def unexpected_keys(self) -> list[str]: ...


class Observed(NamedTuple):
    """What a network says of B studies with M images, and the maps that it is made of.

    fused: [M, C, *cells], from which the logits follow. attended: a map over places per level, see
    PyramidAttention.observes.
    """

    logits: Logits
    fused: Tensor
    attended: tuple[Tensor, ...]


class CellCentres(NamedTuple):
    """The pixels that cells are centred on: float64 [cells] per axis, of each level, and of the fused map."""

    levels: list[list[Tensor]]
    fused: list[Tensor]


class HybridMedNet(Checkpointable, nn.Module):
    """A classifier of medical images or volumes, built from the MODEL section of a Config.

    settings: that section; or a whole Config, which says the other arguments too, and in which null is as
        `Config.complete` says: 14 classes of 224 × 224 pixels.
    image_size: (height, width) or (depth, height, width) of the input.
    planned_batch, planned_autocast: the micro-batch and the type of mixed precision (None: float32) that
        MODEL.gradient_checkpointing is planned for.

    MODEL.init_from is not read here but by `create_model`, which records the outcome in `started_from`.

    forward: Inputs of B studies, or a Tensor [B, in_channels, *spatial], which stands for `Inputs.of_images` of it
    → logits [B, num_classes]; with MODEL.hierarchical Logits(coarse [B, num_coarse_classes], fine [B, num_classes]).
    spatial is (H, W), or (D, H, W) with a backbone for volumes. Several views and a table are joined in the head, see
    StudyMixer, by a network that MODEL.views and MODEL.table give one; all others raise ModelError for them.
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
        self._level_cells: list[tuple[int, ...]] | None = None
        self.lacking_weights = ""  # why the published weights are not there
        self.backbone = self._create_backbone(settings)
        separate = settings.views.backbones == "separate" and settings.views.aggregator is not None
        kinds = len(settled(settings.view_kinds, "MODEL.view_kinds")) if separate else 1
        # Of the second kind of view and those after it; all begin with the first one's weights.
        self.view_backbones = nn.ModuleList(copy.deepcopy(self.backbone) for _ in range(kinds - 1))
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
        self.fusion_channels = settings.fusion_channels
        # What numbers in weights of studies stand for, by the names that the settings have.
        self.study_parts = {"view_kinds": settings.view_kinds, "table_columns": settings.table_columns}
        self.classifier = _create_head(settings)
        self.classifier.study = _create_mixer(settings, spatial_dims)  # last: other weights begin as without it
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
        image, inputs = self._images_and_study(x)
        if image.shape[0] == 0 and inputs is not None:
            return self.classifier(self._no_map(image), inputs)
        if self.recomputes():
            logits = self.run_blocks(self.blocks(x), image).logits
            assert logits is not None
            return logits
        return self.forward_head(self.forward_features(image, inputs), inputs)

    def forward_features(self, x: Tensor, inputs: Inputs | None = None) -> list[Tensor]:
        """The backbone's pyramid: [M, in_channels, *spatial] → levels [M, C_i, *spatial_i], finest first.

        inputs: the studies of these images, where each kind of view has a backbone of its own; None: the first one's.
        """
        if inputs is None or not len(self.view_backbones):
            return self.backbone.forward_features(x)
        return levels_by_kind([self.backbone, *self.view_backbones], x, kinds_of_images(inputs))

    def forward_fused(self, features: list[Tensor]) -> Tensor:
        """That pyramid through FPN, attention and fusion: levels → [B, fusion_channels, *spatial_t]."""
        return self.fusion(self.attention(self.fpn(features)))

    def forward_head(self, features: list[Tensor], inputs: Inputs | None = None) -> Tensor | Logits:
        """The rest of `forward`, from the backbone's pyramid on. inputs: the studies; None: each image is one."""
        return self.classifier(self.forward_fused(features), inputs)

    def view_weights(self, inputs: Inputs) -> Tensor:
        """How much each view counts: [B, V], 0 for absent ones, rows adding up to 1 where there is one.

        By the very projections that `forward` uses, in evaluation mode and without gradients; so is `table_weights`.
        Raises ModelError where the network does not join views.
        """
        return self._ask_study(inputs, StudyMixer.view_weights, "MODEL.views.aggregator")

    def table_weights(self, inputs: Inputs) -> Tensor | None:
        """How much attention each column is paid: [B, F], likewise; None where MODEL.table.fusion has no attention."""
        return self._ask_study(inputs, StudyMixer.table_weights, "MODEL.table.fusion")

    def _ask_study(self, inputs: Inputs, question: Callable[[StudyMixer, Tensor, Tensor, Inputs], T], key: str) -> T:
        study = self.classifier.study
        if study is None:
            raise ModelError(f"this model takes one image a study and no table: {key} is null")
        with evaluating(self), torch.no_grad():
            fused = self._fused_of(inputs)
            return question(study, self.classifier.pooled(fused), fused, inputs)

    def one_study(self, inputs: Inputs) -> OneStudy:
        """A study, whose images are looked at now and never again, to be asked about. Raises ModelError likewise."""
        if self.classifier.study is None:
            raise ModelError("this model takes one image a study and no table")
        with evaluating(self), torch.no_grad():
            return OneStudy(self.classifier, self._fused_of(inputs), inputs)

    def _fused_of(self, inputs: Inputs) -> Tensor:
        image = inputs.image
        return self.forward_fused(self.forward_features(image, inputs)) if image.shape[0] else self._no_map(image)

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

    def observe(self, x: Tensor | Inputs) -> Observed:
        """What `forward` gives, and the maps that it is made of, with gradients, checkpointed as ever.

        Bit for bit, where no head has attention over views or columns, which another kernel computes here.
        """
        if self.lacking_weights:
            raise WeightsUnavailableError(self.lacking_weights)
        image, inputs = self._images_and_study(x)
        if image.shape[0] == 0 and inputs is not None:
            fused = self._no_map(image)
            return Observed(Logits.of(self.classifier(fused, inputs)), fused, ())
        state = self.run_blocks(self.blocks(x, observed=True), image)
        return Observed(Logits.of(state.logits), state.current(), state.attended)

    def observe_fused(self, inputs: Inputs) -> Observed:
        """As `observe`, in the mode the network is in; gradients reach back to the fused map and no further."""
        image, study = self._images_and_study(inputs)
        with torch.no_grad():
            maps = self.forward_fused(self.forward_features(image, study)) if image.shape[0] else self._no_map(image)
        fused = maps.detach().requires_grad_()
        with torch.enable_grad():
            return Observed(Logits.of(self.classifier(fused, study)), fused, ())

    def cell_centres(self, size: Sequence[int], levels: Sequence[Sequence[int]]) -> CellCentres:
        """Which pixels the cells of the levels, of so many cells each, and of the fused map are centred on, for images
        of `size`.
        """
        found = [grid.centres(cells) for grid, cells in zip(self.backbone.cell_grids(size), levels, strict=True)]
        return CellCentres(found, self.fusion.centres(found))

    def level_cells(self) -> list[tuple[int, ...]]:
        """How many cells each level has for images of `image_size`; found out once, by a pass without values."""
        if self._level_cells is None:
            with evaluating(self), torch.no_grad():
                parameter = next(self.backbone.parameters())
                image = parameter.new_zeros(1, self.in_channels, *self.image_size)
                self._level_cells = [tuple(level.shape[2:]) for level in self.backbone.forward_features(image)]
        return self._level_cells

    def blocks(self, x: Tensor | Inputs, observed: bool = False) -> list[Block]:
        """What `forward` does, as a flat list that gradient checkpointing can cut anywhere: images of x → logits.

        The last block, which is never recomputed, knows which of them belong together, and the table. observed: what
        `observe` is made of is left in the state.
        """
        image, inputs = self._images_and_study(x)
        neck = self.fpn.steps() if isinstance(self.fpn, FeaturePyramidNetwork) else []
        steps = [*neck, *self.attention.steps(observed), *self.fusion.steps()]
        classify = Block("classifier", partial(self._classify, inputs, observed), (self.classifier,))
        if not len(self.view_backbones):
            return [*self.backbone.blocks(image), *steps, classify]
        kinds = image.new_zeros(image.shape[0], dtype=torch.int64) if inputs is None else kinds_of_images(inputs)
        return [*blocks_by_kind([self.backbone, *self.view_backbones], image, kinds), *steps, classify]

    def summary(self) -> str:
        """A line for the log: its size, what is recomputed, whose weights it started from."""
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        parts = [f"{millions:.1f} M parameters", self.checkpointing_plan() or "no gradient checkpointing"]
        return ", ".join(map(str, [*parts, self.started_from] if self.started_from else parts))

    def checkpointing_plan(self) -> Plan | None:
        """Its own, else the backbone's: that is of the first blocks, and the others are kept."""
        return self._plan or self.backbone.checkpointing_plan()

    def enable_gradient_checkpointing(
        self,
        segments: int | None = None,
        fraction: float = 1.0,
        memory_budget_gb: float | None = None,
        batch_size: int = PLANNED_BATCH,
        autocast: torch.dtype | None = None,
    ) -> Plan:
        """See Checkpointable. Raises ModelError for separate backbones, too: how many images each gets is not known."""
        if len(self.view_backbones):
            raise ModelError("gradient checkpointing is not planned for MODEL.views.backbones 'separate'")
        return super().enable_gradient_checkpointing(segments, fraction, memory_budget_gb, batch_size, autocast)

    def disable_gradient_checkpointing(self) -> None:
        super().disable_gradient_checkpointing()
        self.backbone.disable_gradient_checkpointing()

    def _classify(self, inputs: Inputs | None, observed: bool, state: State) -> State:
        if not observed:
            return State(logits=self.classifier(state.current(), inputs))
        with sdpa_kernel(SDPBackend.MATH):  # maps are gradients, which are learnt from: no other kernel has second ones
            return state._replace(logits=self.classifier(state.current(), inputs))

    def _images_and_study(self, x: Tensor | Inputs) -> tuple[Tensor, Inputs | None]:
        """The images, and how they make studies; None where each is one."""
        if not isinstance(x, Inputs):
            return x, None
        return (x.single_images(), None) if self.classifier.study is None else (x.image, x)

    def _no_map(self, image: Tensor) -> Tensor:
        """The fused map of no image at all: studies of tables alone."""
        return image.new_zeros(0, self.fusion_channels, *[1] * self.backbone.spatial_dims)

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


def _create_mixer(settings: ModelSettings, spatial_dims: int) -> StudyMixer | None:
    """None where a study is one image."""
    views, table = settings.views, settings.table
    if views.aggregator is None and table.fusion is None:
        return None
    kinds = 1 if views.aggregator is None else len(settled(settings.view_kinds, "MODEL.view_kinds"))
    columns = {} if table.fusion is None else settled(settings.table_columns, "MODEL.table_columns")
    return StudyMixer(
        settings.fusion_channels,
        spatial_dims,
        views.aggregator,
        kinds,
        table.fusion,
        [NUMERIC if kind == "numeric" else kind for kind in columns.values()],
        views.width,
        table.width,
        table.rank,
    )


def _create_head(settings: ModelSettings) -> MultiLabelHead | HierarchicalHead:
    channels, classes = settings.fusion_channels, settled(settings.num_classes, "MODEL.num_classes")
    if settings.hierarchical:
        coarse = settled(settings.num_coarse_classes, "MODEL.num_coarse_classes")
        return HierarchicalHead(channels, coarse, classes, settings.dropout, settings.norm)
    return MultiLabelHead(channels, classes, settings.dropout, settings.norm)
