"""Some images of a saved run, as its model sees them: to compare an exported file with, and to calibrate int8."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from configs.default_config import Config
from configs.errors import ConfigError, DataError
from configs.run_data import with_data_of_run
from data.builder import open_data, split_data
from data.cache.reader import AnyPreprocess
from data.phantom.radiographs import draw_images
from data.phantom.volumes import draw_volumes
from data.study import IMAGE, DatasetIndex, Study

logger = logging.getLogger("export")

COUNT = 8


def real_images(
    saved: Config, folder: Path, preprocess: AnyPreprocess, overrides: Sequence[str] = ()
) -> tuple[np.ndarray, str]:
    """(float32 [8, C, *spatial], where they are from), of less than 8 all there are.

    Those of the run's data where they are available, else the drawn sample data's, made in memory.
    saved: the settings in the checkpoint, with the overrides. folder: where it lies. preprocess: the checkpoint's.
    overrides: the user's, see with_data_of_run.
    """
    try:
        index = dataset_index_of_run(saved, folder, overrides)
        found, origin = _some_of(index, preprocess), "the run's data"
    except (ConfigError, DataError) as error:
        logger.info("the run's images are not available (%s): drawn ones are compared", error)
        found, origin = _some_of(drawn_dataset_index(saved.has_volumes()), preprocess), "drawn sample data"
    return found, origin


def training_images(
    saved: Config, folder: Path, preprocess: AnyPreprocess, count: int, overrides: Sequence[str] = ()
) -> Iterator[np.ndarray]:
    """`count` images of the run's training split, float32 [1, C, *spatial] each, spread over it, read when needed.

    Raises ConfigError and DataError where the run's data or its split.csv are not available.
    """
    config, split = with_data_of_run(saved, folder, overrides=overrides), folder / "split.csv"
    if not split.is_file():
        raise DataError(
            f"--quantize static needs the run's '{split}', which says what it was trained on: or use dynamic"
        )
    dataset_index = open_data(config)
    rows = dataset_index.image_rows(np.flatnonzero(split_data(config, dataset_index, split) == "train"))
    images = dataset_index.image_index
    return (preprocess.apply(images, int(row)).image[None].numpy() for row in spread(rows, count))


def dataset_index_of_run(saved: Config, folder: Path, overrides: Sequence[str] = ()) -> DatasetIndex:
    """The data that the config.yaml in the checkpoint's folder names.

    Raises ConfigError where nothing names them, DataError where they are not there.
    """
    config = with_data_of_run(saved, folder, overrides=overrides)
    origin = Path(config.DATA.data_dir or "")
    if config.DATA.data_dir is None or not origin.exists():  # open_data would draw sample data there
        raise DataError(f"there is no '{origin}'")
    return open_data(config)


def drawn_dataset_index(volumes: bool) -> DatasetIndex:
    """The first of the built-in sample data, in memory."""
    drawn = [one.volume for one in draw_volumes(COUNT)] if volumes else [one.image for one in draw_images(COUNT)]
    names = [f"drawn[{i}]" for i in range(len(drawn))]
    studies = tuple(Study(name, {IMAGE: name}, np.empty(0, np.float32)) for name in names)
    return DatasetIndex((), studies, drawn.__getitem__)


def _some_of(dataset_index: DatasetIndex, preprocess: AnyPreprocess) -> np.ndarray:
    """float32 [8, C, *spatial], spread over all images."""
    images = dataset_index.image_index
    rows = spread(np.arange(len(images.studies)), COUNT)
    return np.stack([preprocess.apply(images, int(row)).image.numpy() for row in rows])


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the rows, evenly from the first to the last."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
