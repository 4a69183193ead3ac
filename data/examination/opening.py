"""Data that a training would refuse, opened all the same where that can be: all that is wrong is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.default_config import Config
from configs.errors import DataError
from data.builder import open_data, resolve, split_data
from data.study import DatasetIndex
from utils.examination.findings import Report


class Opened(NamedTuple):
    """config: resolved, and tolerant of what was told as an error."""

    config: Config
    data: DatasetIndex
    assignment: np.ndarray


def open_leniently(config: Config, saved: Path | None, report: Report) -> Opened:
    """Data without files that are missing, or with ids that are not clear, or with patients on two sides: each of these
    is added to the report as an error, unless the settings allow it.

    saved: a run's split. Raises DataError for what cannot be gone on with.
    """
    config, data = _opened(config, report)
    try:
        return Opened(config, data, split_data(config, data, saved))
    except DataError as error:
        config = config.model_copy(deep=True)
        config.DATA.allow_patient_overlap = True
        try:
            assignment = split_data(config, data, saved)
        except DataError:
            raise error from None
        report.add("error", "data", str(error))
        return Opened(config, data, assignment)


def _opened(config: Config, report: Report) -> tuple[Config, DatasetIndex]:
    try:
        data = open_data(config)
    except DataError as error:
        config = config.model_copy(deep=True)
        config.DATA.allow_missing_images, config.DATA.patient_ids = True, "exact"
        try:
            data = open_data(config)
        except DataError:
            raise error from None
        report.add("error", "data", str(error))
    return resolve(config, data), data
