"""Folders that a run writes into: whether they can be made and written, and whether there is space."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from utils.examination.findings import Finding, Severity
from utils.examination.memory import standing_bytes


@dataclass(frozen=True)
class Wanted:
    """A folder that will be written. setting: which says so. first: bytes without which nothing is saved at all; in
    all: by the end of the run. optional: a run goes on without it.
    """

    setting: str
    folder: Path
    first: int = 0
    in_all: int = 0
    optional: bool = False

    def describe(self) -> str:
        """'12.3 GB free; checkpoints take 0.10 GB at first and 0.50 GB in all'."""
        free, first, in_all = shutil.disk_usage(nearest_folder(self.folder)).free, self.first, self.in_all
        return (
            f"{free / 1e9:.1f} GB free; checkpoints take {first / 1e9:.2f} GB at first and {in_all / 1e9:.2f} GB in all"
        )


def checkpoint_folder(
    folder: Path, model: nn.Module | None, optimizer: str, averaged: bool, kept_epochs: int, optional: bool
) -> Wanted:
    """What a run's folder takes. kept_epochs: files that stay beside last.pth, previous.pth and best_model.pth."""
    if model is None:
        return Wanted("CHECKPOINT.save_dir", folder, optional=optional)
    last, best = standing_bytes(model, optimizer, averaged), standing_bytes(model, "none", False)
    # Each file is written beside the old one before that goes.
    return Wanted("CHECKPOINT.save_dir", folder, last + best, (3 + kept_epochs) * last + best, optional)


def disk_findings(wanted: Wanted) -> Iterator[Finding]:
    """Nothing is left behind by looking."""
    parent = nearest_folder(wanted.folder)
    fails: Severity = "warning" if wanted.optional else "error"
    problem = unwritable(parent)
    if problem:
        yield Finding(
            fails,
            "disk",
            f"{wanted.setting} '{wanted.folder}' cannot be written: {problem}",
            f"check the permissions, or set {wanted.setting} to another folder",
        )
        return
    free = shutil.disk_usage(parent).free
    if free < wanted.first or free < wanted.in_all:
        need = wanted.first if free < wanted.first else wanted.in_all
        when = "the first save" if free < wanted.first else "the whole run"
        yield Finding(
            fails if free < wanted.first else "warning",
            "disk",
            f"{wanted.setting} '{wanted.folder}' has {free / 1e9:.2f} GB free, and {when} takes {need / 1e9:.2f} GB",
            "free some space, write elsewhere, or keep fewer checkpoints (CHECKPOINT.save_freq=0)",
        )


def nearest_folder(path: Path) -> Path:
    """The path itself or the nearest parent that exists; it may be a file."""
    absolute = path.absolute()
    return next((one for one in (absolute, *absolute.parents) if os.path.lexists(one)), Path("/"))


def unwritable(folder: Path) -> str:
    """Why nothing can be made in a folder that exists; '' where it can."""
    if not folder.is_dir():
        return f"'{folder}' is a file, not a folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{error.strerror} ('{folder}')"
