"""One image or volume whose bytes came from elsewhere, as models take it: read as a file of predict.py's is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.asked import AskedModel
from data.asked_images import different
from data.joint_inputs import JointPreprocess
from data.readers.remarks import collecting
from data.sources.unlabelled import Item, ItemReader, dicom_view
from data.study import IMAGE, DatasetIndex, Study
from utils.batch import Inputs

_GZIP, _NIFTI_AT, _NIFTI = b"\x1f\x8b", slice(344, 347), (b"n+1", b"n+2", b"ni1")
_NIFTI_2_AT = slice(4, 7)


class AskedBytes:
    """models: one or more of single images, or of volumes.

    No name that a client gives is ever a path: bytes lie, while they are read, in a folder of their own that is removed
    at once.
    """

    def __init__(self, models: Sequence[AskedModel]) -> None:
        self.joint = JointPreprocess(different([model.preprocess for model in models]))
        self.volumes = len(self.joint.preprocesses[0].size) == 3
        self._profiles = [model.profile for model in models if model.profile is not None]

    def read(self, name: str, content: bytes) -> tuple[tuple[Inputs, ...], list[str]]:
        """(the inputs of one study for each of the different preprocessings, in which ways it is unlike the training
        images and what its reader remarked). name: for messages.

        Raises DataError where it cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="hybridmednet-") as folder:
            path = Path(folder) / f"image{self._suffix(content)}"
            path.write_bytes(content)
            try:
                return self._read(path)
            except DataError as error:
                raise DataError(str(error).replace(str(path), name).replace(folder, name)) from None

    def _read(self, path: Path) -> tuple[tuple[Inputs, ...], list[str]]:
        study = Study(path.name, {IMAGE: str(path)}, np.empty(0, np.float32))
        index = DatasetIndex((), (study,), ItemReader((Item(path.name, path),), self.volumes))
        with collecting() as remarks:
            found = self.joint.apply(index, 0)
        view = dicom_view(path) if any(profile.views for profile in self._profiles) else ""
        said = [f"{remark.kind}: {remark.detail}" for remark in remarks.values()]
        said += [text for profile in self._profiles for text in profile.differences(found.traits, view)]
        return self.joint.collate([found]).inputs, list(dict.fromkeys(said))

    def _suffix(self, content: bytes) -> str:
        """By which volumes are known; images are known by their first bytes alone."""
        if not self.volumes:
            return ".image"
        if content.startswith(_GZIP):
            return ".nii.gz"
        return ".nii" if content[_NIFTI_AT] in _NIFTI or content[_NIFTI_2_AT] in _NIFTI else ".dcm"
