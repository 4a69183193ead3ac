"""Folds for cross-validation: patients whole, classes spread, and in each fold a validation part of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import DataError
from data.readers.tables import some
from data.splits.stratify import stratify_groups
from data.study import DatasetIndex

TRAIN, VAL, TEST = "train", "val", "test"
NO_FOLD = -1


@dataclass(frozen=True)
class Folds:
    """What each run of a cross-validation is trained, validated and scored on.

    held: int64 [N], the fold that holds a study out; NO_FOLD: none does. runs: the split of each fold's run, str [N]
    each; '' is in none of its splits. scored: the split that is held out there: 'test', or 'val' where that is the
    validation part as well. together: the split of the folds as one model, str [N]: 'train' is what any of them was
    trained on.
    """

    held: np.ndarray
    runs: tuple[np.ndarray, ...]
    scored: str
    together: np.ndarray

    def rows(self, fold: int) -> np.ndarray:
        """The studies that a fold holds out, in the order of the dataset index."""
        return np.flatnonzero(self.held == fold)


def draw_folds(
    dataset_index: DatasetIndex,
    given: np.ndarray,
    count: int,
    seed: int,
    validation_share: float,
    inner: bool = True,
) -> Folds:
    """Folds of the studies that `given`, str [N], calls 'train'; the others are in none.

    Of each fold's other patients the validation part is drawn, so many of their studies; without `inner` it is what
    the fold holds out. Both draws are `stratify_groups`, by patient: a function of the seed, the patients' names and
    the labels, whatever the order of the rows.
    Raises DataError where there are more folds than patients, or too few of them for a validation part.
    """
    pool = np.flatnonzero(given == TRAIN)
    groups = np.array([dataset_index.studies[row].group for row in pool])
    patients = len(np.unique(groups))
    if not 2 <= count <= patients:
        raise DataError(
            f"--folds {count}: the folds are of {patients} patients ({len(pool)} studies): at least 2 folds, and at "
            "most as many as there are patients"
        )
    labels = dataset_index.label_matrix()[pool]
    chosen = stratify_groups(labels, groups.tolist(), [1 / count] * count, seed)
    held = np.full(len(given), NO_FOLD)
    held[pool] = chosen
    if len(np.unique(chosen)) < count:
        raise DataError(f"--folds {count}: {patients} patients are too unequal in size for so many: use fewer folds")
    runs = []
    for fold in range(count):
        run = np.full(len(given), "", dtype="U5")
        rest = chosen != fold
        run[pool[~rest]] = TEST if inner else VAL
        run[pool[rest]] = TRAIN
        if inner:
            run[pool[rest]] = _inner(labels[rest], groups[rest].tolist(), validation_share, seed, count)
        runs.append(run)
    return Folds(held, tuple(runs), TEST if inner else VAL, np.where(given == "", "", given).astype("U5"))


def _inner(labels: np.ndarray, groups: Sequence[str], share: float, seed: int, count: int) -> np.ndarray:
    """'train' or 'val' for each study of the patients that a fold does not hold out."""
    chosen = stratify_groups(labels, groups, [1 - share, share], seed)
    if len(np.unique(chosen)) < 2:
        raise DataError(
            f"--folds {count}: of the {len(set(groups))} patients that a fold is trained on none is left for its "
            f"validation part ({share:.0%} of the studies): use --validation held-out, or more patients"
        )
    return np.array([TRAIN, VAL], dtype="U5")[chosen]


def one_fold(assignment: np.ndarray) -> Folds:
    """A single split as folds of one: its test part is what is held out, or val where there is no test."""
    scored = TEST if (assignment == TEST).any() else VAL
    held = np.where(assignment == scored, 0, NO_FOLD)
    return Folds(held, (assignment,), scored, assignment)


def of_assignments(runs: Sequence[np.ndarray], together: np.ndarray, inner: bool) -> Folds:
    """Those that were drawn before, from the splits of their runs."""
    if len(runs) == 1:
        return one_fold(runs[0])
    scored = TEST if inner else VAL
    held = np.full(len(together), NO_FOLD)
    for fold, run in enumerate(runs):
        held[run == scored] = fold
    return Folds(held, tuple(runs), scored, together)


def composition_table(dataset_index: DatasetIndex, folds: Folds) -> list[list[str]]:
    """Who is in which split of each fold: a heading, then rows of fold, part, patients, studies, and positives of each
    class. The scored part is called 'held out'; the last row is a test part that no fold has.
    """
    positive = dataset_index.label_matrix() == 1

    def row(fold: str, part: str, chosen: np.ndarray) -> list[str]:
        rows = np.flatnonzero(chosen)
        patients = len({dataset_index.studies[one].group for one in rows})
        return [fold, part, str(patients), str(len(rows)), *map(str, positive[rows].sum(axis=0).tolist())]

    table = [["fold", "part", "patients", "studies", *dataset_index.class_names]]
    for fold, run in enumerate(folds.runs):
        parts = [(TRAIN, TRAIN), (VAL, VAL), (folds.scored, "held out")]
        named = parts if folds.scored == TEST else [parts[0], parts[2]]
        table += [row(str(fold), name, run == split) for split, name in named]
    if len(folds.runs) > 1 and (folds.together == TEST).any():
        table.append(row("–", "test, of all folds as one", folds.together == TEST))
    return table


def fold_notes(dataset_index: DatasetIndex, folds: Folds) -> list[str]:
    """What a reader of the figures must know of these folds, each a sentence."""
    pool = np.flatnonzero(folds.held != NO_FOLD)
    notes = []
    unnamed = sum(not dataset_index.studies[row].patient_id for row in pool)
    if unnamed:
        notes.append(
            f"{unnamed:,} of {len(pool):,} studies name no patient: each counts as a patient of its own, and where "
            "several are of one person the figures are flattered."
        )
    return notes + _rare_classes(dataset_index, folds) + _large_patients(dataset_index, folds, pool)


def _rare_classes(dataset_index: DatasetIndex, folds: Folds) -> list[str]:
    positive, notes = dataset_index.label_matrix() == 1, []
    lacks = {TRAIN: "none to train on, never learnt there", folds.scored: "none held out, figures undefined there"}
    if folds.scored != VAL:
        lacks[VAL] = "none to validate on, threshold 0.5 there"
    for k, name in enumerate(dataset_index.class_names):
        patients = {dataset_index.studies[row].group for row in np.flatnonzero(positive[:, k] & (folds.runs[0] != ""))}
        if not patients:
            notes.append(f"'{name}' has no positive study: its figures are undefined.")
            continue
        found = []
        for split, words in lacks.items():
            without = [fold for fold, run in enumerate(folds.runs) if not positive[run == split, k].any()]
            found += [f"{_folds(without)}: {words}"] if without else []
        if found:
            notes.append(
                f"'{name}' is present in {len(patients)} patient{'s' * (len(patients) > 1)} only; {'; '.join(found)}."
            )
    return notes


def _folds(numbers: Sequence[int]) -> str:
    return f"{'fold' if len(numbers) == 1 else 'folds'} {', '.join(map(str, numbers))}"


def _large_patients(dataset_index: DatasetIndex, folds: Folds, pool: np.ndarray) -> list[str]:
    """Patients who alone are larger than a fold should be."""
    if len(folds.runs) == 1:
        return []
    counts = Counter(dataset_index.studies[row].group for row in pool)
    large = sorted(name for name, n in counts.items() if n > 1.5 * len(pool) / len(folds.runs))
    if not large:
        return []
    return [f"{len(large)} patients have more studies than a fold should: the folds are unequal ({some(large, 3)})."]
