"""Networks: `HybridMedNet(config)`, the backbones it stands on by name, and each family of them as a class."""

from models.backbones import BaseVisionBackbone as BaseVisionBackbone
from models.backbones import backbone_dims as backbone_dims
from models.backbones import check_backbone as check_backbone
from models.backbones import create_backbone as create_backbone
from models.backbones import list_backbones as list_backbones
from models.backbones.named import *  # noqa: F403
from models.hybrid_med_net import HybridMedNet as HybridMedNet
from models.initial_weights import create_model as create_model
from models.initial_weights import start_from as start_from
from models.saved_model import load_teacher as load_teacher
from utils.checkpoint.old_config import allow_old_config

allow_old_config()  # torch.load(file of the previous release) after `import models`, as its guide says
