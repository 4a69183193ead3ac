"""Single images and volumes that models are asked about, from inputs without labels to their loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from data.asked import AskedModel
from data.builder import asked_tables
from data.cache.reader import AnyPreprocess
from data.joint_inputs import DisplayOptions, JointInputs, JointPreprocess, UnreadableInputs, unlabelled_loader
from data.loading.loaders import StudyLoader
from data.profile import Traits
from data.readers.dicom_identity import identifiers, is_dicom, naming_texts, read_attributes, read_headers
from data.readers.fingerprints import fingerprint
from data.sources.unlabelled import AskedInputs, dicom_view, open_unlabelled
from utils.identifiers import without_names

if TYPE_CHECKING:
    from pydicom import FileDataset


class AskedImages:
    """models: one or more of single images. inputs: see `open_unlabelled`. overrides: the command's. anonymous: images
    are called by their numbers, and nothing that is said of them names a file, a person or an examination.

    notes: what is to be told at once. Raises DataError as `open_unlabelled` does.
    """

    def __init__(
        self, models: Sequence[AskedModel], inputs: AskedInputs, overrides: Sequence[str], anonymous: bool = False
    ) -> None:
        preprocesses = different([model.preprocess for model in models])
        volumes = len(preprocesses[0].size) == 3
        found, self.items = open_unlabelled(inputs, volumes, asked_tables(overrides))
        self.notes, self.anonymous = found.notes, anonymous
        self.names, self.columns = [item.name for item in self.items], [item.columns for item in self.items]
        if anonymous:
            self.names, self.columns = anonymous_names(len(self.items)), [{} for _ in self.items]
            studies = (replace(study, name=name) for study, name in zip(found.studies, self.names))
            found = replace(found, studies=tuple(studies))
        self.dataset_index = found
        self.profiles = [model.profile for model in models if model.profile is not None]
        self.joint, self.unread = JointPreprocess(preprocesses), UnreadableInputs(silent=anonymous)
        self._attributes: tuple[int, dict[str, str]] = (-1, {})

    @property
    def resize_modes(self) -> list[str]:
        """See `JointPreprocess.modes`."""
        return self.joint.modes

    @property
    def has_identifiers(self) -> bool:
        """Whether any file may say whose it is, and it is to be said."""
        return not self.anonymous and any(is_dicom(item.path, item.root) for item in self.items if not item.error)

    def loader(
        self, batch_size: int, num_workers: int, pin_memory: bool, rows: Sequence[int]
    ) -> StudyLoader[JointInputs]:
        """Of some rows. Gives the inputs for each of `different` preprocessings."""
        return unlabelled_loader(
            self.dataset_index, self.joint, self.unread, batch_size, num_workers, pin_memory, rows=rows
        )

    def warnings(self, number: int, traits: Traits) -> list[str]:
        """Each once: in which ways an image is unlike the training images, and what its reader remarked."""
        item, shown = self.items[number], not self.anonymous
        knows_views = any(profile.views for profile in self.profiles)
        view = (item.view or dicom_view(item.path)) if knows_views else ""
        remarks = [f"{remark.kind}: {remark.detail}" for remark in self.unread.remarks.of(number)]
        unlike = (text for profile in self.profiles for text in profile.differences(traits, view, shown))
        return list(dict.fromkeys([*remarks, *self.other_acquisition(number), *unlike]))

    def other_acquisition(self, number: int) -> list[str]:
        """In words, whether an image is of a modality or body part that no training image was of."""
        attributes = self.attributes(number)
        found = (profile.other_acquisition(attributes, not self.anonymous) for profile in self.profiles)
        return list(dict.fromkeys(text for texts in found for text in texts))

    def failure(self, number: int) -> str:
        """Why an image could not be read."""
        reason, item = self.unread.reasons.get(number, "it could not be read"), self.items[number]
        if not self.anonymous:
            return reason
        paths = [item.path, *([item.table] if item.table else [])]
        return without_names(reason, {item.name, *naming_texts(self.attributes(number)), *item.columns.values()}, paths)

    def attributes(self, number: int) -> dict[str, str]:
        """See `read_attributes`; {} of what is not to be opened. The last one's are kept."""
        if self._attributes[0] != number:
            item = self.items[number]
            self._attributes = number, {} if item.error else read_attributes(item.path, item.root)
        return self._attributes[1]

    def identifiers(self, number: int) -> dict[str, str]:
        """Whose image it is, by keyword, as its file says; {} where that is not to be said."""
        return {} if self.anonymous else identifiers([self.attributes(number)])

    def headers(self, number: int) -> list[FileDataset]:
        """The headers of an image, of a folder of slices all; see `read_headers`."""
        item = self.items[number]
        return read_headers(item.path, item.root)

    def not_dicom(self) -> list[str]:
        """What images are called that are no DICOM files; those that cannot be opened are none of them."""
        return [i.name for i in self.items if not i.error and i.path.exists() and not is_dicom(i.path, i.root)]

    def shown(self, number: int) -> tuple[np.ndarray, DisplayOptions, list[Tensor]]:
        """For a heatmap: (what it is laid over, what is to be said of it, the inputs [1, C, *spatial]), see
        `JointPreprocess.display_image`. Raises DataError where it cannot be read.
        """
        displayed, more = self.joint.display_image(self.dataset_index.read(number))
        return displayed, more, [one[None] for one in self.joint.apply(self.dataset_index, number).images]

    def fingerprint(self, number: int) -> str:
        """Changes when the file does, or what a table says of it: see `readers.fingerprints`."""
        item = self.items[number]
        return fingerprint([item.path], [item.name, item.view, *(f"{k}={v}" for k, v in item.columns.items())])


def anonymous_names(count: int) -> list[str]:
    """'00000', '00001', …: images or studies by their numbers, in the order of the inputs."""
    return [f"{number:05d}" for number in range(count)]


def different(preprocesses: Sequence[AnyPreprocess]) -> list[AnyPreprocess]:
    """Each once, in their order: a file is read once for all models, and made an input of once for those alike."""
    found: dict[str, AnyPreprocess] = {}
    for one in preprocesses:
        found.setdefault(str(one.as_dict()), one)
    return list(found.values())


def input_numbers(models: Sequence[AskedModel]) -> list[int]:
    """Which of the inputs is each model's own: of studies, where tables differ, each has one of its own."""
    if models[0].of_studies:
        return list(range(len(models)))
    known = [str(one.as_dict()) for one in different([model.preprocess for model in models])]
    return [known.index(str(model.preprocess.as_dict())) for model in models]
