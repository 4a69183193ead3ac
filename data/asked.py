"""Studies that models are asked about, from inputs without labels to their loader and what is to be said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.default_config import Config
from configs.errors import PredictionError
from data.builder import asked_tables, study_settings
from data.cache.reader import AnyPreprocess
from data.clinical_table import Kind
from data.evaluation_data import WholeStudies
from data.joint_inputs import JointPreprocess, JointStudies, UnreadableInputs, unlabelled_study_loader
from data.loading.loaders import StudyLoader
from data.profile import TrainingData, Traits
from data.readers.dicom_identity import identifiers, is_dicom, naming_texts, read_attributes, read_headers
from data.readers.fingerprints import fingerprint
from data.readers.images import to_uint8
from data.sources.asked_studies import asked_studies
from data.sources.studies import StudySettings, check_known_views, check_view_kinds
from data.sources.unlabelled import AskedInputs, open_unlabelled
from data.study import DatasetIndex, StudyImages, StudyReader
from data.table_encoding import Categorical, TableEncoding
from data.transforms.images import Preprocess
from utils.batch import Inputs
from utils.identifiers import without_names

if TYPE_CHECKING:
    from pydicom import FileDataset


@dataclass(frozen=True)
class AskedModel:
    """What its file says of a model's data. view_kinds, encoding: None of a model without. profile: None where the file
    does not describe its training images.
    """

    file: str
    config: Config
    preprocess: AnyPreprocess
    encoding: TableEncoding | None
    view_kinds: Sequence[str] | None
    profile: TrainingData | None

    @property
    def of_studies(self) -> bool:
        """Whether it takes several views or a table."""
        return self.config.MODEL.views.aggregator is not None or self.config.MODEL.table.fusion is not None


class Asked:
    """models: one or more of studies. inputs: see `open_unlabelled`. table: a clinical table, or None. missing_columns:
    what a table lacks is unknown rather than an error. overrides: the command's. anonymous: see AskedImages.

    notes: what is to be told at once. Raises PredictionError where the models make studies in different ways, and
    DataError as `open_unlabelled` and `asked_studies` do.
    """

    def __init__(
        self,
        models: Sequence[AskedModel],
        inputs: AskedInputs,
        table: str | None,
        missing_columns: bool,
        overrides: Sequence[str],
        anonymous: bool = False,
    ) -> None:
        self.models, self.anonymous = models, anonymous
        tables = asked_tables(overrides)
        settings = replace(_common_settings(models, overrides), table_file=table, encoding=tables.encoding)
        volumes = models[0].config.has_volumes()
        listed = replace(tables, study_column=settings.study_column)
        opened, items = open_unlabelled(inputs, volumes, listed)
        asked = asked_studies(opened, items, settings, missing_columns, _categories(models))
        self.dataset_index: DatasetIndex = asked.dataset_index
        self.columns = asked.columns
        for model in models:
            check_view_kinds(model.view_kinds, self.dataset_index)
        if any(image.table.get("view") for image in self.images.index.studies):
            check_known_views(self.dataset_index)
        self.unread = UnreadableInputs(silent=anonymous)
        strange = [self._strange(model.encoding) for model in models]
        self.notes = tuple(
            dict.fromkeys([*self.dataset_index.notes, *(note for notes, _ in strange for note in notes)])
        )
        self._strange_values = [
            list(dict.fromkeys(chain.from_iterable(texts))) for texts in zip(*(of for _, of in strange))
        ]
        if anonymous:
            self.columns = tuple({} for _ in self.columns)
            self._strange_values = [[without_names(text) for text in texts] for texts in self._strange_values]
            self.dataset_index = _with_numbers(self.dataset_index)

    @property
    def images(self) -> StudyImages:
        """Of the studies."""
        assert self.dataset_index.images is not None, "a dataset index of studies"
        return self.dataset_index.images

    def names(self, number: int) -> tuple[str, ...]:
        """What the images of a study are called."""
        return tuple(self.images.index.studies[row].name for row in self.images.rows[number])

    def loader(
        self, batch_size: int, num_workers: int, pin_memory: bool, rows: Sequence[int] | None = None
    ) -> StudyLoader[JointStudies]:
        """Of all studies or of some rows. Gives each model's inputs, in the models' order."""
        preprocesses = {str(model.preprocess.as_dict()): model.preprocess for model in self.models}
        numbers = [list(preprocesses).index(str(model.preprocess.as_dict())) for model in self.models]
        models = [(number, model.encoding) for number, model in zip(numbers, self.models)]
        joint = JointPreprocess(list(preprocesses.values()))
        return unlabelled_study_loader(
            self.dataset_index, joint, models, self.unread, batch_size, num_workers, pin_memory, rows
        )

    def warnings(self, number: int, traits: Sequence[Traits]) -> list[str]:
        """What is to be said of a study that was read: images that could not be, those unlike training's, values."""
        rows = self.images.rows[number]
        read = [row for row in rows if row not in self.unread.reasons]
        said = [f"left out: {self._reason(row)}" for row in rows if row in self.unread.reasons]
        for row, one in zip(read, traits, strict=True):
            image = self.images.index.studies[row]
            of_image = [f"{remark.kind}: {remark.detail}" for remark in self.unread.remarks.of(row)]
            attributes, shown = read_attributes(Path(image.file)), not self.anonymous
            for profile in (model.profile for model in self.models if model.profile is not None):
                view = image.table.get("view", "") if profile.views else ""
                of_image += profile.other_acquisition(attributes, shown) + profile.differences(one, view, shown)
            prefix = f"{image.name}: " if len(rows) > 1 else ""
            said += [f"{prefix}{text}" for text in dict.fromkeys(of_image)]
        return said + (self._strange_values[number] if self._strange_values else [])

    def missing(self, number: int) -> tuple[str, ...]:
        """The models' columns that are unknown of a study, and the kinds of view that it lacks or that cannot be read.

        To be asked when all was read.
        """
        wanted = dict.fromkeys(name for model in self.models if model.encoding for name in model.encoding.kinds)
        table = self.dataset_index.table
        known = {} if table is None else {one.name: bool(one.known[number]) for one in table.columns}
        columns = [name for name in wanted if not known.get(name)]
        rows, kinds = self.images.rows[number], self.images.kinds[number]
        there = {kind for row, kind in zip(rows, kinds) if row not in self.unread.reasons}
        return (*columns, *(name for kind, name in enumerate(self.images.values) if kind not in there))

    def failure(self, number: int) -> str:
        """Why nothing of a study could be read."""
        reasons = [self._reason(row) for row in self.images.rows[number] if row in self.unread.reasons]
        return "; ".join(reasons) or "nothing of it could be read"

    def _reason(self, row: int) -> str:
        """Why an image cannot be read."""
        reason, path = self.unread.reasons[row], Path(self.images.index.studies[row].file)
        return without_names(reason, naming_texts(read_attributes(path)), [path]) if self.anonymous else reason

    @property
    def has_identifiers(self) -> bool:
        """Whether any file may say whose it is, and it is to be said."""
        return not self.anonymous and any(is_dicom(Path(image.file)) for image in self.images.index.studies)

    def attributes(self, number: int) -> list[dict[str, str]]:
        """`read_attributes` of each image of a study."""
        return [read_attributes(Path(self.images.index.studies[row].file)) for row in self.images.rows[number]]

    def identifiers(self, number: int) -> dict[str, str]:
        """Whose study it is, by keyword, as its files say; {} where that is not to be said."""
        return {} if self.anonymous else identifiers(self.attributes(number))

    def other_acquisition(self, number: int) -> list[str]:
        """In words, whether an image of a study is of a modality or body part that no training image was of."""
        profiles = [model.profile for model in self.models if model.profile is not None]
        found = (one.other_acquisition(of, not self.anonymous) for of in self.attributes(number) for one in profiles)
        return list(dict.fromkeys(text for texts in found for text in texts))

    def headers(self, number: int) -> list[FileDataset]:
        """The headers of a study's files; see `read_headers`."""
        paths = [Path(self.images.index.studies[row].file) for row in self.images.rows[number]]
        return [header for path in paths for header in read_headers(path)]

    def not_dicom(self) -> list[str]:
        """What images are called that are no DICOM files; those that cannot be opened are none of them."""
        paths = ((one.name, Path(one.file)) for one in self.images.index.studies)
        return [name for name, path in paths if path.exists() and not is_dicom(path)]

    def shown(self, number: int) -> list[tuple[Inputs, list[tuple[str, str, np.ndarray | None]]]]:
        """For a heatmap: a study of images as each of the models sees it, [1 study], and its views: (name, what the
        table calls it, uint8 [H, W] or [H, W, 3] as it is, None where it cannot be read).
        """
        found = []
        for model in self.models:
            study = WholeStudies(self.dataset_index, model.preprocess, model.encoding).read(number)
            shown = [view.pixels if isinstance(view.pixels, np.ndarray) else None for view in study.views]
            images = [None if pixels is None else to_uint8(pixels) for pixels in shown]
            views = [(v.name, "" if self.anonymous else v.value, image) for v, image in zip(study.views, images)]
            found.append((study.inputs, views))
        return found

    @property
    def resize_modes(self) -> list[str]:
        """How images are resized for each model: see data.transforms.images.resize."""
        return [p.resize_mode for p in (model.preprocess for model in self.models) if isinstance(p, Preprocess)]

    def fingerprint(self, number: int) -> str:
        """Changes when a file of a study does, or what tables and headers say of it: see `readers.fingerprints`."""
        study, images = self.dataset_index.studies[number], self.images
        paths = [Path(images.index.studies[row].file) for row in images.rows[number]]
        views = [images.index.studies[row].table.get("view", "") for row in images.rows[number]]
        cells = [f"{name}={text}" for name, text in (*study.table.items(), *self.columns[number].items())]
        return fingerprint(paths, [study.name, *self.names(number), *views, *cells])

    def _strange(self, encoding: TableEncoding | None) -> tuple[list[str], list[list[str]]]:
        names, table = [study.name for study in self.dataset_index.studies], self.dataset_index.table
        if encoding is None or table is None:
            return [], [[] for _ in names]
        return encoding.strange(table, names)


def _with_numbers(dataset_index: DatasetIndex) -> DatasetIndex:
    """Studies called by their numbers, their images '00007-1', '00007-2', …"""
    images = dataset_index.images
    assert images is not None, "a dataset index of studies"
    names = {row: f"{n:05d}-{k}" for n, rows in enumerate(images.rows) for k, row in enumerate(rows, 1)}
    of_images = tuple(replace(one, name=names.get(row, "")) for row, one in enumerate(images.index.studies))
    images = replace(images, index=replace(images.index, studies=of_images))
    studies = tuple(replace(one, name=f"{number:05d}") for number, one in enumerate(dataset_index.studies))
    return replace(dataset_index, studies=studies, images=images, read=StudyReader(images))


def _categories(models: Sequence[AskedModel]) -> dict[str, list[str]]:
    """Column → the categories that any model knows."""
    found: dict[str, list[str]] = {}
    for column in (column for model in models if model.encoding for column in model.encoding.columns):
        if isinstance(column, Categorical):
            found.setdefault(column.name, []).extend(column.categories)
    return found


def _common_settings(models: Sequence[AskedModel], overrides: Sequence[str]) -> StudySettings:
    """How all of these models make studies, with the columns of all of them; as many images as the overrides allow, for
    as many as training's largest study had is no limit for others.
    """
    first = models[0]
    columns: dict[str, Kind] = {}
    for model in models:
        for name, kind in model.encoding.kinds.items() if model.encoding else ():
            if columns.setdefault(name, kind) != kind:
                raise PredictionError(f"'{model.file}' takes the column {name!r} as {kind}, another model does not")
        for key, mine, others in _making(first, model):
            if mine != others:
                raise PredictionError(
                    f"'{first.file}' has {key} {mine}, '{model.file}' {others}: ask them one by one, or set {key} for "
                    "all of them by --set"
                )
    limited = any("DATA.max_views" in keys for keys in Config.override_keys(overrides).values())
    settings = study_settings(first.config.DATA)
    return replace(
        settings,
        table_columns=columns,
        max_views=first.config.DATA.max_views if limited else None,
        required_views=(),
        labels="the images asked about",
        tolerant=True,
    )


def _making(one: AskedModel, other: AskedModel) -> list[tuple[str, object, object]]:
    """(key, a model's value, another's) of what says which images are a study and what they show."""

    def kinds(model: AskedModel) -> Mapping[str, Sequence[str]] | None:
        listed = model.config.DATA.view_kinds
        return None if listed is None else {kind: list(values) for kind, values in listed.items()}

    data, others = one.config.DATA, other.config.DATA
    return [
        ("DATA.study_column", data.study_column, others.study_column),
        ("DATA.view_kinds", kinds(one), kinds(other)),
    ]
