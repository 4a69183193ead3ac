"""All methods under one name and one signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from configs.errors import ExplanationError
from explain.attributions import ATTRIBUTION_METHODS, attribution_maps
from explain.cam import CAM_METHODS, class_activation_maps
from explain.network import Level, PyramidModel
from explain.rollout import attention_rollout


@dataclass(frozen=True)
class Method:
    """maps: (model, x, classes, level=…) → float32 [B, len(classes), *spatial] in [0, 1].

    class_specific: whether the maps of two classes differ. has_levels: whether it can be asked for a level.
    """

    maps: Callable[..., Tensor]
    class_specific: bool = True
    has_levels: bool = False


METHODS: dict[str, Method] = {
    **{
        name: Method(partial(class_activation_maps, method=name), cam.class_specific, has_levels=True)
        for name, cam in CAM_METHODS.items()
    },
    **{name: Method(partial(attribution_maps, method=name)) for name in ATTRIBUTION_METHODS},
    "attention_rollout": Method(attention_rollout, class_specific=False),
}


def explain(
    model: PyramidModel, x: Tensor, classes: Sequence[int], method: str = "grad_cam", level: Level = "auto"
) -> Tensor:
    """[B, C, *spatial] → float32 [B, len(classes), *spatial] in [0, 1] by any method of METHODS.

    Raises ExplanationError for an unknown name, and as the methods do.
    """
    if method not in METHODS:
        raise ExplanationError(f"unknown method {method!r}: one of {', '.join(METHODS)}")
    return METHODS[method].maps(model, x, classes, level=level)
