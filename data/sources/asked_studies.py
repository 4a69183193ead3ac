"""Studies that a model is asked about: what tables, DICOM headers and names of files say of images, put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.errors import DataError
from configs.study_consistency import OTHER
from data.clinical_table import read_column
from data.readers.regular_files import leaves
from data.readers.tables import TableSettings, read_table, some
from data.sources.dicom_studies import Header, read_header
from data.sources.studies import StudySettings, kind_of_view, with_studies
from data.sources.study_table import column_of
from data.sources.unlabelled import Item
from data.study import IMAGE, DatasetIndex, Study, selected
from utils.text import visible
from utils.words import is_missing, name_key

_VIEW = "view"
_SEXES = (("m", "male", "man", "男"), ("f", "female", "woman", "女"))  # DICOM's first
_NUMBER = re.compile(r"[_ -]\d$")  # frontal_2
_DISPLAYED = 3


@dataclass(frozen=True)
class AskedStudies:
    """dataset_index: of studies, without classes. columns: of each study, what a table says of its images, by that
    table's header, and what DICOM headers say of the model's columns.
    """

    dataset_index: DatasetIndex
    columns: tuple[Mapping[str, str], ...]


class _Facts(NamedTuple):
    """What is known of an image. study: '' where nothing says it. cells: column of the model → text, those that
    something says, if only that it is unknown. shown: see AskedStudies.columns.
    """

    study: str
    view: str
    patient: str
    cells: Mapping[str, str]
    shown: Mapping[str, str]


@dataclass(frozen=True)
class _Asked:
    """The settings, the header of the clinical table, () without one, and the categories of columns that have some."""

    settings: StudySettings
    clinical: Sequence[str] = ()
    roles: Mapping[str, str | None] = field(default_factory=dict)
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def of_views(self) -> bool:
        return self.settings.study_column is not None

    def in_clinical_table(self, name: str) -> bool:
        return any(name_key(column) == name_key(name) for column in self.clinical)

    def facts(self, item: Item) -> _Facts:
        """What its table says, then its header, then its name, of a folder whose files are called by their views."""
        header = _header_of(item)
        given = {**item.columns, **item.roles}
        said = {} if header is None else {_VIEW: header.view, "age": header.age, "sex": header.sex}
        cells, shown = {}, dict(item.columns)
        for name in self.settings.table_columns:
            own, header_says = (_cell(name, where, self.roles) for where in (given, said))
            others = self._usable(name, header_says or "")
            if own is not None or others:
                cells[name] = own if own and not is_missing(own) else others or ""
            if header_says and (own is None or is_missing(own)) and not self.in_clinical_table(name):
                shown[name] = header_says
        study, view = item.study, item.roles.get(_VIEW, "")
        folder, named = (None, "") if item.table or not self.of_views else self._by_name(item)
        study = study if study is not None else (header.study if header else "") or folder or ""
        view = view if not is_missing(view) else said.get(_VIEW) or named
        patient = item.roles.get("patient_id", "")
        return _Facts(
            "" if is_missing(study) else visible(study),
            view,
            visible(patient) if not is_missing(patient) else (header.patient if header else ""),
            cells,
            shown,
        )

    def _usable(self, name: str, text: str) -> str:
        """What a header says, as the model's column has it; '' where that is no number, of one of numbers."""
        kinds = self.settings.table_columns
        if isinstance(kinds, Mapping) and kinds[name] == "numeric":
            return "" if read_column(name, [("", text)], "numeric")[1] else text
        known = {name_key(one): one for one in self.categories.get(name, ())}
        spellings = next((words for words in _SEXES if name_key(text) in words), ())
        return text if name_key(text) in known else next((known[word] for word in spellings if word in known), text)

    def _by_name(self, item: Item) -> tuple[str | None, str]:
        """(its folder, its file's name) where that names a kind of view, as in study7/frontal.png; else (None, '')."""
        stem = _NUMBER.sub("", item.path.name.split(".")[0])
        if item.root is None or kind_of_view(stem, self.settings.view_kinds or {}) == OTHER:
            return None, ""
        return item.name.rpartition("/")[0] or item.root.name, stem


def asked_studies(
    dataset_index: DatasetIndex,
    items: Sequence[Item],
    settings: StudySettings,
    missing_columns: bool = False,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> AskedStudies:
    """The items of `open_unlabelled` as studies for a model of these settings.

    Which study an image is of, which view it shows, and its columns are what its table says; else what its DICOM header
    says (StudyInstanceUID, laterality and ViewPosition, PatientAge, PatientSex); else a file that is called by its view
    is of the study of its folder; else it is a study by itself. settings.table_file: a clinical table, whose columns go
    before all of these. missing_columns: columns that a table lacks are unknown rather than an error. categories: those
    of the model's columns that are not of numbers: where they are male and female, a header's M and F are these.

    Raises DataError: for a table that lacks what the model knows, one study in two tables, and as `with_studies` does.
    """
    table = settings.table_file
    header = () if table is None else read_table(_existing(table), _clinical_settings(settings)).header
    asked = _Asked(settings, header, settings.roles or {}, categories or {})
    facts = [asked.facts(item) for item in items]
    if not missing_columns:
        _check_tables(asked, items, facts)
    notes = [*_untabled_note(asked, items, facts)]
    rows, repeated = _without_repeated(items, facts)
    dataset_index = selected(replace(dataset_index, studies=_images(asked, items, facts)), rows)
    found = with_studies(dataset_index, Path(), settings)
    if found.table is not None and table is None:  # of studies of which nothing says any column there is no row
        said = [any(facts[rows[row]].cells for row in found.image_rows([n])) for n in range(len(found.studies))]
        found = replace(found, table=replace(found.table, has_row=found.table.has_row & np.array(said, bool)))
    shown = [facts[row].shown for row in rows]
    columns: tuple[Mapping[str, str], ...] = tuple(
        _together([shown[row] for row in found.image_rows([study])]) for study in range(len(found.studies))
    )
    if table is not None:
        columns = tuple(_with_clinical(asked, own, study) for own, study in zip(columns, found.studies))
    return AskedStudies(replace(found, notes=(*notes, *repeated, *found.notes)), columns)


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"--table: there is no file '{path}'")
    return path


def _clinical_settings(settings: StudySettings) -> TableSettings:
    return TableSettings(settings.encoding, {"image": settings.study_column} if settings.study_column else {})


def _cell(name: str, where: Mapping[str, str], roles: Mapping[str, str | None]) -> str | None:
    """What is said of a model's column, None where nothing is."""
    try:
        return where[column_of(name, sorted(where), roles)]
    except DataError:
        return None


def _header_of(item: Item) -> Header | None:
    """Of a DICOM file, or of the first file of a series."""
    if item.error:
        return None
    try:
        path = item.path
        if path.is_dir():
            path = min(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            if item.root is not None and leaves(item.root, path):
                return None
        return read_header(path)
    except Exception:  # whoever reads the image says what is wrong with the file
        return None


def _lacking(asked: _Asked, facts: Sequence[_Facts]) -> tuple[bool, bool, list[str]]:
    """What nothing says of any of these images: (studies, views, columns)."""
    columns = [
        name
        for name in asked.settings.table_columns
        if not asked.in_clinical_table(name) and not any(name in one.cells for one in facts)
    ]
    return not any(one.study for one in facts), all(is_missing(one.view) for one in facts), columns


def _check_tables(asked: _Asked, items: Sequence[Item], facts: Sequence[_Facts]) -> None:
    """DataError for a table that lacks what the model knows, and for a study in two of them."""
    first_in: dict[str, Path] = {}
    for path in dict.fromkeys(item.table for item in items if item.table is not None):
        own = [(item, one) for item, one in zip(items, facts) if item.table == path]
        no_study, no_view, columns = _lacking(asked, [one for _, one in own])
        lacking = [f"{name!r}" for name in columns]
        if asked.of_views:
            no_study = no_study and all(item.study is None for item, _ in own)
            no_view = no_view and not any(_VIEW in item.roles for item, _ in own)
            lacking = [f"{asked.settings.study_column!r} (of studies)"] * no_study + lacking + [f"{_VIEW!r}"] * no_view
        if lacking:
            raise DataError(
                f"'{path}' has no column {some(lacking)}, which the model was trained with: add it (empty where "
                "unknown), name a table that has it by --table, or say --missing-columns: then it counts as unknown"
            )
        for study in dict.fromkeys(one.study for _, one in own if one.study) if asked.of_views else ():
            if first_in.setdefault(study, path) != path:
                raise DataError(
                    f"study '{study}' is in '{first_in[study]}' and in '{path}': put its images into one table, or ask "
                    "about the tables one by one"
                )


def _untabled_note(asked: _Asked, items: Sequence[Item], facts: Sequence[_Facts]) -> list[str]:
    """The warning of images that no table names: what is not known of them."""
    own = [one for item, one in zip(items, facts) if item.table is None]
    if not own:
        return []
    alone = sum(not one.study for one in own) if asked.of_views else 0
    _, no_view, unknown = _lacking(asked, own)
    unknown = [_VIEW] * (no_view and asked.of_views) + unknown
    said = [f"{alone} count as a study each, as nothing says which belong together"] * (alone > 0)
    said += [f"unknown for all: {', '.join(unknown)}"] * bool(unknown)
    return [f"{len(own)} images come without a table: {'; '.join(said)}"] if said else []


def _images(asked: _Asked, items: Sequence[Item], facts: Sequence[_Facts]) -> tuple[Study, ...]:
    """A row an image, with the columns that `with_studies` looks for."""
    patients: dict[str, set[str]] = {}
    for one in facts:
        patients.setdefault(one.study, set()).update({one.patient} - {""})
    column = asked.settings.study_column
    made = []
    for item, one in zip(items, facts):
        table = {**dict.fromkeys(asked.settings.table_columns, ""), **one.cells, _VIEW: one.view}
        if column is not None:
            table[column] = one.study or item.name
        whose = patients[one.study] if one.study else {one.patient}
        patient = next(iter(whose)) if len(whose) == 1 else one.patient
        made.append(Study(item.name, {IMAGE: str(item.path)}, np.empty(0, np.float32), patient, None, table, item.line))
    return tuple(made)


def _without_repeated(items: Sequence[Item], facts: Sequence[_Facts]) -> tuple[list[int], list[str]]:
    """(rows of images, each once a study; notes). Raises DataError where repetitions disagree."""
    first: dict[tuple[str, Path], int] = {}
    kept, repeated = [], []
    for row, (item, one) in enumerate(zip(items, facts)):
        at = first.setdefault((one.study or item.name, item.path), row)
        if at == row:
            kept.append(row)
        elif facts[at] == one:
            repeated.append(item.name)
        else:
            lines = f"lines {items[at].line} and {item.line}" if item.line else "two inputs"
            raise DataError(f"{lines} name '{item.name}' of one study with different values")
    notes = [f"{len(repeated)} images are named twice and count once: {some(repeated, _DISPLAYED)}"]
    return kept, notes if repeated else []


def _together(cells: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of each column the one value of a study's images, or several joined by '|'."""
    names = dict.fromkeys(name for one in cells for name in one)
    return {name: "|".join(dict.fromkeys(text for one in cells if (text := one.get(name, "")))) for name in names}


def _with_clinical(asked: _Asked, columns: Mapping[str, str], study: Study) -> Mapping[str, str]:
    """With the model's columns of the clinical table, in place of those of the same name."""
    names = [name for name in asked.settings.table_columns if asked.in_clinical_table(name)]
    own = {name: text for name, text in columns.items() if name_key(name) not in set(map(name_key, names))}
    there = {name_key(name): text for name, text in study.table.items()}  # the clinical table's are the last
    return own | {name: there.get(name_key(name), "") for name in names}
