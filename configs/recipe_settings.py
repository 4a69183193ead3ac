"""Settings of what is trained of a network, at which rates, and what rules they obey together. See docs/recipes.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

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


Sampling = Literal["none", "balanced"] | dict[str, PositiveFloat]
SAMPLING: Sampling = setting(
    "none",
    "Which training studies an epoch is made of. balanced: rare classes more often; class → weight: how many times as "
    "often as others. docs/recipes.md.",
)
CORRECT_PRIOR: bool = setting(
    True,
    "With DATA.sampling: shift logits within the loss, so that probabilities are those of the training split's "
    "prevalence; false: those of what was drawn.",
)
MIXUP: float = setting(
    0.0, "α of mixup: images of a batch and their labels are averaged in pairs; 0: not.", ge=0, le=100
)
CUTMIX: float = setting(
    0.0,
    "α of CutMix: a box of another image of the batch is put into each; 0: not. With mixup, either by chance.",
    ge=0,
    le=100,
)
MIX_PROBABILITY: float = setting(1.0, "Share of the batches that mixup and CutMix are done to.", gt=0, le=1)


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


def sampling_problems(
    sampling: str | Mapping[str, float],
    class_names: Sequence[str] | None,
    weights: Mapping[str, object],
    correct_prior: bool,
) -> list[str]:
    """Classes that there are not, and two ways to balance at once.

    weights: LOSS.pos_weight and class_weight by their names.
    """
    if sampling == "none":
        return (
            [] if correct_prior else ["LOSS.correct_prior false: DATA.sampling is none, so nothing is to be corrected"]
        )
    found = [
        f"LOSS.{key} 'auto' and DATA.sampling both balance the classes, which would count twice: set one of them, or "
        f"give {key} as numbers"
        for key, value in weights.items()
        if value == "auto"
    ]
    if isinstance(sampling, Mapping) and class_names is not None:
        found += [
            f"DATA.sampling: {name!r} is no class ({', '.join(class_names[:20])})"
            for name in sampling
            if name not in class_names
        ]
    return found


def mixing_problems(
    mixup: float, cutmix: float, probability: float, studies: bool, consistency: bool, attention: bool
) -> list[str]:
    """What cannot be mixed. studies: of several views or with a table. consistency: a hierarchical model's term is
    used. attention: LOSS.attention teaches something.
    """
    if not (mixup or cutmix):
        return ["DATA.mix_probability is for DATA.mixup and DATA.cutmix, which are 0"] if probability != 1 else []
    keys = " and ".join(f"DATA.{key}" for key, value in (("mixup", mixup), ("cutmix", cutmix)) if value)
    found = []
    if studies:
        found.append(f"{keys}: studies of several views or with a table cannot be mixed; set it to 0")
    if consistency:
        found.append(
            f"{keys}: of mixed images the coarse label is not the largest of the fine ones; set "
            "LOSS.consistency_weight to 0"
        )
    if attention:
        found.append(f"{keys}: LOSS.attention teaches regions and views of whole images; set its method to none")
    return found
