"""The folder of a run: config, split, checkpoints, metrics, plots, environment."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from configs.errors import CheckpointError
from utils.atomic_file import clear_leftovers, write_atomically
from utils.renamed_keys import todays_figures

LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best_model.pth"
_CONFIG, _METRICS, _LOCK = "config.yaml", "metrics.jsonl", ".lock"


class RunFolder:
    """Names and writes the files of one run; one process at a time has it.

    history: one record per epoch, as in metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []
        self._behind = False  # metrics.jsonl lacks rows of the history
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, save_dir: str, name: str) -> RunFolder:
        """A new folder, or one that a run was killed in before it had written its config.

        A run is never written over: CheckpointError if there is one of this name.
        """
        run = cls(Path(save_dir) / name)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the run's folder '{run.path}': {error.strerror}") from None
        if any(path.name != _LOCK and not path.name.endswith(".tmp") for path in run.path.iterdir()):
            raise CheckpointError(
                f"'{run.path}' exists already: choose another LOGGING.run_name, or go on with it by --resume {run.path}"
            )
        run._take()
        return run

    @classmethod
    def open(cls, path: Path, last_epoch: int) -> RunFolder:
        """The folder of an earlier run, with its history up to `last_epoch`.

        Raises CheckpointError where another process trains in it.
        """
        run = cls(path)
        run._take()
        clear_leftovers(path)
        run.history = [row for row in _read_rows(run.metrics) if row.get("epoch", math.inf) <= last_epoch]
        try:
            run._rewrite_metrics()
        except OSError as error:
            raise CheckpointError(f"cannot write '{run.metrics}': {error.strerror}") from None
        return run

    def _take(self) -> None:
        """Lock the folder until this process ends, however it ends; data workers do not inherit the lock."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            self._lock = (self.path / _LOCK).open("a+")
        except OSError as error:
            raise CheckpointError(f"cannot write to the run's folder '{self.path}': {error.strerror}") from None
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                message = f"another process is training in '{self.path}': wait for it, or stop it"
                raise CheckpointError(message) from None
            # else a network file system without locks: there is nothing to hold

    @property
    def config(self) -> Path:
        return self.path / _CONFIG

    @property
    def split(self) -> Path:
        return self.path / "split.csv"

    @property
    def metrics(self) -> Path:
        return self.path / _METRICS

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, complete or not at all."""
        target = self.path / name
        try:
            write_atomically(target, text.encode())
        except OSError as error:
            raise CheckpointError(f"cannot write '{target}': {error.strerror}") from None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write plain values as JSON; NaN becomes null."""
        self.write_text(name, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Append a record to metrics.jsonl; one with an 'epoch' joins the history.

        Raises CheckpointError where it cannot be written; the next record that can brings it along.
        """
        row = _plain(record)
        if "epoch" in row:
            self.history.append(row)
        try:
            if self._behind:
                self._rewrite_metrics([] if "epoch" in row else [row])
            else:
                with self.metrics.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._behind = False
        except OSError as error:
            self._behind = True
            raise CheckpointError(f"cannot write '{self.metrics}': {error.strerror}") from None

    def _rewrite_metrics(self, more: Sequence[Mapping[str, Any]] = ()) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (*self.history, *more)]
        write_atomically(self.metrics, "".join(lines).encode())


def find_run(resume: str, save_dir: str) -> Path:
    """What `--resume` means: a checkpoint file, a run's folder, or '' for the newest run in save_dir."""
    if resume:
        path = Path(resume)
        if path.is_file() or (path.is_dir() and _last_written(path)):
            return path
        raise CheckpointError(f"--resume: there is no run and no checkpoint '{path}'; runs are folders in {save_dir}")
    found = {path: _last_written(path) for path in Path(save_dir).glob("*/")}
    runs = [path for path, written in found.items() if written]
    if not runs:
        raise CheckpointError(f"--resume: there is no run in '{save_dir}'; name its folder, or begin a new run")
    return max(runs, key=lambda path: found[path])


def folder_of(resumed: Path) -> Path:
    """The run's folder of what `find_run` gave."""
    return resumed if resumed.is_dir() else resumed.parent


def model_file(path: Path) -> Path:
    """The file that a model is read from: the path itself, of a run's folder best_model.pth or else last.pth.

    Raises CheckpointError where there is none.
    """
    if not path.is_dir():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"there is no {BEST} and no {LAST} in the folder '{path}': name a checkpoint's file")


def remains_of_training(folder: Path) -> list[str]:
    """What shows that training had got past its first checkpoint, whether or not one is left; [] where it had not.

    One epoch's row, with or without its best_model.pth, is what a run leaves that was killed in its first save.
    """
    found = sorted(path.name for pattern in ("*.corrupt", "epoch_*.pth") for path in folder.glob(pattern))
    rows = _read_rows(folder / _METRICS)
    killed_in_its_first_save = not found and [row.get("epoch") for row in rows] == [1]
    if killed_in_its_first_save:
        return []
    best = [BEST] if (folder / BEST).is_file() else []
    return [*best, *found, *([f"{_METRICS} with {len(rows)} rows"] if rows else [])]


def in_use(folder: Path) -> bool:
    """Whether another process is training in a run's folder."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        lock = (folder / _LOCK).open("r+")
    except OSError:  # no run's folder, or one that nobody here can write to
        return False
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _last_written(folder: Path) -> float:
    """When a run's config or a checkpoint to go on from was written; 0 where the folder is no run's."""
    files = [folder / name for name in (_CONFIG, LAST, PREVIOUS)]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, under today's keys; a last line that a killed run left half written is
    dropped.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(row, dict):
            rows.append(todays_figures(row))
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
