"""Networks: `HybridMedNet(config)` and the backbones it stands on."""

from models.backbones import check_backbone, create_backbone, list_backbones
from models.hybrid_med_net import HybridMedNet

__all__ = ["HybridMedNet", "check_backbone", "create_backbone", "list_backbones"]
