"""Images that are the same, byte for byte, under two names: what they mean for splits, labels and patients, in words.

Of sizes that only one image has nothing is read; of others the ends of the files, and all of those that agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from configs.errors import DataError
from data.readers.digests import digest, thread_pool
from data.readers.regular_files import open_regular
from data.readers.tables import some
from data.study import SPLITS, DatasetIndex, Study
from utils.atomic_file import write_atomically

logger = logging.getLogger(__name__)

Groups = tuple[tuple[int, ...], ...]
Value = TypeVar("Value")

_END_BYTES = 4096
_PER_TASK = 256
# From so many files on what was found is kept for later runs; fewer take less than a second.
KEPT_FROM = 2000
_DISPLAYED = 3


def find_identical(dataset_index: DatasetIndex, cache_folder: Path | None = None) -> Groups:
    """The rows that are read from files of the same content, for each content that two or more have; in order.

    Volumes of several files are the same where the files are, whatever they are called. Files that cannot be read are
    left out, as reading them will tell; so are sources that keep all images in one file.
    cache_folder: where the answer is kept for files that have not changed; None: nowhere.
    """
    files = [tuple(dataset_index.files(row)) for row in range(len(dataset_index.studies))]
    if len(set(files)) < len(files):
        return ()
    listing = [[_entry(path) for path in paths] for paths in files]
    key = hashlib.sha256(repr([(list(map(os.fspath, paths)), listing[i]) for i, paths in enumerate(files)]).encode())
    kept = _Kept(cache_folder, files, key.hexdigest()) if cache_folder and len(files) >= KEPT_FROM else None
    found = kept.read() if kept else None
    if found is None:
        sizes = {row: tuple(sorted(entry[0] for entry in one if entry)) for row, one in enumerate(listing) if all(one)}
        found = _search(files, {row: size for row, size in sizes.items() if sum(size)})
        if kept:
            kept.write(found)
    return found


def with_identical(dataset_index: DatasetIndex, cache_folder: Path | None = None) -> DatasetIndex:
    """The dataset index with what `find_identical` finds, and a note for each thing that is wrong with it."""
    groups = find_identical(dataset_index, cache_folder)
    if not groups:
        return dataset_index
    notes = identical_notes(dataset_index.studies, groups, dataset_index.class_names)
    return replace(dataset_index, identical=groups, notes=(*dataset_index.notes, *notes))


def identical_notes(studies: Sequence[Study], groups: Groups, class_names: Sequence[str]) -> list[str]:
    """A sentence for each thing that is wrong with identical images: splits that share them, labels that contradict
    each other, several patients; and one for those that are merely there twice.
    """
    splits = np.array([study.split or "" for study in studies])
    torn, notes = split_notes(studies, groups, splits)
    contradicting = [rows for rows in groups if _contradict([studies[row].labels for row in rows])]
    if contradicting:
        what = f"{len(contradicting)} identical images have different labels, of which one at most is right"
        notes.append(f"{what}: {_equations(studies, contradicting, lambda study: _labels(study, class_names))}")
    people = [rows for rows in groups if len({studies[row].patient_id for row in rows} - {""}) > 1]
    if people:
        what = f"{len(people)} identical images are said to be of different patients"
        notes.append(f"{what}: {_equations(studies, people, lambda study: f'patient {study.patient_id or None}')}")
    wrong = {*torn, *contradicting, *people}
    merely = [rows for rows in groups if rows not in wrong]
    if merely:
        copies = sum(len(rows) - 1 for rows in merely)
        notes.append(f"{copies} images are copies of others with the same labels: {_equations(studies, merely)}")
    return notes


def split_notes(studies: Sequence[Study], groups: Groups, splits: np.ndarray) -> tuple[set[tuple[int, ...]], list[str]]:
    """(groups that stand on two sides of a split, a sentence for each pair of splits). splits: str [N], '' unknown."""
    torn: set[tuple[int, ...]] = set()
    notes = []
    for one, other in combinations(SPLITS, 2):
        shared = [rows for rows in groups if {one, other} <= set(splits[list(rows)].tolist())]
        torn.update(shared)
        if shared:
            pairs = [tuple(next(r for r in rows if splits[r] == side) for side in (one, other)) for rows in shared]
            what = f"{len(shared)} identical images stand in both {one} and {other}: scores on {other} are flattered"
            notes.append(f"{what} ({_equations(studies, pairs)})")
    return torn, notes


def drawn_split_notes(dataset_index: DatasetIndex, assignment: np.ndarray) -> list[str]:
    """`split_notes` of what a draw tore apart; what the data themselves split was noted when they were opened."""
    given = [study.split for study in dataset_index.studies]
    drawn = tuple(rows for rows in dataset_index.identical if len({given[row] for row in rows}) == 1)
    return split_notes(dataset_index.studies, drawn, assignment)[1]


def user_cache_folder() -> Path | None:
    """Where programs keep what they can make again: XDG_CACHE_HOME or ~/.cache; None for a user without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "hybridmednet" / "identical_files"


def _equations(
    studies: Sequence[Study], groups: Sequence[Sequence[int]], more: Callable[[Study], str] | None = None
) -> str:
    """'a.png = b.png, c.png = d.png and 3 more'; with more: 'a.png (…) = …'."""

    def name(row: int) -> str:
        return studies[row].name + (f" ({more(studies[row])})" if more else "")

    def equation(rows: Sequence[int]) -> str:
        return " = ".join(map(name, rows[:_DISPLAYED])) + (" = …" if len(rows) > _DISPLAYED else "")

    return some([*map(equation, groups[:_DISPLAYED]), *groups[_DISPLAYED:]], _DISPLAYED)


def _labels(study: Study, class_names: Sequence[str]) -> str:
    return "|".join(name for name, value in zip(class_names, study.labels.tolist()) if value == 1) or "none"


def _contradict(labels: Sequence[np.ndarray]) -> bool:
    """Whether two that are known differ in a class."""
    together = np.stack(labels)
    known = ~np.isnan(together)
    low = np.where(known, together, np.inf).min(axis=0)
    high = np.where(known, together, -np.inf).max(axis=0)
    return bool((low < high).any())


def _entry(path: Path) -> tuple[int, int, int] | None:
    """(size, mtime, ctime) of a regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns) if stat.S_ISREG(status.st_mode) else None


def _search(files: Sequence[Sequence[Path]], sizes: dict[int, tuple[int, ...]]) -> Groups:
    """sizes: of the files of the rows to be looked at."""
    alike = _shared(sizes)
    with thread_pool() as pool:

        def measure(rows: Sequence[int], of: Callable[[Sequence[Path]], Hashable]) -> dict[int, Hashable]:
            parts = [rows[first : first + _PER_TASK] for first in range(0, len(rows), _PER_TASK)]
            tasks = pool.map(lambda part: [_or_none(of, files[row]) for row in part], parts)
            return dict(zip(rows, chain.from_iterable(tasks), strict=True))

        ends = measure(alike, _ends)
        alike = _shared({row: (sizes[row], ends[row]) for row in alike if ends[row] is not None})
        if len(alike) >= KEPT_FROM:
            logger.info("comparing the content of %s images for identical ones", f"{len(alike):,}")
        whole = measure(alike, _whole)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in alike:
        if whole[row] is not None:
            groups[whole[row]].append(row)
    return tuple(sorted(tuple(rows) for rows in groups.values() if len(rows) > 1))


def _shared(values: dict[int, Value]) -> list[int]:
    """The rows whose value another row has, too."""
    rows: dict[Value, list[int]] = defaultdict(list)
    for row, value in values.items():
        rows[value].append(row)
    return sorted(chain.from_iterable(same for same in rows.values() if len(same) > 1))


def _or_none(of: Callable[[Sequence[Path]], Hashable], paths: Sequence[Path]) -> Hashable | None:
    try:
        return of(paths)
    except (OSError, DataError):
        return None


def _ends(paths: Sequence[Path]) -> Hashable:
    """Checksums of the first and last bytes of each file, in any order."""
    return tuple(sorted(map(_ends_of, paths)))


def _ends_of(path: Path) -> int:
    with open_regular(path) as file:
        first = file.read(_END_BYTES)
        file.seek(max(file.seek(0, os.SEEK_END) - _END_BYTES, 0))
        return zlib.crc32(file.read(_END_BYTES), zlib.crc32(first))


def _whole(paths: Sequence[Path]) -> Hashable:
    return tuple(sorted(map(digest, paths)))


class _Kept:
    """What was found in some files, as long as they are as they were. One file for a list of paths."""

    def __init__(self, folder: Path, files: Sequence[Sequence[Path]], key: str) -> None:
        self.count = len(files)
        text = "\0".join(os.fspath(path) for paths in files for path in paths)
        name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.path, self.key = folder / f"{name}.json", key

    def read(self) -> Groups | None:
        try:
            content = json.loads(self.path.read_bytes())
            groups = tuple(tuple(rows) for rows in content["groups"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        rows = list(chain.from_iterable(groups))
        valid = content["key"] == self.key and all(type(row) is int and 0 <= row < self.count for row in rows)
        return groups if valid and min(map(len, groups), default=2) > 1 else None

    def write(self, groups: Groups) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps({"key": self.key, "groups": groups}).encode())
        except OSError as reason:
            logger.info("which images are identical is not kept for later runs: %s", reason)
