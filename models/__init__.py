"""Networks: `HybridMedNet(config)`, the backbones it stands on by name, and each family of them as a class."""

from models.backbones import (
    BaseVisionBackbone,
    ConvNeXtBackbone,
    DenseNetBackbone,
    EfficientNetBackbone,
    EfficientNetV2Backbone,
    MaxViTBackbone,
    MobileNetBackbone,
    RegNetBackbone,
    ResNetBackbone,
    SwinTransformer2DBackbone,
    SwinTransformer3DBackbone,
    VisionMambaBackbone,
    ViTBackbone,
    backbone_dims,
    check_backbone,
    create_backbone,
    list_backbones,
)
from models.hybrid_med_net import HybridMedNet
from models.initial_weights import create_model, start_from
from models.saved_model import load_teacher
from utils.checkpoint.old_config import allow_old_config

__all__ = [
    "BaseVisionBackbone",
    "ConvNeXtBackbone",
    "DenseNetBackbone",
    "EfficientNetBackbone",
    "EfficientNetV2Backbone",
    "HybridMedNet",
    "MaxViTBackbone",
    "MobileNetBackbone",
    "RegNetBackbone",
    "ResNetBackbone",
    "SwinTransformer2DBackbone",
    "SwinTransformer3DBackbone",
    "ViTBackbone",
    "VisionMambaBackbone",
    "backbone_dims",
    "check_backbone",
    "create_backbone",
    "create_model",
    "list_backbones",
    "load_teacher",
    "start_from",
]

allow_old_config()  # torch.load(file of the previous release) after `import models`, as its guide says
