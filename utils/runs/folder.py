"""The folder of a run: config, split, checkpoints, metrics, plots, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from configs.errors import CheckpointError
from utils.atomic_file import clear_leftovers, write_atomically
from utils.runs.files import BEST, CONFIG, CROSS_VALIDATION, EPOCHS, LAST, LOCK, METRICS, PREVIOUS, SPLIT
from utils.runs.json_lines import JsonObject, plain_object, to_line
from utils.runs.lock import FolderLock

if TYPE_CHECKING:  # --help does without what reads a run
    from utils.runs.view import RunView

_MOST_OF_A_NAME = 1000


class RunFolder:
    """Names and writes the files of one run; one training at a time has it, until it is closed.

    history: one record per epoch, as in metrics.jsonl. results: the records of this process that are of no epoch.
    """

    def __init__(self, path: Path, lock: FolderLock | None = None) -> None:
        self.path, self._lock = path, lock
        self.history: list[JsonObject] = []
        self.results: list[JsonObject] = []
        self._behind = False  # metrics.jsonl lacks rows of the history

    @classmethod
    def create(cls, save_dir: str, name: str) -> RunFolder:
        """A new folder, or one that a run was killed in before it had written its config.

        A run is never written over: CheckpointError if there is one of this name.
        """
        path = Path(save_dir) / name
        _make(path, exist_ok=True)
        _refuse_what_is_there(path)
        lock = FolderLock(path)
        try:
            _refuse_what_is_there(path)  # by another process that has come and gone since
        except CheckpointError:
            lock.release()
            raise
        return cls(path, lock)

    @classmethod
    def create_numbered(cls, save_dir: str, name: str) -> RunFolder:
        """A new folder of this name, or name-2, name-3 … where there is one: no two callers get the same."""
        for number in range(1, _MOST_OF_A_NAME + 1):
            path = Path(save_dir) / (name if number == 1 else f"{name}-{number}")
            try:
                _make(path, exist_ok=False)
            except FileExistsError:
                continue
            return cls(path, FolderLock(path))
        raise CheckpointError(f"there are {_MOST_OF_A_NAME} runs '{name}' in '{save_dir}': choose a LOGGING.run_name")

    @classmethod
    def open(cls, path: Path, last_epoch: int, lock: FolderLock | None = None) -> RunFolder:
        """The folder of an earlier run, with its history up to `last_epoch`.

        lock: of this folder, where the caller has it already; it is released by `close`.
        Raises CheckpointError where a training is going on in it.
        """
        from utils.runs.view import read_history

        run = cls(path, lock or FolderLock(path))
        try:
            clear_leftovers(path)
            run.history = [row for row in read_history(path) if epoch_of(row) in range(1, last_epoch + 1)]
            run._rewrite_metrics()
        except OSError as error:
            run.close()
            raise CheckpointError(f"cannot write '{run.metrics}': {error.strerror}") from None
        return run

    @staticmethod
    def read(path: Path) -> RunView:
        """A run for a reader: never locks, never writes. Raises CheckpointError where there is no folder."""
        from utils.runs.view import RunView

        if not path.is_dir():
            raise CheckpointError(f"there is no run's folder '{path}'")
        return RunView(path)

    def close(self) -> None:
        """Let another training have the folder."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def split(self) -> Path:
        return self.path / SPLIT

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    def write_text(self, name: str, text: str) -> None:
        """Write a small file, complete or not at all."""
        target = self.path / name
        try:
            write_atomically(target, text.encode())
        except OSError as error:
            raise CheckpointError(f"cannot write '{target}': {error.strerror}") from None

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        """Write plain values as JSON; NaN becomes null."""
        self.write_text(name, json.dumps(plain_object(content), indent=2, ensure_ascii=False) + "\n")

    def add_record(self, record: Mapping[str, object]) -> None:
        """Append a record to metrics.jsonl; one with an 'epoch' joins the history.

        Raises CheckpointError where it cannot be written; the next record that can brings it along.
        """
        row = plain_object(record)
        (self.history if "epoch" in row else self.results).append(row)
        try:
            if self._behind:
                self._rewrite_metrics([] if "epoch" in row else [row])
            else:
                with self.metrics.open("a", encoding="utf-8") as file:
                    file.write(to_line(row))
            self._behind = False
        except OSError as error:
            self._behind = True
            raise CheckpointError(f"cannot write '{self.metrics}': {error.strerror}") from None

    def _rewrite_metrics(self, more: Sequence[JsonObject] = ()) -> None:
        write_atomically(self.metrics, "".join(map(to_line, (*self.history, *more))).encode())


def epoch_of(row: JsonObject) -> int:
    """The epoch that a row of metrics.jsonl is of, counted from 1; 0 where it is of none."""
    epoch = row.get("epoch")
    return epoch if type(epoch) is int else 0


def _make(path: Path, exist_ok: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok or not path.is_dir():
            raise CheckpointError(f"cannot make the run's folder '{path}': there is a file of this name") from None
        raise
    except OSError as error:
        raise CheckpointError(f"cannot make the run's folder '{path}': {error.strerror}") from None


def check_name_is_free(save_dir: str, name: str) -> None:
    """CheckpointError where `RunFolder.create` would refuse a name; nothing is made."""
    path = Path(save_dir) / name
    if path.is_dir():
        _refuse_what_is_there(path)


def _refuse_what_is_there(path: Path) -> None:
    if any(found.name != LOCK and not found.name.endswith(".tmp") for found in path.iterdir()):
        raise CheckpointError(
            f"'{path}' exists already: choose another LOGGING.run_name, or continue it by --resume {path}"
        )


def find_run(resume: str, save_dir: str) -> Path:
    """What `--resume` means: a checkpoint file, a run's folder, or '' for the newest run in save_dir."""
    if resume:
        path = Path(resume)
        if path.is_file() or (path.is_dir() and _last_written(path)):
            return path
        raise CheckpointError(f"--resume: there is no run and no checkpoint '{path}'; runs are folders in {save_dir}")
    return find_newest(save_dir)


def find_newest(save_dir: str, names: Sequence[str] = (CONFIG, LAST, PREVIOUS), what: str = "run") -> Path:
    """The folder in save_dir in which any of these files was written last; CheckpointError where there is none."""
    found = {path: _last_written(path, names) for path in Path(save_dir).glob("*/")}
    runs = [path for path, written in found.items() if written]
    if not runs:
        raise CheckpointError(f"--resume: there is no {what} in '{save_dir}'; name its folder, or start a new {what}")
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
    if (path / CROSS_VALIDATION).is_file():
        raise CheckpointError(f"'{path}' is a cross-validation, of several models: name one, such as {path / 'fold0'}")
    raise CheckpointError(f"there is no {BEST} and no {LAST} in the folder '{path}': name a checkpoint's file")


def remains_of_training(folder: Path) -> list[str]:
    """What shows that training had got past its first checkpoint, whether or not one is left; [] where it had not.

    One epoch's row, with or without its best_model.pth, is what a run leaves that was killed in its first save.
    """
    from utils.runs.view import read_history

    found = sorted(path.name for pattern in ("*.corrupt", EPOCHS) for path in folder.glob(pattern))
    rows = read_history(folder)
    killed_in_its_first_save = not found and [row.get("epoch") for row in rows] == [1]
    if killed_in_its_first_save:
        return []
    best = [BEST] if (folder / BEST).is_file() else []
    return [*best, *found, *([f"{METRICS} with {len(rows)} rows"] if rows else [])]


def _last_written(folder: Path, names: Sequence[str] = (CONFIG, LAST, PREVIOUS)) -> float:
    """When a run's config or a checkpoint to resume from was written; 0 where the folder is no run's."""
    files = [folder / name for name in names]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
