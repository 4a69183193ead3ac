"""The folder of a run: config, split, checkpoints, metrics, plots, environment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError

LAST, BEST = "last.pth", "best_model.pth"


class RunFolder:
    """Names and writes the files of one run.

    history: one record an epoch, as in metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []

    @classmethod
    def create(cls, save_dir: str, name: str) -> RunFolder:
        """A new folder. A run is never written over: CheckpointError if there is one of this name."""
        path = Path(save_dir) / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise CheckpointError(
                f"'{path}' exists already: choose another LOGGING.run_name, or go on with it by --resume {path}"
            ) from None
        except OSError as error:
            raise CheckpointError(f"cannot make the run's folder '{path}': {error.strerror}") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path, last_epoch: int) -> RunFolder:
        """The folder of an earlier run, with its history up to `last_epoch`."""
        run = cls(path)
        run.history = [row for row in _read_rows(run.metrics) if row.get("epoch", math.inf) <= last_epoch]
        run._rewrite_metrics()
        return run

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def split(self) -> Path:
        return self.path / "split.csv"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, complete or not at all."""
        target = self.path / name
        temporary = target.with_name(f".{name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise CheckpointError(f"cannot write '{target}': {error.strerror}") from None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write plain values as JSON; NaN becomes null."""
        self.write_text(name, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Append a record to metrics.jsonl; one with an 'epoch' joins the history."""
        row = _plain(record)
        if "epoch" in row:
            self.history.append(row)
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write '{self.metrics}': {error.strerror}") from None

    def _rewrite_metrics(self) -> None:
        self.write_text(self.metrics.name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.history))


def find_run(resume: str, save_dir: str) -> Path:
    """The checkpoint that `--resume` means: a file, a run's folder, or '' for the newest run in save_dir."""
    if resume:
        path = Path(resume)
        checkpoint = path / LAST if path.is_dir() else path
        if not checkpoint.is_file():
            raise CheckpointError(f"--resume: there is no checkpoint '{checkpoint}'; runs are folders in {save_dir}")
        return checkpoint
    found = sorted(Path(save_dir).glob(f"*/{LAST}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise CheckpointError(f"--resume: no run in '{save_dir}' has a {LAST}; name its folder, or begin a new run")
    return found[-1]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a killed run left half written is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _plain(value: Any) -> Any:
    """NaN and infinities as None, tuples as lists: what JSON can carry."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
