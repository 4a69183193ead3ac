"""A model's file, opened to be asked: its network, what it says of its data, and its operating point."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.errors import PredictionError
from configs.section import settled
from data.asked import AskedModel
from data.builder import saved_preprocess, saved_table
from data.profile import TrainingData
from evaluation.fitting import stored_point
from evaluation.operating_points import OperatingPoint
from inference.ensemble import Member
from inference.members import make_member
from models.saved_model import SavedModel
from training.precision import choose_available_precision, choose_memory_format

logger = logging.getLogger("predict")


@dataclass(frozen=True)
class OpenedModel:
    """file: it itself. saved: its network and settings. asked: of its data. point: thresholds, calibration."""

    file: Path
    saved: SavedModel
    asked: AskedModel
    point: OperatingPoint

    @classmethod
    def of(cls, file: Path, saved: SavedModel) -> OpenedModel:
        """Raises HybridMedNetError where what the file says of its data cannot be; logs what it does not say."""
        settings, backbone, description = saved.config, saved.model.backbone, saved.description
        preprocess = saved_preprocess(saved.preprocessing, settings, backbone.mean, backbone.std)
        profile = None
        if description.get("training_data"):
            profile = TrainingData.from_dict(description["training_data"], settings.has_volumes())
        else:
            logger.warning("'%s' does not describe its training images: it cannot warn about unlike ones", file)
        encoding, kinds = saved_table(description.get("table")), description.get("view_kinds")
        asked = AskedModel(str(file), settings, preprocess, encoding, kinds, profile)
        count = settled(settings.MODEL.num_classes, "MODEL.num_classes")
        return cls(file, saved, asked, stored_point(description.get("operating_point"), count))

    def member(self, number: int, device: torch.device, tta: bool = False) -> Member:
        """The member of an ensemble; its network moves to the device. number: which of the inputs is its own."""
        training, backbone = self.saved.config.TRAIN, self.saved.model.backbone
        precision = choose_available_precision(training.mixed_precision, device)
        layout = choose_memory_format(training.channels_last, backbone.prefers_channels_last)
        return make_member(self.file, self.saved, self.point, number, device, precision, layout, tta)


def check_alike(models: Sequence[AskedModel]) -> None:
    """Raises PredictionError where some take studies and others single images, or one does not say how its table is
    encoded.
    """
    first = models[0]
    for model in models:
        if model.config.MODEL.table.fusion is not None and model.encoding is None:
            raise PredictionError(f"'{model.file}' does not say how its table is encoded, so it cannot be asked")
        if model.of_studies != first.of_studies:
            one, other = (model.file, first.file) if model.of_studies else (first.file, model.file)
            raise PredictionError(f"'{one}' takes studies, '{other}' single images: ask them one by one")
