"""Settings of what is trained of a network, at which rates, and what rules they obey together. See docs/recipes.md."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from configs.section import setting

Freeze = (
    Literal["none", "backbone", "linear_probe", "level_1", "level_2", "level_3", "level_4", "level_5"] | PositiveInt
)

FREEZE: Freeze = setting(
    "none",
    "What is not trained, batch normalisation in it included: the backbone; linear_probe: all but the head; level_2: "
    "the backbone through the block that gives its second level; a number: so many of its blocks, from the first on.",
)
UNFREEZE_EPOCH: int | None = setting(
    None, "The epoch, counted from 1, from which on what was frozen is trained; null: never.", ge=2
)
BACKBONE_FACTOR: float = setting(1.0, "The learning rate of the backbone is so many times the others'.", gt=0, le=100)
LAYER_DECAY: float = setting(
    1.0,
    "The learning rate of each block of the backbone is so many times that of the block after it; 1: all alike.",
    gt=0,
    le=1,
)


def freezing_problems(
    freeze: str | int, unfreeze_epoch: int | None, epochs: int, init_from: str | None, attention: bool
) -> list[str]:
    """What is never frozen or never trained. attention: whether LOSS.attention teaches anything."""
    found = []
    if unfreeze_epoch is not None and freeze == "none":
        found.append(f"TRAIN.unfreeze_epoch {unfreeze_epoch}: nothing is frozen; set TRAIN.freeze, or leave it null")
    if unfreeze_epoch is not None and unfreeze_epoch > epochs:
        found.append(
            f"TRAIN.unfreeze_epoch {unfreeze_epoch} is after the last of TRAIN.epochs {epochs}: null freezes for good"
        )
    if freeze == "linear_probe" and init_from is None:
        found.append(
            "TRAIN.freeze 'linear_probe' would leave attention and fusion as they are drawn: name a trained network by "
            "MODEL.init_from, or set freeze to backbone"
        )
    if freeze == "linear_probe" and attention:
        found.append(
            "LOSS.attention teaches where to look, which TRAIN.freeze 'linear_probe' leaves as it is: set "
            "LOSS.attention.method to none, or freeze to backbone"
        )
    return found


def rate_problems(freeze: str | int, unfreeze_epoch: int | None, factor: float, decay: float) -> list[str]:
    """A learning rate for what is never trained."""
    if freeze not in ("backbone", "linear_probe") or unfreeze_epoch is not None:
        return []
    keys = {"backbone_learning_rate_factor": factor, "layer_decay": decay}
    return [
        f"TRAIN.{key} {value:g}: the backbone is never trained (TRAIN.freeze '{freeze}'); set TRAIN.unfreeze_epoch, or "
        f"leave {key} at 1"
        for key, value in keys.items()
        if value != 1
    ]
