"""What a training that was called from Python gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.runs.control import Interrupted
from utils.runs.folder import RunFolder, epoch_of
from utils.runs.json_lines import JsonObject


@dataclass(frozen=True)
class RunResult:
    """Where a run has got to.

    folder: the run's. best_epoch: counted from 1, 0 before one has ended. best: that epoch's row of metrics.jsonl, with
    its figures on the validation split. report: the row of the final report, None where it was not made. interrupted:
    the request on which the run was saved and left; None where it finished.
    """

    folder: Path
    best_epoch: int
    best: JsonObject | None
    report: JsonObject | None
    interrupted: Interrupted | None = None

    @property
    def finished(self) -> bool:
        return self.interrupted is None


def result_of(run: RunFolder, best_epoch: int, interrupted: Interrupted | None) -> RunResult:
    """Of a run that has ended or was left."""
    best = next((row for row in run.history if epoch_of(row) == best_epoch), None)
    report = run.results[-1] if run.results else None
    return RunResult(run.path, best_epoch, best, report, interrupted)
