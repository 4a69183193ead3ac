"""HybridMedNet: backbone → (FPN) → attention → fusion → head."""

from __future__ import annotations

from torch import Tensor, nn

from configs.default_config import Config, ModelSettings
from models.attention import create_attention
from models.backbones import BaseVisionBackbone, create_backbone
from models.fpn import FeaturePyramidNetwork
from models.fusion import DynamicFusion
from models.heads import HierarchicalHead, MultiLabelHead

CLASSIC_FUSION_STRIDE, MODERN_FUSION_STRIDE = 4, 16


class HybridMedNet(nn.Module):
    """A medical-image classifier, built from the MODEL section of a Config.

    forward: pictures [B, in_channels, H, W] → logits [B, num_classes]; with MODEL.hierarchical
    (coarse logits [B, num_coarse_classes], logits [B, num_classes]).
    Raises ModelError where the backbone or its weights cannot be had.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        settings = config.MODEL
        self.backbone: BaseVisionBackbone = create_backbone(
            settings.backbone,
            settings.pretrained,
            settings.in_channels,
            drop_path=settings.drop_path,
            image_size=config.image_shape(),
        )
        self.attention_mode = attention_mode(settings, self.backbone.classic)
        classic = self.backbone.classic and self.attention_mode in ("cbam", "none")
        channels = self.backbone.feature_channels
        use_fpn = classic if settings.fpn == "auto" else settings.fpn
        self.fpn = FeaturePyramidNetwork(channels, settings.fpn_channels) if use_fpn else nn.Identity()
        channels = [settings.fpn_channels] * len(channels) if use_fpn else channels
        self.attention = create_attention(self.attention_mode, channels, settings.num_heads)
        self.fusion = DynamicFusion(channels, settings.fusion_channels, self._fusion_level(settings, classic))
        self.classifier = _create_head(settings)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.backbone.forward_features(x)
        features = self.fpn(features)
        features = self.attention(features)
        return self.classifier(self.fusion(features))

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
    channels, classes, dropout = settings.fusion_channels, settings.num_classes, settings.dropout
    if settings.hierarchical:
        return HierarchicalHead(channels, settings.num_coarse_classes, classes, dropout)
    return MultiLabelHead(channels, classes, dropout)
