"""A run that resumes from an earlier checkpoint than its newest: files of the epochs that are abandoned by that.

They are set aside, so that the weights in a run's folder belong to one sequence of steps, and the best of them is best
in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import DamagedCheckpointError
from utils.best_metric import score_of, score_of_before
from utils.checkpoint import OPERATING_POINT, load_checkpoint, save_checkpoint, set_aside
from utils.listener import FileContent
from utils.runs.files import BEST, EPOCHS, LAST, PREVIOUS, epoch_file
from utils.runs.json_lines import JsonObject
from utils.runs.status import Standing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trajectory:
    """The folder of a run that resumes from `standing`. is_newest: that is of the newest checkpoint in it.

    best_by: the figure of the standing's score; None: as versions scored that had no CHECKPOINT.best_by.
    """

    folder: Path
    standing: Standing
    is_newest: bool
    best_by: str | None = None

    def set_aside_others(self) -> list[str]:
        """Rename the weights of abandoned epochs to *.abandoned, and log it. Returns the names that they had.

        last.pth goes last: a process killed in here leaves a run that can be resumed from where it was.
        """
        names = []
        for path in self._others():
            aside = set_aside(path, "abandoned")
            names.append(path.name)
            step = self.standing.global_step
            logger.warning("'%s' does not belong to the run resumed from step %d: kept as '%s'", path, step, aside.name)
        return names

    def restore_best(self, description: Mapping[str, object], history: list[JsonObject]) -> bool:
        """Where best_model.pth is gone, write it again from what was saved at the end of its epoch.

        description: what it carries beside weights. False where there is no such file, and nothing is written.
        Raises CheckpointError where it cannot be written.
        """
        best = self.standing.best_epoch + 1
        rows = [row for row in history if row.get("epoch") == best]
        for path in (self.folder / epoch_file(best), self.folder / LAST, self.folder / PREVIOUS):
            content = _load(path) if rows else None
            if content is None or not _ends_epoch(content, best):
                continue
            average = content.get("ema")
            weights = average["shadow"] if isinstance(average, dict) else content["model"]
            point = {OPERATING_POINT: content[OPERATING_POINT]} if OPERATING_POINT in content else {}
            save_checkpoint({**description, "model": weights, "metrics": rows[0], **point}, self.folder / BEST)
            logger.info("%s is the one of epoch %d again, from '%s'", BEST, best, path.name)
            return True
        return False

    def _others(self) -> Iterator[Path]:
        for path in sorted(self.folder.glob(EPOCHS)):
            number = path.stem.removeprefix("epoch_")
            if number.isdigit() and int(number) > self.standing.epoch:
                yield path
        if (self.folder / BEST).is_file() and not self._has_this_best():
            yield self.folder / BEST
        for path in () if self.is_newest else (self.folder / PREVIOUS, self.folder / LAST):
            step = _progress(_load(path) or {}).get("global_step")
            if isinstance(step, int) and step > self.standing.global_step:
                yield path

    def _has_this_best(self) -> bool:
        """Whether best_model.pth may be of this run: of an earlier epoch, and with its score if it is the best's."""
        metrics = (_load(self.folder / BEST) or {}).get("metrics")
        epoch = metrics.get("epoch") if isinstance(metrics, dict) else None
        if not isinstance(metrics, dict) or not isinstance(epoch, int):
            return True  # damaged: the report says so
        if epoch == self.standing.best_epoch + 1:
            by = self.best_by
            score = score_of_before(metrics) if by is None else score_of(metrics, by)
            return score == self.standing.best_score
        return epoch <= self.standing.epoch


def _ends_epoch(content: FileContent, epoch: int) -> bool:
    progress = _progress(content)
    sums = progress.get("sums")
    return progress.get("epoch") == epoch and isinstance(sums, dict) and sums.get("batches") == 0


def _progress(content: FileContent) -> FileContent:
    progress = content.get("progress")
    return progress if isinstance(progress, dict) else {}


def _load(path: Path) -> FileContent | None:
    try:
        return load_checkpoint(path) if path.is_file() else None
    except DamagedCheckpointError as error:
        logger.warning("%s", error)
        return None
