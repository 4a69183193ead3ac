"""Some images of a saved run, as its model sees them: to compare an exported file with, and to calibrate int8."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.default_config import Config
from configs.errors import ConfigError, DataError
from configs.run_data import with_data_of_run
from data.builder import open_data, split_data
from data.cache.reader import AnyPreprocess
from data.phantom.radiographs import draw_images
from data.phantom.volumes import draw_volumes
from data.study import IMAGE, DatasetIndex, Study
from data.table_encoding import TableEncoding

logger = logging.getLogger("export")

COUNT = 8


def real_images(
    saved: Config, folder: Path, preprocess: AnyPreprocess, overrides: Sequence[str] = ()
) -> tuple[np.ndarray, str]:
    """(float32 [8, C, *spatial], where they are from), of less than 8 all there are.

    Those of the run's data where they are available, else the drawn sample data's, made in memory.
    saved: the settings in the checkpoint, with the overrides. folder: where it lies. preprocess: the checkpoint's.
    overrides: the user's, see with_data_of_run. Of studies each image by itself.
    """
    try:
        index = dataset_index_of_run(saved, folder, overrides).image_index
        found, origin = _some_of(index, preprocess), "the run's data"
    except (ConfigError, DataError) as error:
        logger.info("the run's images are not available (%s): drawn ones are compared", error)
        found, origin = _some_of(drawn_dataset_index(saved.has_volumes()), preprocess), "drawn sample data"
    return found, origin


class RealStudies(NamedTuple):
    """Of N studies: image float32 [N, V, C, *spatial] and view_mask bool, view_kind int64 [N, V]; table float32
    [N, columns] in its own units, NaN where unknown; table_row bool [N], whether they have a row of it at all.
    """

    image: np.ndarray
    view_mask: np.ndarray
    view_kind: np.ndarray
    table: np.ndarray
    table_row: np.ndarray


def real_studies(
    saved: Config,
    folder: Path,
    preprocess: AnyPreprocess,
    encoding: TableEncoding | None,
    views: int,
    overrides: Sequence[str] = (),
) -> RealStudies | None:
    """8 studies of the run's data, spread over all, as real_images; None where these are not available.

    views: how many slots of images a study has. Empty ones, and images that cannot be read, are NaN.
    """
    try:
        index = dataset_index_of_run(saved, folder, overrides)
        rows = spread(np.arange(len(index.studies)), COUNT)
        read = [_views_of(index, int(row), preprocess, views) for row in rows]
        table, there = np.empty((len(rows), 0), np.float32), np.zeros(len(rows), bool)
        if encoding is not None and index.table is not None:
            table, there = encoding.as_read(index.table.rows(rows)), index.table.has_row[rows]
    except (ConfigError, DataError) as error:
        logger.info("the run's studies are not available (%s)", error)
        return None
    image, mask, kind = (np.stack(column) for column in zip(*read))
    return RealStudies(image, mask, kind, table, there)


def _views_of(
    index: DatasetIndex, study: int, preprocess: AnyPreprocess, views: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images [V, C, *spatial], mask [V], kinds [V])."""
    assert index.images is not None, "a dataset index of studies"
    rows, kinds = index.images.rows[study], index.images.kinds[study]
    if len(rows) > views:
        raise DataError(f"study '{index.studies[study].name}' has {len(rows)} images, the file takes {views}")
    image = np.full((views, *preprocess.no_images().inputs.image.shape[1:]), np.nan, np.float32)
    mask, kind = np.zeros(views, bool), np.zeros(views, np.int64)
    for slot, (row, of_kind) in enumerate(zip(rows, kinds)):
        try:
            image[slot], mask[slot] = preprocess.apply(index.images.index, row).image.numpy(), True
        except DataError as error:
            logger.warning("%s: a slot without an image in the comparison", error)
        kind[slot] = of_kind
    return image, mask, kind


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
