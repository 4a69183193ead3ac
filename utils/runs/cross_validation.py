"""The folder of a cross-validation: which runs are in it, and where each of them stands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from configs.errors import CheckpointError
from utils.atomic_file import write_atomically
from utils.runs.files import CONFIG, CONTROL, CROSS_VALIDATION, FOLD_SPLITS, LAST, LOG, PREVIOUS, STATUS, STEPS
from utils.runs.folder import find_newest, model_file

if TYPE_CHECKING:  # --help does without pydantic
    from configs.default_config import Config
    from configs.differences import Difference
    from configs.section import Section

Validation = Literal["inner", "held-out"]
Part = Literal["all", "train", "train+val"]


@dataclass(frozen=True)
class Member:
    """One run: the name of its folder, the fold that it holds out, its TRAIN.seed."""

    run: str
    fold: int
    seed: int


@dataclass(frozen=True)
class CrossValidation:
    """What cross_validation.json holds.

    folds: how many; 1: the same split each time. seed: of the draw of folds. seeds: of the runs of each fold.
    validation: 'inner', drawn from the patients that a fold is trained on, or 'held-out': the scored part itself.
    part: of which studies the folds are. labels_sha256: of all labels, as they were when it began.
    """

    folds: int
    seed: int
    seeds: tuple[int, ...]
    validation: Validation
    part: Part
    labels_sha256: str

    @property
    def members(self) -> tuple[Member, ...]:
        """All runs, the folds of one seed after the other."""
        return tuple(
            Member(f"fold{fold}" if seed == self.seeds[0] else f"fold{fold}-seed{seed}", fold, seed)
            for seed in self.seeds
            for fold in range(self.folds)
        )

    def write(self, folder: Path) -> None:
        """Into its folder, whole or not at all."""
        content = json.dumps(asdict(self), indent=2) + "\n"
        try:
            write_atomically(folder / CROSS_VALIDATION, content.encode())
        except OSError as error:
            raise CheckpointError(f"cannot write '{folder / CROSS_VALIDATION}': {error.strerror}") from None

    @classmethod
    def read(cls, folder: Path) -> CrossValidation:
        """Raises CheckpointError where it is not there or damaged."""
        from pydantic import TypeAdapter, ValidationError  # not for --help

        path = folder / CROSS_VALIDATION
        try:
            found = TypeAdapter(CrossValidation).validate_json(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"cannot read '{path}': {error.strerror}") from None
        except ValidationError as error:
            raise CheckpointError(f"'{path}' is damaged: {error.errors()[0]['msg']}") from None
        if found.folds < 1 or not found.seeds or len(set(found.seeds)) < len(found.seeds):
            raise CheckpointError(f"'{path}' is damaged: it has no folds, or no seeds that differ")
        return found


def is_cross_validation(folder: Path) -> bool:
    """Whether a folder is that of a cross-validation."""
    return (folder / CROSS_VALIDATION).is_file()


def find_cross_validation(asked: str, save_dir: str) -> Path:
    """What `cross_validate.py --resume` means: a folder, or '' for the newest in save_dir."""
    if asked and is_cross_validation(Path(asked)):
        return Path(asked)
    if asked:
        raise CheckpointError(
            f"--resume: '{asked}' is no folder of a cross-validation (there is no {CROSS_VALIDATION})"
        )
    return find_newest(save_dir, (CROSS_VALIDATION,), "cross-validation")


def split_path(folder: Path, fold: int) -> Path:
    """The file of a fold's split, which its runs begin with."""
    return folder / FOLD_SPLITS / f"fold{fold}.csv"


def standing(run: Path) -> str:
    """Where a run stands: a phase of its status.json, or 'not begun'."""
    from utils.runs.status import read_status

    status = read_status(run) if run.is_dir() else None
    return "not begun" if status is None else status.phase


def resumable(run: Path) -> bool:
    """Whether a run's folder has something to go on from; what one left that had not begun is cleared away."""
    if any((run / name).is_file() for name in (CONFIG, LAST, PREVIOUS)):
        return True
    for name in (STATUS, STEPS, LOG, CONTROL):
        (run / name).unlink(missing_ok=True)
    return False


def settings_of(config: Config, record: CrossValidation, member: Member, folder: Path) -> Config:
    """Of a run that begins: those of all, with its split, its seed and its place.

    What 'auto' times as training begins is taken over from the first run, so that all are made alike.
    """
    from configs.default_config import Config

    config = config.model_copy(deep=True)
    config.DATA.split_file = str(split_path(folder, member.fold))
    config.TRAIN.seed = member.seed
    config.CHECKPOINT.save_dir, config.LOGGING.run_name = str(folder), member.run
    config.LOGGING.log_dir = str(Path(config.LOGGING.log_dir) / folder.name)
    first = folder / record.members[0].run / CONFIG
    if first.is_file():
        chosen = Config.from_yaml(first, saved=True).TRAIN
        for key in ("mixed_precision", "channels_last"):
            if config.TRAIN[key] == "auto":
                config.TRAIN[key] = chosen[key]
    return config


def changed_settings(config: Config, changed: Iterable[Difference]) -> Config:
    """A resumed run's own, with what is other than it was for all of them."""
    for one in changed:
        *path, key = one.key.split(".")
        section: Section = config
        for name in path:
            section = section[name]
        section[key] = one.now
    return config


def model_files(path: Path) -> list[Path]:
    """The files that a path names: of a cross-validation those of all of its runs, else `model_file` alone.

    Raises CheckpointError where one of the runs is not finished.
    """
    if not is_cross_validation(path):
        return [model_file(path)]
    members = CrossValidation.read(path).members
    return _finished([path / member.run for member in members], path)


def _finished(runs: Sequence[Path], folder: Path) -> list[Path]:
    open_runs = [f"{run.name} ({phase})" for run in runs if (phase := standing(run)) != "finished"]
    if open_runs:
        raise CheckpointError(
            f"the cross-validation '{folder}' is not finished: {', '.join(open_runs)}; go on by "
            f"cross_validate.py --resume {folder}"
        )
    return [model_file(run) for run in runs]
