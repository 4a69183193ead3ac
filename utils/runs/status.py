"""status.json: where a training stands, for whoever watches it from another process."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

from pydantic import TypeAdapter, ValidationError

from configs.errors import CheckpointError, HybridMedNetError
from utils.atomic_file import write_atomically
from utils.best_metric import BestSoFar, figure_of
from utils.listener import EpochEnd, Listener
from utils.runs.control import Interrupted
from utils.runs.files import STATUS
from utils.runs.lock import lock_state
from utils.runs.save_errors import on_save_error
from utils.runs.steps import StepLog

RunningPhase: TypeAlias = Literal["starting", "training", "validating", "reporting"]
FinalPhase: TypeAlias = Literal["finished", "paused", "stopped", "failed"]
Phase: TypeAlias = RunningPhase | FinalPhase | Literal["lost"]
RUNNING = ("starting", "training", "validating", "reporting")

logger = logging.getLogger(__name__)


class Standing(Protocol):
    """Where to continue: epochs that have ended, optimizer steps, the best epoch (from 0; -1: none), its score."""

    epoch: int
    global_step: int
    best_epoch: int
    best_score: float


@dataclass(frozen=True)
class RunStatus:
    """What status.json holds.

    phase: 'lost' is never in the file; a reader reports it for a run whose process ended without a final status.
    step, total_steps: optimizer steps done, and of the whole run. epoch, epochs: epochs finished, and of the whole run.
    eta_seconds: until the last step, at the mean pace of this process; None before there is one, and where it ended.
    pid, host: of the process. started, updated: its start and this file's writing, ISO 8601, UTC.
    error: why it failed. best: None in files of earlier versions.
    """

    phase: Phase
    step: int
    total_steps: int
    epoch: int
    epochs: int
    eta_seconds: float | None
    pid: int
    host: str
    started: str
    updated: str
    error: str | None = None
    best: BestSoFar | None = None

    @property
    def is_running(self) -> bool:
        return self.phase in RUNNING


_STATUS = TypeAdapter(RunStatus)


class StatusWriter(Listener):
    """Listens to a training and keeps status.json and steps.jsonl; a context, as the way it is left is the last word.

    step, epoch: where a resumed run continues; the rows of steps.jsonl after that step are cut away.
    best: of the epochs before.
    continues: CHECKPOINT.on_save_error is 'continue'. seconds_between: between two writings within a phase.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        epochs: int,
        step: int = 0,
        epoch: int = 0,
        continues: bool = False,
        seconds_between: float = 1.0,
        best: BestSoFar | None = None,
    ) -> None:
        now = _now()
        position = (os.getpid(), socket.gethostname(), now, now)
        self.status = RunStatus("starting", step, total_steps, epoch, epochs, None, *position, best=best)
        self.path, self.steps = folder / STATUS, StepLog(folder)
        self.continues, self.seconds_between = continues, seconds_between
        self._first_step, self._began = step, time.monotonic()
        self._written = -float("inf")

    def __enter__(self) -> StatusWriter:
        with on_save_error(self.continues, self.steps.path.name):
            self.steps.go_on_after(self._first_step)
        self.on_phase("starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        try:
            phase, words = _last_word(error)
            self._write(replace(self.status, phase=phase, error=words, eta_seconds=None), durable=True)
        except OSError as trouble:
            logger.error("cannot write '%s': %s", self.path, trouble.strerror)

    def on_phase(self, phase: RunningPhase | FinalPhase) -> None:
        """A phase begins; the status is on the disk when this returns."""
        if phase == "training" and self.status.phase == "starting":
            self._began = time.monotonic()
        status = replace(self.status, phase=phase)
        if not status.is_running:
            status = replace(status, eta_seconds=None)
        with on_save_error(self.continues, self.path.name):
            self._write(status, durable=True)

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep a step's figures; the status where it is due."""
        with on_save_error(self.continues, self.steps.path.name):
            self.steps.add(step, figures)
        self.status = replace(self.status, step=step, eta_seconds=self._seconds_left(step))
        if time.monotonic() - self._written >= self.seconds_between:
            with on_save_error(self.continues, self.path.name):
                self._write(self.status, durable=False)

    def on_epoch(self, end: EpochEnd) -> None:
        """An epoch has ended, and its files are written."""
        epoch, step = end.record["epoch"], end.record["step"]
        if end.is_best and end.best_by is not None:
            best = BestSoFar(end.best_by, epoch, figure_of(end.record, end.best_by))
            self.status = replace(self.status, best=best)
        self.status = replace(self.status, epoch=epoch, step=step, eta_seconds=self._seconds_left(step))
        with on_save_error(self.continues, self.path.name):
            self._write(self.status, durable=False)

    def _seconds_left(self, step: int) -> float | None:
        done = step - self._first_step
        if done <= 0:
            return None
        pace = (time.monotonic() - self._began) / done
        return round(max(self.status.total_steps - step, 0) * pace, 1)

    def _write(self, status: RunStatus, durable: bool) -> None:
        """durable: survives a loss of power; else the file is whole for every reader all the same."""
        self._written = time.monotonic()
        self.status = replace(status, updated=_now())
        content = json.dumps(asdict(self.status), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path, content.encode(), durable)


def read_status(folder: Path) -> RunStatus | None:
    """Where a run stands; None where it has no status.json (no run, or one of an earlier version).

    A run that was in a phase of training is 'lost' where its lock is free, or where its file system has no locks and
    its process is no longer there. Raises CheckpointError where the file is damaged or cannot be read.
    """
    status = _read(folder / STATUS)
    while status is not None and status.is_running and _has_gone(folder, status):
        again = _read(folder / STATUS)
        if again is not None and (again.pid, again.started, again.phase) == (status.pid, status.started, status.phase):
            return replace(again, phase="lost", eta_seconds=None)
        status = again  # it ended, or another began, between the two looks
    return status


def _has_gone(folder: Path, status: RunStatus) -> bool:
    state = lock_state(folder)
    if state == "unknown":
        return status.host == socket.gethostname() and not _is_alive(status.pid)
    return state == "free"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _read(path: Path) -> RunStatus | None:
    try:
        return _STATUS.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CheckpointError(
            f"'{path}' is damaged ({where}: {first['msg']}): the run's other files are not touched by that, and "
            "the next training in it writes a new one"
        ) from None


def _last_word(error: BaseException) -> tuple[FinalPhase, str | None]:
    if isinstance(error, Interrupted):
        return error.left_as, None
    if isinstance(error, KeyboardInterrupt):
        return "stopped", None
    return "failed", str(error) if isinstance(error, HybridMedNetError) else f"{type(error).__name__}: {error}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
