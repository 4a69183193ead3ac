"""A run as a reader sees it, of this or another process, while it trains or after."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from configs.default_config import Config
from configs.errors import CheckpointError
from utils.renamed_keys import todays_figures
from utils.runs.files import CONFIG, METRICS
from utils.runs.json_lines import JsonObject, read_rows
from utils.runs.status import RunStatus, read_status
from utils.runs.steps import StepFigures, read_steps

T = TypeVar("T")


def read_history(folder: Path) -> list[JsonObject]:
    """The rows of metrics.jsonl under current keys, none where it is missing. Raises OSError."""
    return [todays_figures(row) for row in read_rows(folder / METRICS)]


class RunView:
    """The files of a run's folder, each read when it is first asked for and then kept; make a new view to look again.

    Nothing is written, training is never blocked, and a file that is being written is read whole, new or old.
    What is damaged or cannot be read is a CheckpointError, or a ConfigError of config.yaml, of that one attribute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def status(self) -> RunStatus | None:
        """See `read_status`; None for a run of a version that wrote none."""
        return read_status(self.path)

    @cached_property
    def config(self) -> Config | None:
        """The run's settings; None before they are written."""
        path = self.path / CONFIG
        return Config.from_yaml(path, saved=True) if path.is_file() else None

    @cached_property
    def history(self) -> list[JsonObject]:
        """The rows of metrics.jsonl: one for each epoch, then the results of the final report."""
        return self._read(read_history, self.path)

    @cached_property
    def steps(self) -> list[StepFigures]:
        """The figures of optimizer steps."""
        return self._read(read_steps, self.path)

    @staticmethod
    def _read(read: Callable[[Path], T], path: Path) -> T:
        try:
            return read(path)
        except OSError as error:
            raise CheckpointError(f"cannot read '{error.filename or path}': {error.strerror}") from None
