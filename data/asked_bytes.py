"""Images, volumes and studies whose bytes came from elsewhere, as models take them: read as predict.py's files are."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.asked import Asked, AskedModel
from data.asked_images import different
from data.joint_inputs import JointPreprocess
from data.readers.dicom import looks_like_dicom
from data.readers.remarks import collecting
from data.sources.unlabelled import Item, ItemReader, dicom_view
from data.study import IMAGE, DatasetIndex, Study
from utils.batch import Inputs

_GZIP, _NIFTI_AT, _NIFTI = b"\x1f\x8b", slice(344, 347), (b"n+1", b"n+2", b"ni1")
_NIFTI_2_AT = slice(4, 7)
_LISTED, _CLINICAL = "list.csv", "clinical.csv"


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


# ---- studies


@dataclass(frozen=True)
class GivenImage:
    """An image of a study. name: for messages. view: as the column `view` of a table says it, '' where unknown."""

    name: str
    content: bytes
    view: str


@dataclass(frozen=True)
class GivenStudy:
    """A study. cells: of its row of the clinical table, by column, '' where unknown; None where it has no row."""

    name: str
    images: Sequence[GivenImage]
    cells: Mapping[str, str] | None


@dataclass(frozen=True)
class FoundStudy:
    """What was found of one. missing: columns and views that it lacks. error: why nothing of it could be read."""

    name: str
    images: tuple[str, ...]
    warnings: tuple[str, ...]
    missing: tuple[str, ...]
    error: str = ""


class AskedStudyBytes:
    """models: one or more of studies, which take these columns.

    What a study lacks is unknown, and said to be missing. Bytes lie, while they are read, in a folder of their own.
    """

    def __init__(self, models: Sequence[AskedModel]) -> None:
        self.models = tuple(models)
        encodings = [model.encoding for model in models if model.encoding is not None]
        self.columns = tuple(dict.fromkeys(name for encoding in encodings for name in encoding.kinds))
        # A model of a table alone knows no column of studies: there an image is one.
        column = models[0].config.DATA.study_column
        self._key = () if column is None else (column,)

    def read(self, studies: Sequence[GivenStudy]) -> tuple[tuple[Inputs, ...], list[FoundStudy]]:
        """(the inputs for each model, of the studies of which something could be read; () where of none; all studies in
        their order).

        Raises DataError where they cannot be put together, PredictionError where the models differ in how.
        """
        with tempfile.TemporaryDirectory(prefix="hybridmednet-") as folder:
            labels = self._write(Path(folder), studies)
            try:
                return self._read(Path(folder), labels)
            except DataError as error:
                raise DataError(_labelled(str(error), labels, folder)) from None

    def _write(self, folder: Path, studies: Sequence[GivenStudy]) -> dict[str, str]:
        """Files, a table of them, and a clinical table where any study has a row; {name of a file: its label}."""
        labels: dict[str, str] = {}
        lines, rows = [("image", *self._key, "view")], [(*(self._key or ("image",)), *self.columns)]
        for study in studies:
            for image in study.images:
                suffix = ".dcm" if looks_like_dicom(image.content[:256]) else ".png"
                name = f"upload-{len(labels):04d}{suffix}"
                (folder / name).write_bytes(image.content)
                labels[name] = image.name
                lines.append((name, *([study.name] if self._key else []), image.view))
                key = study.name if self._key else name
            if study.cells is not None:
                rows.append((key, *(study.cells.get(column, "") for column in self.columns)))
        _write_table(folder / _LISTED, lines)
        if len(rows) > 1:
            _write_table(folder / _CLINICAL, rows)
        return labels

    def _read(self, folder: Path, labels: Mapping[str, str]) -> tuple[tuple[Inputs, ...], list[FoundStudy]]:
        clinical = folder / _CLINICAL
        table = str(clinical) if clinical.exists() else None
        asked = Asked(self.models, [str(folder / _LISTED)], table, True, [])
        count = len(asked.dataset_index.studies)
        inputs: tuple[Inputs, ...] = ()
        warnings: dict[int, list[str]] = {}
        for _, rows, read in asked.loader(count, 0, False).epoch(0):
            if read is not None:
                inputs = read.inputs
                warnings = {n: asked.warnings(n, read.traits[at]) for at, n in enumerate(rows.tolist())}
        found = []
        for number, study in enumerate(asked.dataset_index.studies):
            names = tuple(labels.get(name, name) for name in asked.names(number))
            said = tuple(_labelled(text, labels, str(folder)) for text in warnings.get(number, ()))
            error = "" if number in warnings else _labelled(asked.failure(number), labels, str(folder))
            name = study.name if self._key else labels.get(study.name, study.name)
            found.append(FoundStudy(name, names, said, asked.missing(number), error))
        return inputs, found


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _labelled(text: str, labels: Mapping[str, str], folder: str) -> str:
    """A message about files, with what the client calls them."""
    for name, label in labels.items():
        text = text.replace(f"{folder}/{name}", label).replace(name, label)
    return text.replace(folder, "the request")
