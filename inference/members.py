"""From a loaded checkpoint to a member of an ensemble: what is said of it, and what is missing in it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import torch
from torch import nn

from configs.default_config import Config
from inference.ensemble import Ensemble, Member
from inference.predictor import Autocast, Predictor
from utils.decision import Task
from utils.environment import describe_environment
from utils.runs.json_lines import JsonObject, JsonValue

logger = logging.getLogger(__name__)


class SavedModel(Protocol):
    """What is needed of models.saved_model.SavedModel; class_names, preprocessing: None where its file does not say."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def config(self) -> Config: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    @property
    def preprocessing(self) -> Mapping[str, object] | None: ...
    @property
    def source(self) -> str: ...
    @property
    def description(self) -> Mapping[str, object]: ...
    def task(self) -> Task: ...
    def not_learnt(self) -> frozenset[str]: ...


class Calibration(Protocol):
    """What is needed of evaluation's Calibration."""

    def as_dict(self) -> Mapping[str, object]: ...


class OperatingPoint(Protocol):
    """What is needed of evaluation's OperatingPoint, see there."""

    @property
    def thresholds(self) -> Sequence[float]: ...
    @property
    def rule(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def images(self) -> int: ...
    @property
    def calibration(self) -> Calibration | None: ...

    @property
    def positive_class(self) -> str | None: ...

    def probabilities(self, logits: np.ndarray, exclusive: bool, /) -> np.ndarray: ...


class ModelFacts(TypedDict):
    """What predictions.json says of a model. epoch: None where its file does not say."""

    sha256: str
    source: str
    name: str
    backbone: str
    epoch: object
    preprocessing: Mapping[str, object] | str
    calibrated: bool
    calibration: Mapping[str, object] | None


class PredictionRecord(TypedDict):
    """The head of predictions.json; the first five are describe_environment's."""

    time: str
    git_commit: str | None
    packages: dict[str, str | None]
    device: str
    precision: str
    inputs: list[str]
    test_time_augmentation: bool


def make_member(
    file: Path,
    saved: SavedModel,
    point: OperatingPoint,
    preprocess_index: int,
    device: torch.device,
    precision: Autocast,
    layout: torch.memory_format,
    tta: bool,
) -> Member:
    """file: the checkpoint. saved: its SavedModel, moved to `device` and `layout` here. point: its OperatingPoint.
    place: which of the inputs is its own.

    Says what the file does not: names of classes, preprocessing.
    """
    task = saved.task()
    predictor = Predictor([saved.model.to(device).to(memory_format=layout)], precision, layout, tta)
    if saved.class_names is None:
        logger.warning("'%s' does not name its classes: --set DATA.class_names=[…] does", file)
    if saved.preprocessing is None:
        logger.warning("'%s' does not say how images are preprocessed: as its settings and the backbone's say", file)
    return Member(
        str(file),
        task,
        predictor,
        lambda logits: point.probabilities(logits, task.exclusive),
        *chosen_thresholds(point, task),
        preprocess_index,
        _facts(file, saved, point),
        saved.not_learnt(),
    )


def chosen_thresholds(point: OperatingPoint, task: Task) -> tuple[tuple[float, ...], str]:
    """(thresholds, the rule and what it was chosen on); ((), "") where none were chosen for this positive class."""
    if point.split is None or point.positive_class not in (None, task.positive_class):
        return (), ""
    return tuple(point.thresholds), f"{point.rule}, chosen on {point.split} ({point.images:,} images)"


def _facts(file: Path, saved: SavedModel, point: OperatingPoint) -> ModelFacts:
    settings, metrics = saved.config.MODEL, saved.description.get("metrics")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "sha256": digest,
        "source": saved.source,
        "name": settings.name,
        "backbone": settings.backbone,
        "epoch": metrics.get("epoch") if isinstance(metrics, Mapping) else None,
        "preprocessing": saved.preprocessing or "as its settings and the backbone say",
        "calibrated": point.calibration is not None,
        "calibration": point.calibration.as_dict() if point.calibration else None,
    }


def made_by(ensemble: Ensemble, batch_size: int, settings: Mapping[str, JsonValue]) -> JsonObject:
    """What the figures of a prediction depend on beside its files, for --resume. settings: what else, by name."""
    predictors = [member.predictor for member in ensemble.members]
    return {
        "models of SHA-256": [str(member.facts.get("sha256")) for member in ensemble.members],
        "thresholds": ensemble.threshold_source,
        "--tta": predictors[0].tta,
        "--batch-size": batch_size,
        "device": predictors[0].device.type,
        "precision": list(dict.fromkeys(predictor.precision.name for predictor in predictors)),
        "torch": torch.__version__,
        **settings,
    }


def about_prediction(inputs: Sequence[str], device: torch.device, ensemble: Ensemble) -> PredictionRecord:
    """What stands at the head of predictions.json beside models and thresholds."""
    predictors = [member.predictor for member in ensemble.members]
    precisions = dict.fromkeys(predictor.precision.name for predictor in predictors)
    environment = describe_environment(str(device), ", ".join(precisions))
    return {
        "time": environment["time"],
        "git_commit": environment["git_commit"],
        "packages": environment["packages"],
        "device": environment["device"],
        "precision": environment["precision"],
        "inputs": list(inputs),
        "test_time_augmentation": predictors[0].tta,
    }
