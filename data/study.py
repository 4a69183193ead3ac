"""What the data folder agrees on: one record a study, and the dataset index that a labels source becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.readers.volumes import FittedVolume, Volume

SPLITS = ("train", "val", "test")

# What is read of an image, [H, W] or [H, W, C], or of a volume, or of one from a cache.
Pixels = np.ndarray | Volume | FittedVolume


# The kind of view of a study that has one image, whichever projection it shows.
IMAGE = "image"


@dataclass(frozen=True)
class Study:
    """What belongs to one prediction: images and what is known about them.

    name: its identity, which split.csv, boxes, caches, predictions and errors show; unique within a source.
    views: kind of view → where its file is: a path relative to data_dir, or 'train[17]' of an .npz. One for now.
    labels: float32 [num_classes]; 1 present, 0 absent, -1 uncertain, NaN unknown. Multi-class: one-hot.
    patient_id: '' where the source names none; such a study is a patient of its own.
    split: 'train', 'val', 'test', or None where the source does not say.
    table: what else the source says ('view', 'age', 'sex', any further column), as strings.
    """

    name: str
    views: Mapping[str, str]
    labels: np.ndarray
    patient_id: str = ""
    split: str | None = None
    table: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Where its one view is."""
        (file,) = self.views.values()
        return file

    @property
    def group(self) -> str:
        """What must stay within one split: the patient, or the study itself where no patient is named."""
        return self.patient_id or f"image:{self.name}"  # drawn splits depend on this text


class Reader:
    """What a source makes of a row: reader(index) is `DatasetIndex.read`; the rest says more of it where a source
    can.
    """

    fitted = False  # whether its images are what a preprocessing made of others, which were judged then

    def __call__(self, index: int) -> Pixels:
        raise NotImplementedError

    def reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """The image decoded at a smaller scale, at least (height, width); None: only the full one is available."""
        return None

    def files(self, index: int) -> Sequence[Path]:
        """The files it is read from, so that a cache can detect changes; none: unknown."""
        return ()


@dataclass(frozen=True)
class DatasetIndex:
    """Every image or volume of a source, its classes, and how one is read.

    read(index) -> uint8 or uint16 or float32 array [H, W] or [H, W, 3], DICOM already windowed to [0, 1]; or a Volume.
    Raises DataError naming the image or volume if it cannot be decoded. A Reader can do more.
    exclusive: exactly one class per image (folders, multi-class .npz).
    notes: counted warnings met on the way, each a sentence.
    identical: rows whose images are the same, byte for byte, a tuple for each content; () where nobody looked.
    """

    class_names: tuple[str, ...]
    studies: tuple[Study, ...]
    read: Reader | Callable[[int], Pixels]
    exclusive: bool = False
    notes: tuple[str, ...] = ()
    identical: tuple[tuple[int, ...], ...] = ()

    def read_reduced(self, index: int, least: tuple[int, int]) -> np.ndarray | None:
        """`Reader.reduced`, None where `read` is no Reader."""
        return self.read.reduced(index, least) if isinstance(self.read, Reader) else None

    def files(self, index: int) -> Sequence[Path]:
        """`Reader.files`, none where `read` is no Reader."""
        return self.read.files(index) if isinstance(self.read, Reader) else ()

    @property
    def fitted(self) -> bool:
        """`Reader.fitted`, False where `read` is no Reader."""
        return isinstance(self.read, Reader) and self.read.fitted

    def label_matrix(self) -> np.ndarray:
        """float32 [num_studies, num_classes] with the codes of Study.labels."""
        if not self.studies:
            return np.empty((0, len(self.class_names)), np.float32)
        return np.stack([study.labels for study in self.studies])
