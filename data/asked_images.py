"""Single images and volumes that models are asked about, from inputs without labels to their loader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from data.asked import AskedModel
from data.builder import asked_tables
from data.cache.reader import AnyPreprocess
from data.joint_inputs import DisplayOptions, JointInputs, JointPreprocess, UnreadableInputs, unlabelled_loader
from data.loading.loaders import StudyLoader
from data.profile import Traits
from data.readers.fingerprints import fingerprint
from data.sources.unlabelled import dicom_view, open_unlabelled


class AskedImages:
    """models: one or more of single images. inputs: see `open_unlabelled`. overrides: the command's.

    notes: what is to be told at once. Raises DataError as `open_unlabelled` does.
    """

    def __init__(self, models: Sequence[AskedModel], inputs: Sequence[str], overrides: Sequence[str]) -> None:
        preprocesses = different([model.preprocess for model in models])
        volumes = len(preprocesses[0].size) == 3
        self.dataset_index, self.items = open_unlabelled(inputs, volumes, asked_tables(overrides))
        self.notes = self.dataset_index.notes
        self.profiles = [model.profile for model in models if model.profile is not None]
        self.joint, self.unread = JointPreprocess(preprocesses), UnreadableInputs()

    @property
    def resize_modes(self) -> list[str]:
        """See `JointPreprocess.modes`."""
        return self.joint.modes

    def loader(
        self, batch_size: int, num_workers: int, pin_memory: bool, rows: Sequence[int]
    ) -> StudyLoader[JointInputs]:
        """Of some rows. Gives the inputs for each of `different` preprocessings."""
        return unlabelled_loader(
            self.dataset_index, self.joint, self.unread, batch_size, num_workers, pin_memory, rows=rows
        )

    def warnings(self, number: int, traits: Traits) -> list[str]:
        """Each once: in which ways an image is unlike the training images, and what its reader remarked."""
        item = self.items[number]
        knows_views = any(profile.views for profile in self.profiles)
        view = (item.view or dicom_view(item.path)) if knows_views else ""
        remarks = [f"{remark.kind}: {remark.detail}" for remark in self.unread.remarks.of(number)]
        unlike = (text for profile in self.profiles for text in profile.differences(traits, view))
        return list(dict.fromkeys([*remarks, *unlike]))

    def failure(self, number: int) -> str:
        """Why an image could not be read."""
        return self.unread.reasons.get(number, "it could not be read")

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
