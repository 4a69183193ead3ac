"""Settings that are each allowed and cannot be meant: numbers in another unit, and pairs that contradict each other.

Rules over plain values, as in configs/consistency.py, for a training that begins or goes on. What was trained with
such settings can be evaluated all the same, so they are not asked of a finished model's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

Shape = Sequence[int]

_SMALLEST_AVERAGE = 0.1  # of TRAIN.ema_decay: below, the average is nearly the last weights
_LARGEST_RATE = {"adamw": 1.0, "sgd": 10.0}
_COVERED_MM = (2.0, 4000.0)  # along the longest side: a mouse's heart, and more than a human being
_LARGEST_BUDGET_GB = 2000.0


def normalisation_problems(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[str]:
    """Means and deviations of other values than those of an image in [0, 1].

    No mean of values in [0, 1] is outside of it, and no deviation above 1/2; 1 leaves a channel as it is.
    """
    given = {key: list(values) for key, values in (("mean", mean), ("std", std)) if values}
    wrong = [key for key, values in given.items() if max(values) > 1 or min(values) < 0]
    if not wrong:
        return []
    given = {key: given[key] for key in wrong}
    largest = max(max(values) for values in given.values())
    named = " and ".join(f"DATA.{key} {_numbers(given[key])}" for key in wrong)
    text = f"{named} cannot be of images in [0, 1], which they are for"
    if min(min(values) for values in given.values()) < 0:
        return [f"{text}: compute them of pixels divided by their largest value"]
    guesses = [f"{_divided(given, scale)} (divided by {scale})" for scale in _scales(largest)]
    return [f"{text}: {' or '.join(guesses)} were probably meant" if guesses else text]


def _scales(largest: float) -> list[int]:
    """Of grey levels, percent, 12 and 16 bits, those that a largest value may be in; the likeliest first."""
    if largest <= 100:
        return [255, 100]
    return [255] if largest <= 255 else [4095, 65535] if largest <= 4095 else [65535] if largest <= 65535 else []


def _divided(given: Mapping[str, Sequence[float]], scale: int) -> str:
    return " and ".join(f"{key} {_numbers([v / scale for v in values])}" for key, values in given.items())


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def spacing_problems(spacing_mm: Sequence[float] | None, shape: Shape) -> list[str]:
    """A spacing in metres or micrometres: by it the input covers less than anything, or more than anybody."""
    if spacing_mm is None or len(shape) != len(spacing_mm):
        return []
    low, high = _COVERED_MM
    covered = max(side * step for side, step in zip(shape, spacing_mm))
    if low <= covered <= high:
        return []
    unit, factor = ("metres", 1000.0) if covered < low else ("micrometres", 0.001)
    return [
        f"DATA.spacing_mm {_numbers(spacing_mm)} with DATA.image_size {tuple(shape)} covers {covered:.4g} mm: it is in "
        f"millimetres (z, y, x); if it was meant in {unit}, it is {_numbers([step * factor for step in spacing_mm])}"
    ]


def rate_problems(
    optimizer: str, learning_rate: float, min_learning_rate: float, weight_decay: float, ema_decay: float
) -> list[str]:
    """Rates of change that are none, or that undo each other."""
    found = []
    if learning_rate > _LARGEST_RATE[optimizer]:
        meant = f": was 1e-{learning_rate:g} meant?" if learning_rate in range(2, 7) else ", usually 1e-5 to 1e-1"
        found.append(
            f"TRAIN.learning_rate {learning_rate:g} is no learning rate of {optimizer}, which are at most "
            f"{_LARGEST_RATE[optimizer]:g}{meant}"
        )
    if min_learning_rate > learning_rate:
        found.append(
            f"TRAIN.min_learning_rate {min_learning_rate:g} is above TRAIN.learning_rate {learning_rate:g}, which "
            "falls to it: lower it (it is a learning rate; as a share of the peak it would be "
            f"{min_learning_rate * learning_rate:g})"
        )
    if learning_rate * weight_decay >= 1:
        found.append(
            f"TRAIN.learning_rate {learning_rate:g} times TRAIN.weight_decay {weight_decay:g} is "
            f"{learning_rate * weight_decay:g}: from 1 on each step would take away more than the weights there are"
        )
    if 0 < ema_decay < _SMALLEST_AVERAGE:
        found.append(
            f"TRAIN.ema_decay {ema_decay:g} keeps nearly nothing of the average: it is the share that is kept, "
            f"{1 - ema_decay:g} was probably meant; 0 is none"
        )
    return found


def schedule_problems(epochs: int, warmup_epochs: float | None) -> list[str]:
    """A warm-up that is longer than the run; as long as it is allowed."""
    if warmup_epochs is None or warmup_epochs <= epochs:
        return []
    return [
        f"TRAIN.warmup_epochs {warmup_epochs:g} is more than TRAIN.epochs {epochs}: the learning rate would not reach "
        "its peak; it is in epochs, not in steps; null is a tenth of a short run"
    ]


def patience_problems(scheduler: str, plateau_patience: int, early_stopping_patience: int) -> list[str]:
    """A run that stops early before its learning rate could be cut."""
    if scheduler != "plateau" or not 0 < early_stopping_patience <= plateau_patience:
        return []
    return [
        f"TRAIN.early_stopping_patience {early_stopping_patience} ends the run before TRAIN.plateau_patience "
        f"{plateau_patience} could lower the learning rate: set it higher than that, or to 0"
    ]


def weight_of_loss_problems(hierarchical: bool, fine: float, coarse: float, consistency: float) -> list[str]:
    """A hierarchical loss that is zero whatever the network says."""
    if hierarchical and not any((fine, coarse, consistency)):
        return ["LOSS.fine_weight, coarse_weight and consistency_weight are all 0: nothing would be learnt"]
    return []


def memory_problems(memory_budget_gb: float | None) -> list[str]:
    """A memory budget in megabytes."""
    if memory_budget_gb is None or memory_budget_gb <= _LARGEST_BUDGET_GB:
        return []
    return [
        f"MODEL.gradient_checkpointing.memory_budget_gb {memory_budget_gb:g} is in 1e9 bytes: "
        f"{memory_budget_gb / 1000:g} was probably meant"
    ]


def class_problems(
    class_names: Sequence[str] | None, num_classes: int | None, groups: Mapping[str, Sequence[str]] | None
) -> list[str]:
    """Names of classes and groups that are none, or stand twice; and as many as another setting does not say."""
    found = []
    if class_names is not None:
        found += [
            f"DATA.class_names names nothing as number {n + 1}"
            for n, name in enumerate(class_names)
            if not name.strip()
        ]
        found += [f"DATA.class_names names {name!r} twice" for name in _twice(class_names)]
        if num_classes not in (None, len(class_names)):
            found.append(
                f"MODEL.num_classes is {num_classes}, and DATA.class_names has {len(class_names)}: leave one null"
            )
    for group, members in (groups or {}).items():
        found += [f"MODEL.coarse_groups: '{group}' names {name!r} twice" for name in _twice(members)]
    return found


def list_problems(values: str | Sequence[float] | None, key: str, count: int | None) -> list[str]:
    """A list with a value per class, of another length than there are classes; one value is for all."""
    if count is None or values is None or isinstance(values, str) or len(values) in (1, count):
        return []
    return [f"{key} has {len(values)} values for {count} classes"]


def _twice(names: Sequence[str]) -> list[str]:
    return [name for number, name in enumerate(names) if name in names[:number]]


def step_notes(images: int, batch_size: int, accumulation_steps: int) -> list[str]:
    """What is to be said of batches and windows that are larger than an epoch. images: of the training split."""
    batches = ceil(images / batch_size)
    if accumulation_steps > batches:
        return [
            f"TRAIN.gradient_accumulation_steps {accumulation_steps} is more than the {batches} batches of an epoch: "
            f"an optimizer step sees {images} images, not {batch_size * accumulation_steps}, and an epoch is one step"
        ]
    if batch_size > images:
        return [f"TRAIN.batch_size {batch_size} is more than the {images} training images: an epoch is one step"]
    return []
