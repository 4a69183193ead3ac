"""Distillation: a student that learns from labels and from what a trained teacher says of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.default_config import Config
from configs.errors import ConfigError
from training.losses import TrainingLoss, on_device
from training.precision import Precision
from utils.batch import Inputs, Logits, Targets, call_model

# The term that is added to a TrainingLoss's.
_TERM = "teacher"


def soft_targets_loss(student: Tensor, teacher: Tensor, temperature: float, exclusive: bool) -> Tensor:
    """How far the student's softened probabilities are from the teacher's, T times softer both.

    Findings: BCE(student / T, sigmoid(teacher / T)), [B, K], [B, K] → [B, K]. exclusive: KL of the softmax over
    teacher / T from that over student / T, → [B, 1]. Both have the same gradient at their least: zero, where the
    logits agree. T² is not in it. Hinton, Vinyals & Dean 2015, arXiv:1503.02531, who have exclusive classes only.
    """
    student, teacher = student / temperature, teacher / temperature
    if not exclusive:
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    log_student, log_teacher = student.log_softmax(1), teacher.log_softmax(1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(1, keepdim=True)


@dataclass
class Teacher:
    """A trained network that is asked and never changed: in eval mode, without gradients, in the student's precision.

    columns: for each class of the student, its place among the teacher's. scale, shift: [C, 1, …], what brings the
    student's images to the teacher's normalisation; None where it is the same.
    """

    model: nn.Module
    precision: Precision
    columns: Sequence[int]
    scale: Tensor | None = None
    shift: Tensor | None = None

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        """The student's inputs → float32 logits [B, K] in the student's order of classes."""
        if self.scale is not None and self.shift is not None:
            inputs = inputs._replace(image=inputs.image * self.scale + self.shift)
        with self.precision.autocast():
            logits = Logits.of(call_model(self.model, inputs)).fine
        return logits.float().index_select(1, on_device(tuple(self.columns), logits.device))


@dataclass
class DistillationLoss:
    """(1 − w) · labels + w · T² · soft targets, as sums and counts like TrainingLoss, which it takes the place of.

    labels: the loss without a teacher, hierarchical or not. The teacher speaks of all classes of all images, so of
    those too whose labels are unknown. weight: w; temperature: T.
    """

    labels: TrainingLoss
    teacher: Teacher
    weight: float
    temperature: float

    @property
    def exclusive(self) -> bool:
        return self.labels.exclusive

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of counts and sums."""
        return (*self.labels.terms, _TERM)

    def counts(self, targets: Targets) -> dict[str, int]:
        """Valid labels of each term, and how many values the teacher gives."""
        values = len(targets.labels) if self.exclusive else targets.labels.numel()
        return {**self.labels.counts(targets), _TERM: values}

    def sums(self, logits: Logits, targets: Targets, inputs: Inputs) -> dict[str, Tensor]:
        """The sum of each term over a batch, float32; asks the teacher about its inputs."""
        loss = soft_targets_loss(logits.fine.float(), self.teacher(inputs), self.temperature, self.exclusive)
        return {**self.labels.sums(logits, targets), _TERM: loss.sum()}

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """The weighted loss of a window from its parts."""
        others = {name: value for name, value in sums.items() if name != _TERM}
        soft = self.temperature**2 * sums[_TERM] / max(counts[_TERM], 1)
        return (1 - self.weight) * self.labels.total(others, counts) + self.weight * soft


class SavedNetwork(Protocol):
    """A trained network as it was saved. class_names, preprocessing: None where its file does not say."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def config(self) -> Config: ...
    @property
    def class_names(self) -> Sequence[str] | None: ...
    @property
    def preprocessing(self) -> Mapping[str, object] | None: ...


def teacher_of(
    saved: SavedNetwork,
    class_names: Sequence[str],
    preprocessing: Mapping[str, object],
    exclusive: bool,
    precision: Precision,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Teacher:
    """A Teacher out of what models.saved_model.load_model gives, for a student's classes and preprocessing.

    Classes are matched by name, in any order; a teacher of findings may know more of them. Its images must be
    prepared as the student's are, but for mean and standard deviation, which are converted.
    Raises ConfigError where the two do not fit, naming what differs.
    """
    if (saved.config.MODEL.task == "multi_class") != exclusive:
        raise ConfigError(
            f"LOSS.teacher has MODEL.task '{saved.config.MODEL.task}', the student {'' if exclusive else 'not '}"
            "exclusive classes: both must be of one kind"
        )
    columns = _columns(saved.class_names, class_names, exclusive)
    scale, shift = _conversion(saved.preprocessing, preprocessing)
    model = saved.model.to(device).to(memory_format=memory_format).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if scale is None or shift is None:
        return Teacher(model, precision, columns)
    return Teacher(model, precision, columns, scale.to(device), shift.to(device))


def _columns(known: Sequence[str] | None, wanted: Sequence[str], exclusive: bool) -> list[int]:
    if known is None:
        raise ConfigError(
            "LOSS.teacher does not say what its classes are: train it, or save it again, with this program"
        )
    lacking = [name for name in wanted if name not in known]
    beyond = [name for name in known if name not in wanted] if exclusive else []
    if lacking or beyond:
        words = [f"lacks {', '.join(lacking)}"] if lacking else []
        words += [f"has {', '.join(beyond)} besides, which exclusive classes must not"] if beyond else []
        raise ConfigError(f"LOSS.teacher {' and '.join(words)}; its classes are {', '.join(known)}")
    return [list(known).index(name) for name in wanted]


def _conversion(
    teachers: Mapping[str, object] | None, own: Mapping[str, object]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(scale, shift) [C, 1, …] with x_teacher = x · scale + shift; (None, None) where there is nothing to convert."""
    if teachers is None:
        raise ConfigError("LOSS.teacher does not say how its images were prepared")
    differing = [key for key in own if key not in ("mean", "std") and _plain(teachers.get(key)) != _plain(own[key])]
    if differing:
        pairs = ", ".join(f"{key} {teachers.get(key)} instead of {own[key]}" for key in differing)
        raise ConfigError(
            f"LOSS.teacher sees other images than the student ({pairs}): train one of them with the other's DATA "
            "settings"
        )
    if _plain(teachers["mean"]) == _plain(own["mean"]) and _plain(teachers["std"]) == _plain(own["std"]):
        return None, None
    mean, std = (torch.tensor(own[key], dtype=torch.float64) for key in ("mean", "std"))
    other_mean, other_std = (torch.tensor(teachers[key], dtype=torch.float64) for key in ("mean", "std"))
    size = own["size"]
    assert isinstance(size, (list, tuple)), "as_dict gives the axes of an image"
    shape = (-1, *[1] * len(size))
    scale, shift = std / other_std, (mean - other_mean) / other_std
    return scale.float().view(shape), shift.float().view(shape)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value
