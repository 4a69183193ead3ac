"""From a run's folder to the newest checkpoint in it that is whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from configs.errors import CheckpointError, DamagedCheckpointError
from utils.checkpoint.files import load_checkpoint
from utils.checkpoint.integrity import verify
from utils.listener import FileContent
from utils.runs.files import BEST, EPOCHS, LAST, PREVIOUS
from utils.runs.folder import remains_of_training

logger = logging.getLogger(__name__)


def load_resumable(path: Path) -> FileContent | None:
    """What to resume from: a checkpoint's content, of a folder last.pth's; None where a run had not reached its first.

    A damaged last.pth of a folder is renamed to last.pth.corrupt, and of those that are left the one with the most
    optimizer steps is taken; both are logged. Raises CheckpointError where none of them is whole, and for a damaged
    file that was named itself.
    """
    if not path.is_dir():
        return load_checkpoint(path)
    last = path / LAST
    try:
        found = load_checkpoint(last) if last.is_file() else _newest_other(path)
    except DamagedCheckpointError as error:
        logger.warning("%s; kept as '%s'", error, set_aside(last).name)
        found = _newest_other(path)
    if found is None:
        _refuse_to_begin_over(path)
    return found


def _refuse_to_begin_over(folder: Path) -> None:
    """CheckpointError where a folder without a whole checkpoint shows that a training made progress in it."""
    remains = remains_of_training(folder)
    if not remains:
        logger.warning("'%s' had not reached its first checkpoint: the run starts from the beginning", folder)
        return
    best = folder / BEST
    advice = f", from these weights by MODEL.init_from={best}" if best.is_file() and _is_whole(best) else ""
    raise CheckpointError(
        f"no checkpoint in '{folder}' is whole, but a training made progress in it ({', '.join(remains)}): it is not "
        f"started over. Start a new run under another LOGGING.run_name{advice}"
    )


def _is_whole(path: Path) -> bool:
    try:
        return verify(path)
    except CheckpointError:
        return False


def set_aside(path: Path, why: Literal["corrupt", "abandoned"] = "corrupt") -> Path:
    """Rename a file that is damaged, or of abandoned epochs, to *.<why>, never over an earlier one; its new name."""
    aside = path.with_name(f"{path.name}.{why}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{number}.{why}")
    try:
        path.rename(aside)
    except OSError as error:
        raise CheckpointError(f"'{path}' is {why}, and cannot be renamed: {error.strerror}") from None
    return aside


def _newest_other(folder: Path) -> FileContent | None:
    """The content with the most optimizer steps of all but last.pth, None where no other is whole."""
    newest: tuple[int, Path, FileContent] | None = None
    for path in filter(Path.is_file, (folder / PREVIOUS, *sorted(folder.glob(EPOCHS)))):
        try:
            content = load_checkpoint(path)
        except DamagedCheckpointError as error:
            logger.warning("%s; kept as '%s'", error, set_aside(path).name)
            continue
        step = content.get("progress", {}).get("global_step", -1)
        if newest is None or step > newest[0]:
            newest = step, path, content
    if newest is None:
        return None
    step, path, content = newest
    logger.warning("going on from '%s', optimizer step %d", path.name, step)
    return content
