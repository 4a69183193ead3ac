"""What a user's own loader gives, as batches of this program: (image, label), dicts of them, Batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs.errors import DataError
from utils.batch import Batch, Inputs, Targets

# The names under which dicts have what they are asked for: MONAI's, torchvision's, transformers'.
IMAGE_KEYS = ("image", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "target", "targets")
MASK_KEYS = ("mask", "label_mask")
# Class numbers that mean 'unknown': this program's, and torch's default of `ignore_index`.
UNKNOWN = (-1, -100)


class Given(NamedTuple):
    """A batch of a user's loader: inputs of B studies, labels [B, …] as they are, which of these are known or None."""

    inputs: Inputs
    label: Tensor
    mask: Tensor | None


def of_shape(tensor: Tensor) -> str:
    """'(8, 3) float32'."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def read_batch(item: object, where: str) -> Given | Batch:
    """where: 'batch 3 of train_loader', for errors. Raises DataError for what is none of the forms."""
    if isinstance(item, Batch):
        return item
    parts: tuple[object, ...]
    if isinstance(item, Mapping):
        parts = (_named(item, IMAGE_KEYS, where), _named(item, LABEL_KEYS, where), _optional(item, MASK_KEYS))
    elif isinstance(item, Sequence) and not isinstance(item, (str, Inputs)) and len(item) in (2, 3):
        parts = (*item, None) if len(item) == 2 else tuple(item)
    else:
        size = f" of {len(item)}" if isinstance(item, Sequence) else ""
        raise DataError(
            f"{where} is {type(item).__name__}{size}: it must be (image, label), (image, label, mask of known labels), "
            f"or a dict with {_listed(IMAGE_KEYS)} and {_listed(LABEL_KEYS)}"
        )
    image, label, mask = parts
    inputs = image if isinstance(image, Inputs) else Inputs.of_images(_image(image, where))
    labels = _tensor(label, "labels", where)
    if labels.ndim == 0 or len(labels) != inputs.studies:
        raise DataError(f"{where}: labels are {of_shape(labels)}, for {inputs.studies} images")
    known = None if mask is None else _tensor(mask, "mask", where)
    if known is not None and (known.dtype != torch.bool or known.shape != labels.shape):
        raise DataError(
            f"{where}: the mask of known labels is {of_shape(known)}: it must be bool of the labels' shape "
            f"{tuple(labels.shape)}"
        )
    return Given(inputs, labels, known)


def _named(item: Mapping[object, object], keys: Sequence[str], where: str) -> object:
    found = [key for key in keys if key in item]
    if len(found) != 1:
        there = ", ".join(map(str, item)) or "nothing"
        raise DataError(f"{where} has {there}: exactly one of {_listed(keys)} must be there")
    return item[found[0]]


def _optional(item: Mapping[object, object], keys: Sequence[str]) -> object:
    return next((item[key] for key in keys if key in item), None)


def _listed(keys: Sequence[str]) -> str:
    return " / ".join(f"'{key}'" for key in keys)


def _tensor(value: object, what: str, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)  # MONAI's MetaTensor is one of its own
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (int, float)) for one in value):
        return torch.tensor(value)
    raise DataError(f"{where}: {what} are {type(value).__name__}: they must be a tensor or an array of numbers")


def _image(value: object, where: str) -> Tensor:
    image = _tensor(value, "images", where)
    if image.ndim < 2:
        raise DataError(f"{where}: images are {of_shape(image)}: they must be [B, C, H, W] or [B, C, D, H, W]")
    if not image.is_floating_point():
        raise DataError(
            f"{where}: images are {of_shape(image)}: they must be floating-point numbers, scaled as the network takes "
            "them (torchvision's ToTensor, MONAI's ScaleIntensity)"
        )
    return image.to(torch.get_default_dtype())


@dataclass(frozen=True)
class LabelForm:
    """How labels of a loader say which classes are there, of K.

    kind: 'numbers', a class number an image, int [B] or [B, 1]; 'columns', 0 or 1 (or between) a class, [B, K], or [B]
    where K = 1, with NaN and -1 for unknown; 'other': nothing that AUROC could be computed of.
    """

    kind: Literal["numbers", "columns", "other"]
    classes: int

    def targets(self, given: Given, where: str) -> Targets:
        """DataError where labels are not of this form."""
        label = given.label
        if self.kind == "other":
            nothing = torch.zeros(len(label), self.classes)
            return Targets(nothing, nothing.bool(), given=label)
        values, known = self._numbers(label, where) if self.kind == "numbers" else self._columns(label, where)
        if given.mask is not None:
            known = known & given.mask.reshape(len(label), -1)
        return Targets(torch.where(known, values, 0.0), known, given=label)

    def _numbers(self, label: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """(one-hot float32 [B, K], known [B, K])."""
        if label.is_floating_point() or label.numel() != len(label):
            raise DataError(
                f"{where}: labels are {of_shape(label)}, those of the first batch were class numbers, an integer an "
                "image"
            )
        numbers = label.reshape(-1).long()
        known = ~torch.isin(numbers, torch.tensor(UNKNOWN))
        wrong = numbers[known & ((numbers < 0) | (numbers >= self.classes))]
        if len(wrong):
            raise DataError(
                f"{where}: the class number {int(wrong[0])} is not allowed: the model gives {self.classes} logits, so "
                f"0 to {self.classes - 1}; {' and '.join(map(str, UNKNOWN))} mean unknown"
            )
        one_hot = torch.zeros(len(label), self.classes)
        one_hot[known, numbers[known]] = 1.0
        return one_hot, known[:, None].expand(-1, self.classes)

    def _columns(self, label: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """(float32 [B, K], known [B, K])."""
        if label.numel() != len(label) * self.classes or label.ndim > 2:
            raise DataError(f"{where}: labels are {of_shape(label)}: {self._wanted()}")
        values = label.reshape(len(label), self.classes).float()
        known = ~(values.isnan() | (values == -1))
        wrong = values[known & ~((values >= 0) & (values <= 1))]
        if len(wrong):
            raise DataError(
                f"{where}: the label {float(wrong[0]):g} is not allowed: 0 to 1, and NaN or -1 where it is unknown"
            )
        return values, known

    def _wanted(self) -> str:
        return (
            f"for {self.classes} logits they must be class numbers, int [B], or [B, {self.classes}] of 0 and 1 "
            "(NaN or -1: unknown)"
        )


def form_of(given: Given, classes: int, where: str) -> LabelForm:
    """The form of the labels of a first batch, for a model of so many logits.

    Raises DataError where they are of none that has classes.
    """
    label = given.label
    single = label.numel() == len(label)
    integer = not label.is_floating_point() and label.dtype != torch.bool
    form = LabelForm("numbers" if single and integer and classes > 1 else "columns", classes)
    form.targets(given, where)
    return form
