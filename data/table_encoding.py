"""Clinical columns as a network is given them: z-scores, codes of categories, and masks.

Fitted on the training studies alone and kept in the checkpoint: means, deviations and categories of other studies would
tell the network of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from configs.errors import CheckpointError, DataError
from data.clinical_table import CategoricalColumn, ClinicalTable, Kind, NumericColumn
from data.readers.tables import some
from utils.text import printable
from utils.words import name_key

Missing = Literal["ignore", "indicator"]

CLIP = 5.0  # standard deviations beyond which a value says no more
LEAST_STUDIES = 2  # of training that have a category, for it to be one
INDICATOR = " is missing"  # ends the name of a column that says so of another
_DISPLAYED = 3


class ColumnRecord(TypedDict, total=False):
    """An encoded column as a checkpoint carries it."""

    name: str
    kind: Kind
    known: int
    mean: float
    std: float
    low: float
    high: float
    categories: list[str]
    counts: list[int]


class TableRecord(TypedDict):
    """A TableEncoding as a checkpoint carries it."""

    missing: Missing
    studies: int
    columns: list[ColumnRecord]
    indicators: list[str]


@dataclass(frozen=True)
class Numeric:
    """z = (x - mean) / std, clipped at ±CLIP. known: studies of training with a value, from low to high."""

    name: str
    known: int
    mean: float
    std: float
    low: float
    high: float

    @property
    def alike(self) -> tuple[float, float]:
        """Values between these are like those of training: their range, and half of it more on either side."""
        margin = (self.high - self.low) / 2
        return self.low - margin, self.high + margin

    def encode(self, column: NumericColumn | CategoricalColumn) -> np.ndarray:
        """float32 [N], 0 where unknown."""
        assert isinstance(column, NumericColumn), "checked by TableEncoding"
        # What is not known is taken out before it is computed with.
        values = np.where(column.known, column.values, self.mean)
        return np.clip((values - self.mean) / self.std, -CLIP, CLIP).astype(np.float32)


@dataclass(frozen=True)
class Categorical:
    """Codes 1, 2, … of the categories of training, 0 of all others. counts: studies of training with each."""

    name: str
    known: int
    categories: tuple[str, ...]
    counts: tuple[int, ...]

    def encode(self, column: NumericColumn | CategoricalColumn) -> np.ndarray:
        """float32 [N], 0 where unknown too."""
        assert isinstance(column, CategoricalColumn), "checked by TableEncoding"
        codes = {name_key(name): code for code, name in enumerate(self.categories, start=1)}
        return np.array([codes.get(name_key(word), 0) if word else 0 for word in column.words], np.float32)

    def others(self, column: CategoricalColumn) -> Counter[str]:
        """Words that are none of the categories, and how many studies have each."""
        known = {name_key(name) for name in self.categories}
        return Counter(word for word in column.words if word and name_key(word) not in known)


@dataclass(frozen=True)
class TableEncoding:
    """From clinical columns to what a network is given, as fitted on `studies` of training.

    missing: 'indicator': for each name in `indicators`, a numeric column follows that is 1 where its value is missing.
    """

    columns: tuple[Numeric | Categorical, ...]
    studies: int
    missing: Missing = "ignore"
    indicators: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls, table: ClinicalTable, training: Sequence[int] | np.ndarray, missing: Missing = "ignore"
    ) -> TableEncoding:
        """training: rows of the training studies; nothing else is looked at.

        Raises DataError that names all columns from which nothing can be learnt: without a known value, of one value
        only, or of categories that no two studies have.
        """
        seen = table.rows(training)
        fitted: list[Numeric | Categorical] = []
        useless = []
        for column in seen.columns:
            one = _fit_numeric(column) if isinstance(column, NumericColumn) else _fit_categorical(column)
            if isinstance(one, str):
                useless.append(f"{column.name!r} {one}")
            else:
                fitted.append(one)
        if useless:
            raise DataError(
                f"DATA.table.columns: nothing can be learnt from {'; '.join(useless)} in the {len(seen.has_row)} "
                "training studies: take out what is named"
            )
        gaps = [column.name for column in seen.columns if (seen.has_row & ~column.known).any()]
        told = tuple(gaps) if missing == "indicator" else ()
        return cls(tuple(fitted), len(seen.has_row), missing, told)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the F columns that `encode` gives."""
        return (*(one.name for one in self.columns), *(f"{name}{INDICATOR}" for name in self.indicators))

    @property
    def model_columns(self) -> dict[str, Literal["numeric"] | int]:
        """Name → 'numeric', or how many categories there are beside 'other' (code 0): what a network is built for."""
        own: dict[str, Literal["numeric"] | int] = {
            one.name: len(one.categories) if isinstance(one, Categorical) else "numeric" for one in self.columns
        }
        return own | {f"{name}{INDICATOR}": "numeric" for name in self.indicators}

    @property
    def kinds(self) -> dict[str, Kind]:
        """As DATA.table.columns has them."""
        return {one.name: "categorical" if isinstance(one, Categorical) else "numeric" for one in self.columns}

    def encode(self, table: ClinicalTable) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [N, F], 0 where unknown; bool [N, F], whether a value is known).

        Raises DataError naming columns that the table lacks or has in another kind.
        """
        by_name = self._checked(table)
        shape = (len(table.has_row), 0)
        values = [one.encode(by_name[one.name]) for one in self.columns]
        known = [by_name[one.name].known for one in self.columns]
        for name in self.indicators:
            values.append((table.has_row & ~by_name[name].known).astype(np.float32))
            known.append(table.has_row)
        if not values:
            return np.zeros(shape, np.float32), np.zeros(shape, bool)
        mask = np.stack(known, axis=1)
        return np.where(mask, np.stack(values, axis=1), np.float32(0)), mask

    def as_read(self, table: ClinicalTable) -> np.ndarray:
        """float32 [N, columns]: numbers in the units of the table and codes of categories, NaN where unknown.

        Raises DataError as `encode` does.
        """
        there = self._checked(table)
        found = []
        for one in self.columns:
            column = there[one.name]
            values = column.values if isinstance(column, NumericColumn) else one.encode(column)
            found.append(np.where(column.known, values, np.nan))
        return np.stack(found, axis=1).astype(np.float32)

    def _checked(self, table: ClinicalTable) -> dict[str, NumericColumn | CategoricalColumn]:
        there, kinds = {column.name: column for column in table.columns}, table.kinds
        lacking = [name for name in self.kinds if name not in there]
        if lacking:
            raise DataError(
                f"the model was trained with the columns {', '.join(self.kinds)}; the data have no {some(lacking)}: "
                "add them (empty where unknown)"
            )
        other = [f"{name!r} as {kinds[name]}, not {kind}" for name, kind in self.kinds.items() if kinds[name] != kind]
        if other:
            raise DataError(f"the data have the column {', '.join(other)} as the model was trained with")
        return there

    def notes(self, table: ClinicalTable, whose: str) -> list[str]:
        """What is unlike training in a table, a sentence each: categories never met, values far beyond, none known.

        whose: whose table it is, such as 'val'.
        """
        there = self._checked(table)
        studies, found = len(table.has_row), []
        for one in self.columns:
            if studies and not there[one.name].known.any():
                found.append(f"{whose}: column {one.name!r} has no value for any of {studies} studies")
            else:
                found += _sentences(one, there[one.name], whose)
        return found

    def strange(self, table: ClinicalTable, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """Categories never met and values far beyond training's: (a sentence a column, a text a value for each study).

        names: what the studies are called, some of whom a sentence names.
        """
        there = self._checked(table)
        notes, of_studies = list[str](), [list[str]() for _ in names]
        for one in self.columns:
            column = there[one.name]
            rows = np.flatnonzero(_is_strange(one, column)).tolist()
            shown = some([f"'{printable(names[row])}'" for row in rows], _DISPLAYED)
            notes += [f"{note}; studies {shown}" for note in _sentences(one, column, "the studies asked about")]
            for row in rows:
                of_studies[row].append(_strange_text(one, column, row))
        return notes, of_studies

    def describe(self) -> str:
        """In a line, for the log: columns, in how many studies of training each is known, categories."""

        def words(one: Numeric | Categorical) -> str:
            what = "" if isinstance(one, Numeric) else f", {', '.join(map(printable, one.categories))}"
            return f"{one.name} ({one.known} of {self.studies}{what})"

        return "; ".join(map(words, self.columns))

    def as_dict(self) -> TableRecord:
        """For a checkpoint, in plain lists, numbers and strings."""
        records: list[ColumnRecord] = []
        for one in self.columns:
            if isinstance(one, Numeric):
                figures: ColumnRecord = {"mean": one.mean, "std": one.std, "low": one.low, "high": one.high}
                records.append({"name": one.name, "kind": "numeric", "known": one.known, **figures})
            else:
                words: ColumnRecord = {"categories": list(one.categories), "counts": list(one.counts)}
                records.append({"name": one.name, "kind": "categorical", "known": one.known, **words})
        return {
            "missing": self.missing,
            "studies": self.studies,
            "columns": records,
            "indicators": list(self.indicators),
        }

    @classmethod
    # Any: values of a file; each is checked below.
    def from_dict(cls, values: Mapping[str, Any]) -> TableEncoding:
        """The inverse of `as_dict`. Raises CheckpointError for anything else."""
        try:
            columns = tuple(map(_column_of, values["columns"]))
            missing, indicators = values["missing"], tuple(map(str, values["indicators"]))
            if missing not in ("ignore", "indicator") or not {*indicators} <= {one.name for one in columns}:
                raise ValueError(f"missing {missing!r}, indicators {indicators}")
            return cls(columns, int(values["studies"]), missing, indicators)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"what a checkpoint says of its table cannot be read ({error!r})") from None


def check_same_table(saved: object, encoding: TableEncoding | None, of_teacher: bool = False) -> None:
    """DataError where the table is not what a checkpoint was trained with: its network would be given other numbers for
    the same values.

    saved: the checkpoint's `as_dict`, None where it has no table; of a resumed run, or of a teacher (LOSS.teacher).
    Raises CheckpointError where it is neither.
    """
    if saved is not None and not isinstance(saved, Mapping):
        raise CheckpointError(f"what a checkpoint says of its table cannot be read ({type(saved).__name__})")
    before = None if saved is None else TableEncoding.from_dict(saved)
    if before == encoding:
        return
    was, now = ({c.name: c for c in one.columns} if one else {} for one in (before, encoding))
    changed = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    who = "LOSS.teacher" if of_teacher else "the run"
    what_to_do = (
        "train it on the same training split, or leave it out"
        if of_teacher
        else ("restore the data's table and DATA.table, or start a new run")
    )
    raise DataError(
        f"the table of the data is not the one that {who} was trained with (columns {some(changed) or 'alike'}, of "
        f"{before.studies if before else 'no'} and {encoding.studies if encoding else 'no'} training studies): "
        f"{what_to_do}"
    )


def _fit_numeric(column: NumericColumn) -> Numeric | str:
    known = column.values[column.known]
    if not len(known):
        return "(no known value)"
    low, high = float(known.min()), float(known.max())
    if low == high:
        return f"(always {low:g})"
    mean, std = float(known.mean()), float(known.std())
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        return f"(from {low:g} to {high:g}: its mean or deviation is no number)"
    return Numeric(column.name, len(known), mean, std, low, high)


def _fit_categorical(column: CategoricalColumn) -> Categorical | str:
    counts = Counter(name_key(word) for word in column.words if word)
    if not counts:
        return "(no known value)"
    spellings: dict[str, Counter[str]] = {}
    for word in filter(None, column.words):
        spellings.setdefault(name_key(word), Counter())[word] += 1
    kept = sorted(key for key, count in counts.items() if count >= LEAST_STUDIES)
    if not kept:
        return f"({len(counts)} categories, none in {LEAST_STUDIES} studies)"
    if len(counts) == 1:
        return f"(always '{printable(next(iter(spellings[kept[0]])))}')"
    names = tuple(max(spellings[key], key=lambda word: (spellings[key][word], word)) for key in kept)
    return Categorical(column.name, counts.total(), names, tuple(counts[key] for key in kept))


def _is_strange(one: Numeric | Categorical, column: NumericColumn | CategoricalColumn) -> np.ndarray:
    """bool [N]: which values are far beyond training's, or of a category never met."""
    if isinstance(one, Numeric) and isinstance(column, NumericColumn):
        least, most = one.alike
        with np.errstate(invalid="ignore"):
            return column.known & ((column.values < least) | (column.values > most))
    assert isinstance(one, Categorical) and isinstance(column, CategoricalColumn), "checked by TableEncoding"
    return column.known & (one.encode(column) == 0)


def _strange_text(one: Numeric | Categorical, column: NumericColumn | CategoricalColumn, row: int) -> str:
    if isinstance(one, Numeric) and isinstance(column, NumericColumn):
        return f"{one.name} {column.values[row]:g} (training: {one.low:g} to {one.high:g})"
    assert isinstance(one, Categorical) and isinstance(column, CategoricalColumn), "checked by TableEncoding"
    return f"{one.name} '{printable(column.words[row])}' (training: {', '.join(map(printable, one.categories))})"


def _sentences(one: Numeric | Categorical, column: NumericColumn | CategoricalColumn, whose: str) -> list[str]:
    if isinstance(one, Numeric) and isinstance(column, NumericColumn):
        return _far(one, column, whose)
    assert isinstance(one, Categorical) and isinstance(column, CategoricalColumn), "checked by TableEncoding"
    return _never_met(one, column, whose)


def _far(one: Numeric, column: NumericColumn, whose: str) -> list[str]:
    far = column.values[_is_strange(one, column)]
    if not len(far):
        return []
    shown = some([f"{value:g}" for value in dict.fromkeys(far.tolist())], _DISPLAYED)
    known = int(column.known.sum())
    return [
        f"{whose}: {len(far)} of {known} values of {one.name!r} are far beyond training's {one.low:g} to {one.high:g}, "
        f"from {far.min():g} to {far.max():g} ({shown}): are they in another unit?"
    ]


def _never_met(one: Categorical, column: CategoricalColumn, whose: str) -> list[str]:
    others = one.others(column)
    if not others:
        return []
    shown = some([f"'{printable(word)}' ({count})" for word, count in others.most_common()], _DISPLAYED)
    known = int(column.known.sum())
    return [
        f"{whose}: {others.total()} of {known} studies have categories of {one.name!r} that are not in {LEAST_STUDIES} "
        f"training studies and count as 'other': {shown} (known: {', '.join(map(printable, one.categories))})"
    ]


def _column_of(values: Mapping[str, Any]) -> Numeric | Categorical:
    name, known = str(values["name"]), int(values["known"])
    if values["kind"] == "numeric":
        figures = [float(values[key]) for key in ("mean", "std", "low", "high")]
        if not all(map(math.isfinite, figures)) or figures[1] <= 0:
            raise ValueError(f"{name}: {figures}")
        return Numeric(name, known, *figures)
    if values["kind"] != "categorical":
        raise ValueError(f"{name}: {values['kind']!r}")
    categories, counts = tuple(map(str, values["categories"])), tuple(map(int, values["counts"]))
    if len(categories) != len(counts) or len({name_key(one) for one in categories}) < len(categories):
        raise ValueError(f"{name}: {categories}")
    return Categorical(name, known, categories, counts)
