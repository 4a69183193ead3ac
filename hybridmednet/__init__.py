"""HybridMedNet from Python: `import hybridmednet`, in a clone of the repository or after `pip install` of it.

What stands here is what others may rely on; each name is read from its module when it is first asked for, so that
`import hybridmednet` itself takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for those who look names up without running anything
    from configs.default_config import Config as Config
    from configs.errors import HybridMedNetError as HybridMedNetError
    from hybridmednet.pretrained import Prediction as Prediction
    from hybridmednet.pretrained import Pretrained as Pretrained
    from hybridmednet.pretrained import from_pretrained as from_pretrained
    from hybridmednet.recipe import preset as preset
    from hybridmednet.recipe import train as train
    from hybridmednet.trainer import Trainer as Trainer
    from models.backbones import create_backbone as create_backbone
    from models.backbones import list_backbones as list_backbones
    from models.hybrid_med_net import HybridMedNet as HybridMedNet
    from utils.batch import Batch as Batch
    from utils.batch import Inputs as Inputs
    from utils.batch import Logits as Logits
    from utils.batch import Targets as Targets
    from utils.gradient_checkpointing import Checkpointable as Checkpointable
    from utils.gradient_checkpointing import CheckpointedSequential as CheckpointedSequential
    from utils.gradient_checkpointing import apply_gradient_checkpointing as apply_gradient_checkpointing
    from utils.gradient_checkpointing import checkpoint_sequential as checkpoint_sequential
    from utils.gradient_checkpointing import estimate_memory_savings as estimate_memory_savings
    from utils.gradient_checkpointing import remove_gradient_checkpointing as remove_gradient_checkpointing
    from utils.log import setup_logging as setup_logging
    from utils.runs.control import Control as Control
    from utils.runs.folder import RunFolder as RunFolder

# Name → the module that it stands in.
_NAMES = {
    "Batch": "utils.batch",
    "Checkpointable": "utils.gradient_checkpointing",
    "CheckpointedSequential": "utils.gradient_checkpointing",
    "Config": "configs.default_config",
    "Control": "utils.runs.control",
    "HybridMedNet": "models.hybrid_med_net",
    "HybridMedNetError": "configs.errors",
    "Inputs": "utils.batch",
    "Logits": "utils.batch",
    "Prediction": "hybridmednet.pretrained",
    "Pretrained": "hybridmednet.pretrained",
    "RunFolder": "utils.runs.folder",
    "Targets": "utils.batch",
    "Trainer": "hybridmednet.trainer",
    "apply_gradient_checkpointing": "utils.gradient_checkpointing",
    "checkpoint_sequential": "utils.gradient_checkpointing",
    "create_backbone": "models.backbones",
    "estimate_memory_savings": "utils.gradient_checkpointing",
    "from_pretrained": "hybridmednet.pretrained",
    "list_backbones": "models.backbones",
    "preset": "hybridmednet.recipe",
    "remove_gradient_checkpointing": "utils.gradient_checkpointing",
    "setup_logging": "utils.log",
    "train": "hybridmednet.recipe",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module 'hybridmednet' has no attribute '{name}'; there are: {', '.join(_NAMES)}")
    found = getattr(import_module(_NAMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
