"""Images that belong to one study: their rows put together, what must agree within a study, and kinds of view."""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.errors import DataError
from configs.study_consistency import OTHER
from data.clinical_table import Kind
from data.readers.tables import raise_problems, some
from data.sources.dicom_studies import with_headers
from data.sources.study_table import with_clinical_table
from data.study import DatasetIndex, Study, StudyImages, StudyReader, selected
from utils.text import visible
from utils.words import is_missing, name_key, plain

logger = logging.getLogger(__name__)

# A study of more images is more often a column that is not one of studies.
MOST_VIEWS = 32
_DISPLAYED = 3
_SIDE = re.compile(r"^[LR] ")


@dataclass(frozen=True)
class StudySettings:
    """What the user says of studies, as the settings of the same names in DATA and DATA.table.

    labels: the labels table, for messages. roles: DATA.columns, role → the column's name. tolerant: of data to be
    predicted, may_lack: columns that may not be there; see `with_clinical_table` for both.
    """

    study_column: str | None = None
    view_kinds: Mapping[str, Sequence[str]] | None = None
    max_views: int | None = None
    required_views: Sequence[str] = ()
    table_file: str | None = None
    table_columns: Mapping[str, Kind] | Sequence[str] = ()
    encoding: str | None = None
    labels: str = "the labels table"
    roles: Mapping[str, str | None] | None = None
    tolerant: bool = False
    may_lack: Collection[str] = ()

    @property
    def active(self) -> bool:
        """Whether there is anything to be done: else each image stands alone."""
        return self.study_column is not None or bool(self.table_columns)


def with_studies(dataset_index: DatasetIndex, root: Path, settings: StudySettings) -> DatasetIndex:
    """A dataset index of studies from one of single images, with their clinical table; itself without settings.

    The images of a study are those with one value of the study column; without that column each image is one. They
    must have the same labels, patient and split, or both may be unknown. root: data_dir.

    Raises DataError, naming lines: for a column that is not there, images of a study that disagree, more images than
    max_views, no study with all of required_views, and as `with_clinical_table` does.
    """
    if not settings.active:
        return dataset_index
    dataset_index = with_headers(dataset_index, settings.study_column)
    groups, id_notes = _grouped(dataset_index, settings)
    _check_agreement(dataset_index, groups, settings)
    values, view_notes = _kinds_of_views(dataset_index, settings) if settings.study_column is not None else ({}, [])
    kind_of = [kind_of_view(study.table.get("view", ""), values) for study in dataset_index.studies]
    _check_counts(dataset_index, groups, settings)
    kept, left_notes = _with_required(groups, kind_of, settings.required_views)
    rows = [row for group in kept.values() for row in group]
    images = _images(selected(dataset_index, rows), kept, [kind_of[row] for row in rows], values)
    studies = tuple(
        _study(name, [dataset_index.studies[row] for row in group], [kind_of[row] for row in group], settings)
        for name, group in kept.items()
    )
    if settings.study_column is not None:
        logger.info("%s", _counted(kept, kind_of))
    found = replace(
        dataset_index,
        studies=studies,
        read=StudyReader(images),
        images=images,
        identical=_identical_studies(images),
        notes=(*dataset_index.notes, *id_notes, *view_notes, *left_notes),
    )
    return with_clinical_table(
        found,
        root,
        settings.study_column,
        settings.table_file,
        settings.table_columns,
        settings.roles,
        settings.encoding,
        settings.may_lack,
        settings.labels,
        settings.tolerant,
    )


def check_view_kinds(saved: Sequence[str] | None, dataset_index: DatasetIndex) -> None:
    """DataError where a model's kinds of view, as its checkpoint has them, are not those of the data, in one order."""
    there = None if dataset_index.images is None else list(dataset_index.images.view_kinds)
    if there != (None if saved is None else list(saved)):
        model, data = (", ".join(kinds) if kinds else "single images" for kinds in (saved, there))
        raise DataError(
            f"the model was trained with the kinds of view {model}, the data have {data}: set DATA.study_column and "
            "DATA.view_kinds as in the run's config.yaml"
        )


def check_known_views(dataset_index: DatasetIndex) -> None:
    """DataError where no image is of a kind that the settings name: then the views are called otherwise."""
    images = dataset_index.images
    if (
        images is None
        or not images.values
        or any(kind + 1 < len(images.view_kinds) for own in images.kinds for kind in own)
    ):
        return
    views = Counter(visible(study.table.get("view", "")) or "(none)" for study in images.index.studies)
    shown = some([f"{value!r} ({count})" for value, count in views.most_common()], _DISPLAYED)
    raise DataError(
        f"no image is of a kind of view that the model was trained with ({', '.join(images.values)}); their views are "
        f"{shown}: say what they are by --set 'DATA.view_kinds={{{next(iter(images.values))}: [...], ...}}', or name "
        "their column by --set 'DATA.columns={view: ...}'"
    )


Groups = Mapping[str, Sequence[int]]


def _grouped(dataset_index: DatasetIndex, settings: StudySettings) -> tuple[dict[str, list[int]], list[str]]:
    """(study → its rows, in the order of the table; notes)."""
    if settings.study_column is None:
        return {study.name: [row] for row, study in enumerate(dataset_index.studies)}, []
    column = _find(dataset_index, settings.study_column)
    groups: dict[str, list[int]] = {}
    nameless = []
    for row, study in enumerate(dataset_index.studies):
        cell = study.table.get(column, "")
        if is_missing(cell):
            nameless.append(study.name)
        groups.setdefault(study.name if is_missing(cell) else visible(cell), []).append(row)
    notes = []
    if nameless:
        notes.append(f"{len(nameless)} images name no study and are one each: {some(nameless, _DISPLAYED)}")
    keys: dict[str, list[str]] = {}
    for name in groups:
        keys.setdefault(plain(name), []).append(name)
    if alike := [" and ".join(map(repr, names)) for names in keys.values() if len(names) > 1]:
        notes.append(f"taken for different studies, though they may be one: {some(alike, _DISPLAYED)}")
    return groups, notes


def _find(dataset_index: DatasetIndex, name: str) -> str:
    """The column of this name, or of one that differs in case and blanks only."""
    there = sorted({column for study in dataset_index.studies for column in study.table})
    if name in there:
        return name
    found = [column for column in there if name_key(column) == name_key(name)]
    if len(found) == 1:
        return found[0]
    close = difflib.get_close_matches(name, there, 1)
    hint = f": did you mean {close[0]!r}?" if close else ""
    raise DataError(
        f"DATA.study_column: {name!r} is no column of the labels table{hint} (beside image, labels, patient and split "
        f"it has {', '.join(there) or 'none'})"
    )


def _check_agreement(dataset_index: DatasetIndex, groups: Groups, settings: StudySettings) -> None:
    """DataError for studies across two patients or splits, or with two sets of labels, each with its lines."""
    problems = []
    for name, rows in groups.items():
        first = dataset_index.studies[rows[0]]
        for row in rows[1:]:
            other = dataset_index.studies[row]
            if what := _differences(first, other, dataset_index.class_names):
                problems.append(f"{_lines(first, other)}: study '{name}' has {what}")
                break
    if problems and any("patients" in problem for problem in problems):
        problems.append(
            "where ids count within a patient, make a column of patient and study together, and name that in "
            "DATA.study_column"
        )
    raise_problems(Path(settings.labels), problems)


def _differences(one: Study, other: Study, class_names: Sequence[str]) -> str:
    found = []
    if one.patient_id != other.patient_id:
        found.append(f"the patients '{one.patient_id}' and '{other.patient_id}'")
    if one.split != other.split:
        found.append(f"the splits {one.split or 'none'} and {other.split or 'none'}")
    same = (one.labels == other.labels) | (np.isnan(one.labels) & np.isnan(other.labels))
    if not same.all():
        at = int(np.flatnonzero(~same)[0])
        values = " and ".join("unknown" if np.isnan(v) else f"{v:g}" for v in (one.labels[at], other.labels[at]))
        found.append(f"two labels of {class_names[at]}, {values}")
    return " and ".join(found)


def _lines(one: Study, other: Study) -> str:
    return f"lines {one.line} and {other.line}" if one.line and other.line else f"'{one.name}' and '{other.name}'"


def _check_counts(dataset_index: DatasetIndex, groups: Groups, settings: StudySettings) -> None:
    if settings.max_views is None:
        limit = MOST_VIEWS
        advice = f"more than {limit}: is {settings.study_column!r} the column of studies? If it is, set DATA.max_views"
    else:
        limit, advice = settings.max_views, f"DATA.max_views is {settings.max_views}: raise it, or leave images out"
    large = {
        name: [dataset_index.studies[row].name for row in rows] for name, rows in groups.items() if len(rows) > limit
    }
    problems = [
        f"study '{name}' has {len(images)} images ({some(images, 3)}), {advice}" for name, images in large.items()
    ]
    raise_problems(Path(settings.labels), problems)


def _view_key(text: str) -> str:
    return "" if is_missing(text) else name_key(text)


def kind_of_view(text: str, values: Mapping[str, Sequence[str]]) -> str:
    """The kind that has a value, or is called so; of 'L CC' and 'R CC', as DICOM files have them, else that of 'CC'."""
    for key in (_view_key(text), _view_key(_SIDE.sub("", text.strip()))):
        listed = next((kind for kind, own in values.items() if key in map(_view_key, own)), None)
        named = next((kind for kind in values if key == _view_key(kind)), None)
        if key and (listed or named):
            return listed or named or OTHER
    return OTHER


def _kinds_of_views(
    dataset_index: DatasetIndex, settings: StudySettings
) -> tuple[Mapping[str, Sequence[str]], list[str]]:
    """(kind → its values, notes)."""
    counts = Counter(visible(study.table.get("view", "")) for study in dataset_index.studies)
    known = Counter({value: count for value, count in counts.items() if _view_key(value)})
    if settings.view_kinds is None:
        spellings: dict[str, list[str]] = {}
        for value, _ in sorted(known.items(), key=lambda item: (-item[1], item[0])):
            spellings.setdefault(_view_key(value), []).append(value)
        found = {values[0]: values for key, values in sorted(spellings.items()) if key != OTHER}
        lacking = [kind for kind in settings.required_views if kind not in found]
        if lacking:
            raise DataError(f"DATA.required_views: {some(lacking)} is none of the views {', '.join(found) or '(none)'}")
        return found, []
    kinds = settings.view_kinds
    silent = counts.total() - known.total()
    strange = Counter({value: count for value, count in known.items() if kind_of_view(value, kinds) == OTHER})
    notes = []
    if silent and kinds:
        notes.append(f"{silent} images say no view and are of the kind '{OTHER}'")
    if strange:
        shown = some([f"{value!r} ({count})" for value, count in strange.most_common()], _DISPLAYED)
        notes.append(
            f"{strange.total()} images are of the kind '{OTHER}', as DATA.view_kinds ({', '.join(kinds)}) does not "
            f"name {shown}"
        )
    return settings.view_kinds, notes


def _with_required(groups: Groups, kind_of: Sequence[str], required: Sequence[str]) -> tuple[Groups, list[str]]:
    """(studies that have a view of each of these kinds, notes)."""
    kept = {name: rows for name, rows in groups.items() if {*required} <= {kind_of[row] for row in rows}}
    if not kept:
        raise DataError(f"DATA.required_views: none of {len(groups)} studies has {' and '.join(required)}")
    left = [name for name in groups if name not in kept]
    if not left:
        return kept, []
    return kept, [
        f"{len(left)} of {len(groups)} studies lack a view of DATA.required_views and are left out: {some(left)}"
    ]


def _images(
    image_index: DatasetIndex, groups: Groups, kinds: Sequence[str], values: Mapping[str, Sequence[str]]
) -> StudyImages:
    """image_index: the images of all groups, in their order; kinds: theirs."""
    names = (*values, OTHER)
    rows, of_kinds, start = [], [], 0
    for group in groups.values():
        numbers = range(start, start + len(group))
        rows.append(tuple(numbers))
        of_kinds.append(tuple(names.index(kinds[number]) for number in numbers))
        start += len(group)
    return StudyImages(
        replace(image_index, notes=()), tuple(rows), tuple(of_kinds), {k: tuple(v) for k, v in values.items()}
    )


def _study(name: str, images: Sequence[Study], kinds: Sequence[str], settings: StudySettings) -> Study:
    """What its images say, together: of each column the one value, or several joined by '|'."""
    first = images[0]
    if settings.study_column is None:
        return first
    counts = Counter[str]()
    views = {}
    for image, kind in zip(images, kinds):
        counts[kind] += 1
        views[kind if counts[kind] == 1 else f"{kind} {counts[kind]}"] = image.file
    columns = dict.fromkeys(column for image in images for column in image.table)
    table = {column: _joined([image.table.get(column, "") for image in images]) for column in columns}
    return Study(name, views, first.labels, first.patient_id, first.split, table, first.line)


def _joined(cells: Sequence[str]) -> str:
    return "|".join(dict.fromkeys(cell for cell in cells if not is_missing(cell)))


def _identical_studies(images: StudyImages) -> tuple[tuple[int, ...], ...]:
    """Rows of studies that share an image, for each content that two or more have."""
    study_of = {row: study for study, rows in enumerate(images.rows) for row in rows}
    groups = (tuple(sorted({study_of[row] for row in group})) for group in images.index.identical)
    return tuple(sorted({group for group in groups if len(group) > 1}))


def _counted(groups: Groups, kind_of: Sequence[str]) -> str:
    sizes = Counter(len(rows) for rows in groups.values())
    kinds = Counter(kind_of[row] for rows in groups.values() for row in rows)
    by_size = ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items()))
    by_kind = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return f"{len(groups)} studies ({by_size} image{'s' * (max(sizes) > 1)}; {by_kind})"
