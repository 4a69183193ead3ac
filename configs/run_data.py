"""Where the data of a saved run are: as the user says, or as the run's own config.yaml says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.default_config import Config
from configs.errors import ConfigError

RUN_CONFIG = "config.yaml"


def with_data_of_run(
    saved: Config,
    folder: Path,
    data: str | None = None,
    labels: str | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """A copy of the settings that a checkpoint carries, whose DATA section says where to look for images.

    saved: from the checkpoint, with the overrides. folder: where the checkpoint is. data, labels: a folder or .npz, and
    its table, as the user names them; with `data` the run's labels_file and format are not taken over.
    Without `data`, data_dir, labels_file and format are those of the config.yaml in `folder`, which the user put or
    left there; those that stand in the checkpoint itself are never used, as a file may not name what gets opened.
    Raises ConfigError where nobody says where the data are.
    """
    beside = folder / RUN_CONFIG
    asked = Config.from_overrides(list(overrides)).DATA
    source = Config.from_yaml(beside, list(overrides)).DATA if data is None and beside.is_file() else asked
    if data is None and not source.is_set("data_dir"):
        raise ConfigError(
            f"there is no {RUN_CONFIG} in '{folder}' that says where the data are: name them by --data FOLDER "
            "(paths that stand in a checkpoint are not opened)"
        )
    config = saved.model_copy(deep=True)
    config.DATA.data_dir = data or source.data_dir
    config.DATA.labels_file = labels or source.labels_file
    config.DATA.format = source.format
    return config
