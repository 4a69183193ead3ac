"""What a model of studies is given beside one image, by name, and the same studies without some of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.default_config import Config
from configs.errors import EvaluationError
from data.builder import saved_table
from data.labels import nearest
from data.study import DatasetIndex, StudyImages, StudyReader
from data.table_encoding import TableEncoding
from utils.arguments import split_known
from utils.words import name_key

TABLE, IMAGES = "table", "images"
# Groups of studies that evaluation makes by itself, and how many kinds of them there may be.
VIEWS_GROUP, TABLE_GROUP = "views", "table"
_MOST_GROUPS = 12


@dataclass(frozen=True)
class Withheld:
    """An input that is taken away: a name, kinds of view, columns of the table."""

    name: str
    kinds: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StudyInputNames:
    """What a model was trained with: kinds of view, and columns of a table, () without one."""

    view_kinds: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, view_kinds: Sequence[str] | None, encoding: TableEncoding | None) -> StudyInputNames | None:
        """None for a model of single images. view_kinds, encoding: as a checkpoint has them."""
        if view_kinds is None:
            return None
        return cls(tuple(view_kinds), tuple(encoding.kinds) if encoding else ())

    @property
    def inputs(self) -> dict[str, Withheld]:
        """All that can be withheld, by the name to call it by; where a kind and a column share one, 'column:' and
        'view:' stand before it.
        """
        several = len(self.view_kinds) > 1
        parts = [Withheld(name, kinds=frozenset([name])) for name in self.view_kinds if several]
        parts += [Withheld(name, columns=frozenset([name])) for name in self.columns]
        whole = {}
        if self.columns:
            whole[TABLE] = Withheld(TABLE, columns=frozenset(self.columns))
            whole[IMAGES] = Withheld(IMAGES, kinds=frozenset(self.view_kinds))
        counts = Counter([*whole, *(part.name for part in parts)])
        for part in parts:
            name = part.name if counts[part.name] == 1 else f"{'column' if part.columns else 'view'}:{part.name}"
            whole[name] = replace(part, name=name)
        return whole

    def find(self, names: Sequence[str]) -> list[Withheld]:
        """Those of these names, each once, spelled in any case. Raises EvaluationError for names of none of them."""
        there, found = self.inputs, {}
        for name in names:
            alike = [one for key, one in there.items() if key == name] or [
                one for key, one in there.items() if name_key(key) == name_key(name)
            ]
            if len(alike) != 1:
                raise EvaluationError(
                    f"--without: {name!r} is no input of this model{nearest(name, list(there))} (it has "
                    f"{', '.join(there)})"
                )
            found[alike[0].name] = alike[0]
        return list(found.values())


def without(dataset_index: DatasetIndex, withheld: Withheld) -> DatasetIndex:
    """The same studies in the same order, as if they never had this: a gap like any other."""
    images, table = dataset_index.images, dataset_index.table
    assert images is not None, "of studies"
    if table is not None and withheld.columns:
        table = table.without(withheld.columns)
    if withheld.kinds:
        images = _without_kinds(images, withheld.kinds)
    return replace(dataset_index, images=images, table=table, read=StudyReader(images))


def _without_kinds(images: StudyImages, kinds: frozenset[str]) -> StudyImages:
    left = [name not in kinds for name in images.view_kinds]
    kept = [[left[kind] for kind in own] for own in images.kinds]
    rows, of_kinds = (
        tuple(tuple(value for value, keep in zip(values, keeps) if keep) for values, keeps in zip(table, kept))
        for table in (images.rows, images.kinds)
    )
    return replace(images, rows=rows, kinds=of_kinds)


def having(dataset_index: DatasetIndex, withheld: Withheld) -> np.ndarray:
    """Which studies have any of it, bool [N]."""
    images, table = dataset_index.images, dataset_index.table
    assert images is not None, "of studies"
    wanted = {number for number, name in enumerate(images.view_kinds) if name in withheld.kinds}
    found = np.array([not wanted.isdisjoint(own) for own in images.kinds], bool)
    for column in table.columns if table is not None else ():
        if column.name in withheld.columns:
            found |= column.known
    return found


def study_groups(dataset_index: DatasetIndex, columns: Sequence[str]) -> dict[str, list[str]]:
    """Group → what each study is in it: which views it has and, of a model with these columns, how much of them."""
    images, table = dataset_index.images, dataset_index.table
    assert images is not None, "of studies"
    names = images.view_kinds
    found = {VIEWS_GROUP: _few([_views(names, own) for own in images.kinds])}
    if columns:
        known = [column.known for column in table.columns if column.name in columns] if table is not None else []
        share = np.mean(known, axis=0) if known else np.zeros(len(dataset_index.studies))
        found[TABLE_GROUP] = ["complete" if part == 1 else "gaps" if part > 0 else "no table" for part in share]
    return found


def _views(names: Sequence[str], kinds: Sequence[int]) -> str:
    there = [names[kind] for kind in sorted({*kinds})]
    return f"{there[0]} only" if len(there) == 1 else " + ".join(there) or "no image"


def _few(groups: list[str]) -> list[str]:
    kept = {name for name, _ in Counter(groups).most_common(_MOST_GROUPS)}
    return [name if name in kept else "another combination" for name in groups]


def anything_left(dataset_index: DatasetIndex) -> np.ndarray:
    """Which studies have an image or a value of the table, bool [N]."""
    images, table = dataset_index.images, dataset_index.table
    assert images is not None, "of studies"
    found = np.array([bool(rows) for rows in images.rows], bool)
    for column in table.columns if table is not None else ():
        found |= column.known
    return found


def data_notes(
    encoding: TableEncoding | None, dataset_index: DatasetIndex, rows: np.ndarray, most_views: int | None
) -> list[str]:
    """How these rows are unlike the studies that a model was trained with; most_views: those of the largest."""
    found = []
    if dataset_index.images is not None and most_views is not None:
        counts = [len(dataset_index.images.rows[row]) for row in rows]
        if more := sum(count > most_views for count in counts):
            found.append(f"{more} studies have up to {max(counts)} images, training's had at most {most_views}")
    if encoding is not None and dataset_index.table is not None:
        found += encoding.notes(dataset_index.table.rows(rows), "the data")
    return found


def study_inputs(
    description: Mapping[str, object], asked: Sequence[str], path: Path
) -> tuple[StudyInputNames | None, list[Withheld]]:
    """(what a model is given of studies, None of single images; what evaluate.py --without asks for).

    description: of its checkpoint, which is `path`.
    """
    names = StudyInputNames.of(*_described(description))
    if names is None or not names.inputs:
        if asked:
            what = "one image" if names is None else "images of one kind"
            raise EvaluationError(
                f"--without {' '.join(asked)}: '{path}' is given {what} and nothing else: nothing can be withheld"
            )
        return None, []
    return names, names.find(split_known(asked, names.inputs))


def study_notes(
    description: Mapping[str, object], config: Config, dataset_index: DatasetIndex, index: np.ndarray
) -> list[str]:
    """What was noticed as studies were read, and how they are unlike those of a model's training."""
    if dataset_index.images is None:
        return []
    unlike = data_notes(_described(description)[1], dataset_index, index, config.DATA.max_views)
    return [f"{note}." for note in (*dataset_index.notes, *unlike)]


def _described(description: Mapping[str, Any]) -> tuple[Sequence[str] | None, TableEncoding | None]:
    """Kinds of view and the table's encoding, as a checkpoint has them."""
    return description.get("view_kinds"), saved_table(description.get("table"))
