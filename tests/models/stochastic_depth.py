"""Which backbones have stochastic depth, by what timm says of their architectures."""

from functools import cache

import timm
import torch

from models.backbones.timm_backbones import TIMM_BACKBONES


@cache
def has_stochastic_depth(name: str) -> bool:
    """Whether timm builds the architecture with it; this project's own backbones all have it."""
    if name not in TIMM_BACKBONES:
        return True
    try:
        with torch.device("meta"):
            timm.create_model(TIMM_BACKBONES[name].timm_name, drop_path_rate=0.1)
    except TypeError as error:
        assert "drop_path_rate" in str(error)
        return False
    return True
