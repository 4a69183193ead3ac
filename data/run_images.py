"""Some images of a saved run, as its model sees them: to compare an exported file with, and to calibrate int8."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.default_config import Config
from configs.errors import ConfigError, DataError
from configs.run_data import with_data_of_run
from data.builder import open_data, split_data
from data.phantom.radiographs import draw_images
from data.phantom.volumes import draw_volumes

logger = logging.getLogger("export")

COUNT = 8


def real_images(saved: Config, folder: Path, preprocess: Any, overrides: Sequence[str] = ()) -> tuple[np.ndarray, str]:
    """(float32 [8, C, *spatial], where they are from), of less than 8 all there are.

    Those of the run's data where they are at hand, else the drawn sample data's, made in memory.
    saved: the settings in the checkpoint, with the overrides. folder: where it lies. preprocess: the checkpoint's.
    overrides: the user's, see with_data_of_run.
    """
    try:
        found, origin = images_of_run(saved, folder, preprocess, overrides), "the run's data"
    except (ConfigError, DataError) as error:
        logger.info("the run's images are not at hand (%s): drawn ones are compared", error)
        found, origin = drawn_images(saved.has_volumes()), "drawn sample data"
    return np.stack([preprocess(image) for image in found]), origin


def training_images(
    saved: Config, folder: Path, preprocess: Any, count: int, overrides: Sequence[str] = ()
) -> Iterator[np.ndarray]:
    """`count` of the run's training split, float32 [1, C, *spatial] each, spread over it, read as they are needed.

    Raises ConfigError and DataError where the run's data or its split.csv are not at hand.
    """
    config, split = with_data_of_run(saved, folder, overrides=overrides), folder / "split.csv"
    if not split.is_file():
        raise DataError(
            f"--quantize static needs the run's '{split}', which says what it was trained on: or use dynamic"
        )
    dataset_index = open_data(config)
    rows = np.flatnonzero(split_data(config, dataset_index, split) == "train")
    return (preprocess(preprocess.read(dataset_index, int(row)))[None] for row in spread(rows, count))


def images_of_run(saved: Config, folder: Path, preprocess: Any, overrides: Sequence[str] = ()) -> list:
    """Some of those that the config.yaml in the checkpoint's folder names, spread over all, as preprocess reads them.

    Raises ConfigError where nothing names them, DataError where they are not there or cannot be read.
    """
    config = with_data_of_run(saved, folder, overrides=overrides)
    origin = Path(config.DATA.data_dir or "")
    if config.DATA.data_dir is None or not origin.exists():  # open_data would draw sample data there
        raise DataError(f"there is no '{origin}'")
    dataset_index = open_data(config)
    return [preprocess.read(dataset_index, int(row)) for row in spread(np.arange(len(dataset_index.studies)), COUNT)]


def drawn_images(volumes: bool) -> list:
    """The first of the built-in sample data, without writing them anywhere."""
    if volumes:
        return [drawn.volume for drawn in draw_volumes(COUNT)]
    return [drawn.image for drawn in draw_images(COUNT)]


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the rows, evenly from the first to the last."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
