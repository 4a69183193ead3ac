"""A run's folder: whether its checkpoints are whole, where it stands, what it would go on from. Nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from configs.errors import CheckpointError
from utils.checkpoint.files import examine, load_checkpoint
from utils.examination.findings import Report, Severity
from utils.listener import FileContent
from utils.runs.files import BEST, CONFIG, DOCTOR, EPOCHS, LAST, PREVIOUS
from utils.runs.folder import remains_of_training
from utils.runs.lock import in_use
from utils.runs.status import read_status


def is_run(folder: Path) -> bool:
    """Whether a folder is one of a run."""
    return folder.is_dir() and any((folder / name).exists() for name in (CONFIG, LAST, PREVIOUS, BEST))


def examine_run(path: Path, report: Report) -> FileContent | None:
    """What training would go on from, None where that is the beginning or nothing. path: the folder, or a checkpoint.

    The newest whole one is looked for as `load_resumable` does, which renames what is damaged.
    """
    folder = path if path.is_dir() else path.parent
    _tell_standing(folder, report)
    if not path.is_dir():
        return load_checkpoint(path)
    whole = [one for one in _checkpoints(folder) if _is_whole(one, report)]
    resumable = [load_checkpoint(one) for one in whole if one.name != BEST]
    if not resumable:
        remains = remains_of_training(folder)
        if remains:
            report.add(
                "error",
                "run",
                f"no checkpoint in '{folder}' is whole, but a training made progress in it ({', '.join(remains)}): it "
                "cannot be resumed",
                "start a new run under another LOGGING.run_name, by MODEL.init_from from a whole best_model.pth",
            )
        else:
            report.add(
                "note", "run", "the run had not reached its first checkpoint: --resume starts from the beginning"
            )
        return None
    if whole[0].name == LAST:
        return resumable[0]
    found = max(resumable, key=_steps)
    report.add("warning", "run", f"--resume would go on from an earlier checkpoint, optimizer step {_steps(found)}")
    return found


def _steps(content: FileContent) -> int:
    progress = content.get("progress")
    step = progress.get("global_step", -1) if isinstance(progress, Mapping) else -1
    return step if isinstance(step, int) else -1


def _checkpoints(folder: Path) -> list[Path]:
    """last.pth first."""
    return [
        path
        for path in (folder / LAST, folder / PREVIOUS, *sorted(folder.glob(EPOCHS)), folder / BEST)
        if path.is_file()
    ]


def _is_whole(path: Path, report: Report) -> bool:
    """best_model.pth is what evaluation and prediction read, so that these would fail without it."""
    try:
        report.fact("run", f"{path.name}: {path.stat().st_size / 1e6:,.1f} MB, {examine(path)}")
    except CheckpointError as error:
        severity: Severity = "error" if path.name == BEST else "warning"
        advice = "copy the file again from where it is whole, or delete it: --resume takes the next whole one"
        if path.name == BEST:
            advice = f"name {LAST} to evaluate.py and predict.py instead, or resume the run, which looks for it anew"
        report.add(severity, "run", str(error), advice)
        return False
    return True


def _tell_standing(folder: Path, report: Report) -> None:
    try:
        status = read_status(folder)
    except CheckpointError as error:
        report.add("warning", "run", str(error), "delete it: the next --resume writes it anew")
        return
    if in_use(folder):
        report.add("note", "run", "a training is going on in this folder: its files may change as they are looked at")
    if status is None:
        return
    report.fact("run", f"{status.phase}, epoch {status.epoch} of {status.epochs}, optimizer step {status.step:,}")
    if status.phase == "lost":
        report.add(
            "warning",
            "run",
            "its process ended without a last word (killed, or the machine went down)",
            f"python train.py --resume {folder}",
        )
    elif status.phase == "failed":
        report.add("warning", "run", f"it failed: {status.error}", f"mend that, then python train.py --resume {folder}")


def read_record(folder: Path) -> Mapping[str, object]:
    """The run's doctor.json; empty where there is none, or none that can be read."""
    try:
        content = json.loads((folder / DOCTOR).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}
