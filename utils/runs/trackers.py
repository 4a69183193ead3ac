"""MLflow and Weights & Biases beside TensorBoard: listeners that tell a tracker what metrics.jsonl says.

A tracker that fails is told nothing more, which is logged once: training goes on. Nobody is asked over a network
unless LOGGING.mlflow_uri or LOGGING.wandb_mode says so, and then for seconds, not minutes. The runs that they keep are
named in the run's trackers.json, so that a resumed run goes on in them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from configs.default_config import Config
from configs.errors import ConfigError
from configs.logging_settings import trackers_of
from configs.origins import leaves
from utils.listener import EpochEnd, Listener
from utils.runs.files import BEST, CONFIG, LOG, METRICS, TRACKERS
from utils.runs.folder import RunFolder
from utils.runs.mlflow_tracker import MLflowTracker
from utils.runs.wandb_tracker import WandbTracker

logger = logging.getLogger(__name__)

Ending = Literal["finished", "interrupted", "failed"]
# Packages that a tracker needs, of MLflow also for a store in a file.
_PACKAGES = {"mlflow": ("mlflow",), "wandb": ("wandb",)}
_OF_DATABASES = ("sqlalchemy", "alembic")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_INSTALL = "pip install -r requirements-trackers.txt"
_FILES = {
    "config": (CONFIG,),
    "figures": ("training_curves.*", "roc_curves.*"),
    "log": (LOG, METRICS),
    "model": (BEST,),
}


class Tracker(Protocol):
    """One run in a tracker; each call may raise anything."""

    def start(self, params: Mapping[str, str], known: str | None) -> str:
        """Begin a run, or go on with the one that an earlier process called `known`; its name from now on."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Finite figures by name, of an optimizer step."""

    def finish(self, final: Mapping[str, float], files: Sequence[Path], ending: Ending) -> None:
        """The figures of the report, files to keep, and how it ended."""


class TrackerListener(Listener):
    """Tells one tracker of a run; from its first failure on nothing, and says so."""

    def __init__(self, name: str, tracker: Tracker, run: RunFolder) -> None:
        self.name, self.tracker, self.run = name, tracker, run
        self.failed = False
        self.final: dict[str, float] = {}

    def start(self, config: Config, resumed: bool) -> None:
        """Begin, or go on with the run that trackers.json names."""
        params = {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in _plain(config).items()}
        runs = _known_runs(self.run.path)

        def begin() -> None:
            runs[self.name] = self.tracker.start(params, runs.get(self.name) if resumed else None)
            self.run.write_json(TRACKERS, runs)

        self._attempt(begin)

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        self._attempt(lambda: self.tracker.log(step, _finite(figures)))

    def on_epoch(self, end: EpochEnd) -> None:
        self._attempt(lambda: self.tracker.log(end.record["step"], figures_of(end.record)))

    def on_report(self, record: Mapping[str, object]) -> None:
        self.final = {f"{record.get('split')}/{name}": value for name, value in figures_of(record).items()}

    def finish(self, artifacts: Sequence[str], ending: Ending) -> None:
        """After the report, or when the run is left."""
        patterns = [pattern for kind in artifacts for pattern in _FILES[kind]]
        files = [path for pattern in patterns for path in sorted(self.run.path.glob(pattern))]
        self._attempt(lambda: self.tracker.finish(self.final, files, ending))

    def _attempt(self, work: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            work()
        except Exception as error:  # whatever a tracker raises is no reason to end a training
            self.failed = True
            what = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            logger.warning("%s failed and is told no more of this run, which goes on (%s)", self.name, what)


def check_trackers(config: Config) -> None:
    """Raises ConfigError where LOGGING.trackers names one whose package is not installed."""
    for name in trackers_of(config.LOGGING):
        needed: tuple[str, ...] = _PACKAGES.get(name, ())
        if name == "mlflow" and (config.LOGGING.mlflow_uri or "sqlite").startswith(_DATABASES):
            needed += _OF_DATABASES
        lacking = [package for package in needed if find_spec(package) is None]
        if lacking:
            raise ConfigError(
                f"LOGGING.trackers: {name} needs {', '.join(lacking)}, which is not installed: {_INSTALL}, or leave "
                f"{name} out"
            )


@contextmanager
def watching_trackers(config: Config, run: RunFolder, resumed: bool) -> Iterator[list[TrackerListener]]:
    """The listeners of MLflow and Weights & Biases that LOGGING.trackers names; finished as the context is left.

    Raises ConfigError where one is not installed.
    """
    check_trackers(config)
    settings = config.LOGGING
    experiment = settings.experiment or config.MODEL.name
    makers: dict[str, Callable[[], Tracker]] = {
        "mlflow": lambda: MLflowTracker(settings.mlflow_uri, experiment, run.path),
        "wandb": lambda: WandbTracker(settings.wandb_mode, experiment, run.path),
    }
    listeners = [TrackerListener(name, makers[name](), run) for name in trackers_of(settings) if name in makers]
    ending: Ending = "failed"
    try:
        for listener in listeners:
            listener.start(config, resumed)
        yield listeners
        ending = "finished" if all(listener.final for listener in listeners) else "interrupted"
    finally:
        for listener in listeners:
            listener.finish(settings.tracker_artifacts, ending)


def figures_of(record: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a row of metrics.jsonl: by key, of a class as 'auroc/<class>', of regions as 'attention/<key>'."""
    found = {key: value for key, value in record.items() if key not in ("epoch", "step")}
    nested = found.pop("attention", None)
    if isinstance(nested, Mapping):
        found |= {f"attention/{key}": value for key, value in nested.items()}
    classes = found.pop("per_class", None)
    for one in classes if isinstance(classes, list) else []:
        found |= {f"{key}/{one['name']}": value for key, value in one.items() if key != "name"}
    return _finite(found)


def _finite(figures: Mapping[str, object]) -> dict[str, float]:
    """Without what is no number, and what is not finite."""
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _plain(config: Config) -> dict[str, object]:
    sections = config.model_dump(mode="json")
    found: dict[str, object] = {}
    for key in leaves(config):
        value: object = sections
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        found[key] = value
    return found


def _known_runs(folder: Path) -> dict[str, str]:
    """What trackers.json says: tracker → its name for the run. {} where it says nothing that can be read."""
    try:
        content = json.loads((folder / TRACKERS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("'%s' cannot be read, so trackers begin a new run: %s", folder / TRACKERS, error)
        return {}
    return (
        {str(name): value for name, value in content.items() if isinstance(value, str)}
        if isinstance(content, dict)
        else {}
    )
