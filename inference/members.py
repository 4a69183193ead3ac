"""From a loaded checkpoint to a member of an ensemble: what is said of it, and what is missing in it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inference.ensemble import Ensemble, Member
from inference.predictor import Autocast, Predictor
from utils.environment import describe_environment

logger = logging.getLogger(__name__)


def make_member(
    file: Path,
    saved: Any,
    point: Any,
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
    settings = saved.config
    predictor = Predictor([saved.model.to(device=device, memory_format=layout)], precision, layout, tta)
    exclusive = settings.MODEL.task == "multi_class"
    names = saved.class_names or tuple(f"class {number + 1}" for number in range(settings.MODEL.num_classes))
    if saved.class_names is None:
        logger.warning("'%s' does not name its classes: --set DATA.class_names=[…] does", file)
    if saved.preprocessing is None:
        logger.warning("'%s' does not say how images are preprocessed: as its settings and the backbone's say", file)
    chosen = point.split is not None
    return Member(
        str(file),
        names,
        exclusive,
        predictor,
        lambda logits: point.probabilities(logits, exclusive),
        tuple(point.thresholds) if chosen else (),
        f"{point.rule}, chosen on {point.split} ({point.images:,} images)" if chosen else "",
        preprocess_index,
        _facts(file, saved, point),
    )


def _facts(file: Path, saved: Any, point: Any) -> dict[str, Any]:
    settings = saved.config.MODEL
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "sha256": digest,
        "source": saved.source,
        "name": settings.name,
        "backbone": settings.backbone,
        "epoch": (saved.description.get("metrics") or {}).get("epoch"),
        "preprocessing": saved.preprocessing or "as its settings and the backbone say",
        "calibrated": point.calibration is not None,
        "calibration": point.calibration.as_dict() if point.calibration else None,
    }


def about_prediction(inputs: Sequence[str], device: torch.device, ensemble: Ensemble) -> dict[str, Any]:
    """What stands at the head of predictions.json beside models and thresholds."""
    predictors = [member.predictor for member in ensemble.members]
    precisions = dict.fromkeys(predictor.precision.name for predictor in predictors)
    environment = describe_environment(str(device), ", ".join(precisions))
    kept = {name: environment[name] for name in ("time", "git_commit", "packages", "device", "precision")}
    return {**kept, "inputs": list(inputs), "test_time_augmentation": predictors[0].tta}
