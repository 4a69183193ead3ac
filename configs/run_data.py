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

    saved: from the checkpoint, with the overrides already in it. folder: where the checkpoint is. data, labels: a
    folder or .npz, and its table, as the user names them; with `data` the run's labels_file, format and what it
    says of its table's columns and encoding are not taken over. overrides: the user's, which go before the config.yaml.
    Without `data`, data_dir, labels_file and format are those of the config.yaml in `folder`, which the user put or
    left there; those that stand in the checkpoint itself are never used, as a file may not name what gets opened.
    Raises ConfigError where nothing says where the data are.
    """
    beside, config = folder / RUN_CONFIG, saved.model_copy(deep=True)
    metadata = {key for keys in Config.override_keys(overrides).values() for key in keys}
    known = data is None and beside.is_file()
    source = Config.from_yaml(beside, saved=True).DATA if known else Config().DATA
    for key in ("data_dir", "labels_file", "format", "columns", "ignore_columns", "encoding", "sample_shortcut"):
        if f"DATA.{key}" not in metadata:
            config.DATA[key] = source[key]
    if data is None and not known and "DATA.data_dir" not in metadata:
        raise ConfigError(
            f"there is no {RUN_CONFIG} in '{folder}' that says where the data are: name them by --data FOLDER "
            "(paths that stand in a checkpoint are not opened)"
        )
    if "DATA.max_views" not in metadata:
        config.DATA.max_views = None  # as many as training's largest study had is no limit for others
    config.DATA.data_dir = data or config.DATA.data_dir
    config.DATA.labels_file = labels or config.DATA.labels_file
    return config
