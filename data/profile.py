"""What the training images look like before preprocessing, and how another image differs from them.

A model answers for any input; nothing in its answer says that an image was a screenshot or a lateral view. So a
run notes a few plain traits of its training data, and prediction compares. This finds what is coarsely wrong (size,
depth, colour, view, a negative, another part of the body); it is no test of whether a model holds for an image.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

import cv2
import numpy as np
from numpy.typing import ArrayLike

from configs.errors import CheckpointError, DataError
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, StudyLoader, UnreadableImages
from data.readers.dicom_identity import BODY_PART, MODALITY, read_attributes
from data.readers.images import scale_intensity
from data.readers.volumes import Volume
from data.study import DatasetIndex, Pixels
from data.transforms.volumes import PERCENTILES

logger = logging.getLogger(__name__)

# As many as tell the range, and as many pixels as are decoded in a few seconds.
MOST_IMAGES, MOST_PIXELS, BATCH = 64, 10**8, 8
MOST_HEADERS = 512
_LOOKED_AT = 256  # pixels of an axis; of volumes as many voxels as of images
_CELLS = 8  # rows and columns of the mean image: where it is bright, not whose it is
_COLOURED = 0.02  # mean distance of the channels, of the full range; JPEG's rounding of a grey image is below


@dataclass(frozen=True)
class Trait:
    """A number that is measured of each image.

    words, number, unit: how a warning shows it. ratio: how many times below the smallest or above the largest of
    training is still alike. floor, share: by how much, beyond half of training's range; share is of the largest number
    met. names: for a number that stands for a kind: what each is called; only kinds met in training are alike.
    """

    name: str
    words: str = ""
    number: str = ""
    unit: str = ""
    ratio: float = 0.0
    floor: float = 0.0
    fraction: float = 0.0
    names: Mapping[int, str] | None = None

    def limits(self, low: float, high: float) -> tuple[float, float]:
        """The numbers between which an image is like those of training, which were from low to high."""
        if self.ratio:
            return low / self.ratio, high * self.ratio
        margin = (high - low) / 2 + self.floor + self.fraction * max(abs(low), abs(high))
        return low - margin, high + margin


IMAGE_TRAITS = (
    Trait("height", "height", ".0f", " pixels", ratio=1.5),
    Trait("width", "width", ".0f", " pixels", ratio=1.5),
    Trait("aspect", "width / height", ".2f", ratio=1.15),
    Trait("brightness", "mean brightness", ".2f", floor=0.05),
    Trait("contrast", "standard deviation of brightness", ".2f", floor=0.05),
    Trait("bits", names={8: "8 bits", 16: "16 bits", 32: "windowed DICOM"}),
    Trait("colour", names={0: "grey", 1: "colour"}),
    Trait("likeness", "correlation with the mean training image", ".2f", floor=0.1),
)
VOLUME_TRAITS = (
    *(Trait(f"{axis}_mm", axis, ".0f", " mm", ratio=1.5) for axis in ("depth", "height", "width")),
    *(Trait(f"spacing_{axis}_mm", f"spacing in {axis}", ".3g", " mm", ratio=1.5) for axis in "zyx"),
    Trait("low", "0.5 percentile", ".4g", fraction=0.25),
    Trait("high", "99.5 percentile", ".4g", fraction=0.25),
)
_TRAITS = {"images": IMAGE_TRAITS, "volumes": VOLUME_TRAITS}


class Traits(NamedTuple):
    """What is measured of one image or volume.

    figures: float32 [T], in the order of IMAGE_TRAITS or VOLUME_TRAITS; without an image's likeness, which is computed
    against other images. cells: float32 [64], an image's brightness in 8 x 8 cells, for that; [0] of volumes.
    """

    figures: np.ndarray
    cells: np.ndarray


def measure(image: Pixels) -> Traits:
    """The traits of one decoded image or volume, in full.

    Brightness is in [0, 1] by data/readers/images.py's rule, as preprocessing sees it; of large images every n-th row
    and column counts. An image stored with three equal channels is grey.
    """
    if isinstance(image, Volume):
        return Traits(_measure_volume(image), np.empty(0, np.float32))
    assert isinstance(image, np.ndarray), "fitted volumes have lost what would be measured"
    height, width = image.shape[:2]
    few = image[:: -(-height // _LOOKED_AT), :: -(-width // _LOOKED_AT)]
    unit = scale_intensity(few).astype(np.float32) / np.float32(255.0 if few.dtype == np.uint8 else 1.0)
    colour = few.ndim == 3 and few.shape[2] == 3 and float(np.ptp(unit, axis=2).mean()) > _COLOURED
    figures = (height, width, width / height, unit.mean(), unit.std(), 8 * image.dtype.itemsize, colour)
    grey = unit if unit.ndim == 2 else unit.mean(axis=2)
    cells = cv2.resize(grey, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
    return Traits(np.array(figures, np.float32), cells.ravel())


def likeness(cells: np.ndarray, pattern: np.ndarray) -> float:
    """Correlation of two images' cells, -1 to 1; 0 where one of them is all of one value."""
    one, other = (values - values.mean() for values in (np.asarray(cells, np.float64), np.asarray(pattern, np.float64)))
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norm if norm > 1e-9 else 0.0


def _measure_volume(volume: Volume) -> np.ndarray:
    voxels, spacing = volume.voxels, volume.spacing_mm
    counted = voxels.reshape(-1)[:: -(-voxels.size // _LOOKED_AT**2)]
    lengths = [step * count for step, count in zip(spacing, voxels.shape)]
    return np.array([*lengths, *spacing, *np.percentile(counted, PERCENTILES)], np.float32)


class Measurement:
    """The traits of images in full: an InputTransform of data/transforms/input_transform.py."""

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> Traits:
        """See `measure`."""
        return measure(dataset_index.read(index))

    def collate(self, values: Sequence[Traits]) -> list[Traits]:
        """As they are."""
        return list(values)


class _Skipped(UnreadableImages):
    """Training itself will say which images it cannot read, and what is to be said of others."""

    def __init__(self) -> None:
        super().__init__(MOST_IMAGES)

    def add(self, index: int, reason: str) -> None:
        self.reasons[index] = reason

    def end_epoch(self) -> None:
        pass


class TrainingDataRecord(TypedDict, total=False):
    """Training data as a checkpoint describes them; empty where nothing could be read.

    images: how many were looked at, `of` so many. ranges: trait → [smallest, largest]. kinds: trait → kind → images.
    views: view → images. pattern: the mean image's cells. modalities, body_parts: of those that are DICOM files, of 512
    at most; absent where none is.
    """

    kind: Literal["images", "volumes"]
    images: int
    of: int
    ranges: dict[str, list[float]]
    kinds: dict[str, dict[str, int]]
    views: dict[str, int]
    pattern: list[float]
    modalities: dict[str, int]
    body_parts: dict[str, int]


def describe_images(loader: ImageLoader, volumes: bool, source: DatasetIndex | None = None) -> TrainingDataRecord:
    """The traits of the images of a training loader, as plain values for a checkpoint.

    At most 64 images are read, always the same ones, and no more after 100 million pixels; those that cannot be read
    are left out. No random state but its own is touched. Views are those of all of them, where the labels name views.
    source: the images in full, where the loader's come from a cache.
    {} where nothing could be read.
    """
    whole = loader.dataset.dataset_index if source is None else source
    rows = everyone = whole.image_rows(loader.indices)
    if len(rows) > MOST_IMAGES:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_IMAGES, replace=False))
    dataset_index = whole.image_index
    dataset = ImageDataset(dataset_index, Measurement(), seed=0)
    traits = VOLUME_TRAITS if volumes else IMAGE_TRAITS
    found = _read(loader.studies.like(dataset, EpochBatchSampler(rows, BATCH, False, 0), _Skipped()), traits)
    if not found:
        return {}
    figures, cells = (np.stack(column).astype(np.float64) for column in zip(*found))
    figures, pattern = (figures, []) if volumes else _with_likeness(figures, cells)
    views = Counter(view_name(dataset_index.studies[i].table.get("view", "")) for i in everyone)
    ranges = {t.name: [float(c.min()), float(c.max())] for t, c in zip(traits, figures.T) if t.names is None}
    kinds = {t.name: _count(t.names, c) for t, c in zip(traits, figures.T) if t.names is not None}
    record: TrainingDataRecord = {
        "kind": "volumes" if volumes else "images",
        "images": len(figures),
        "of": len(everyone),
        "ranges": ranges,
        "kinds": kinds,
        "views": {view: count for view, count in views.items() if view},
        "pattern": pattern,
    }
    modalities, body_parts = _acquisitions(dataset_index, rows, everyone)
    if modalities:
        record["modalities"] = modalities
    if body_parts:
        record["body_parts"] = body_parts
    return record


def _acquisitions(
    dataset_index: DatasetIndex, rows: Sequence[int] | np.ndarray, everyone: np.ndarray
) -> tuple[dict[str, int], dict[str, int]]:
    """(modality → images, body part → images) by the headers of DICOM files: of more than `rows`, as what is rare among
    training images is not unlike them; of none where none of `rows` is such a file.
    """

    def header(row: int) -> dict[str, str]:
        files = dataset_index.files(row)
        return read_attributes(files[0]) if files else {}

    if not any(header(int(row)) for row in rows):
        return {}, {}
    if len(everyone) > MOST_HEADERS:
        everyone = np.sort(np.random.default_rng(1).choice(everyone, MOST_HEADERS, replace=False))
    headers = [header(int(row)) for row in everyone]
    modalities, body_parts = (
        dict(Counter(view_name(one[keyword]) for one in headers if keyword in one)) for keyword in (MODALITY, BODY_PART)
    )
    return modalities, body_parts


def _with_likeness(figures: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """([images, traits], the mean image's cells): the likeness of each to the mean of all others as one more."""
    total, count = cells.sum(axis=0), len(cells)
    alike = [likeness(one, (total - one) / (count - 1)) if count > 1 else 1.0 for one in cells]
    return np.column_stack([figures, alike]), np.round(total / count, 4).tolist()


def _read(loader: StudyLoader[list[Traits]], traits: Sequence[Trait]) -> list[Traits]:
    """Of images until there are pixels enough."""
    found: list[Traits] = []
    pixels = 0.0
    try:
        for _, _, batch in loader.epoch(0):
            found += batch or []
            pixels += sum(_pixels(one, traits) for one in batch or [])
            if pixels > MOST_PIXELS:
                break
    except DataError as error:  # workers that died too often
        logger.warning("the training data are not described in checkpoints: %s", error)
        return []
    return found


def _pixels(one: Traits, traits: Sequence[Trait]) -> float:
    values = dict(zip((trait.name for trait in traits), one.figures.tolist()))
    if "height" in values:
        return values["height"] * values["width"]
    return math.prod(values[f"{long}_mm"] / values[f"spacing_{short}_mm"] for long, short in _AXES)


_AXES = (("depth", "z"), ("height", "y"), ("width", "x"))


def _count(names: Mapping[int, str], column: np.ndarray) -> dict[str, int]:
    return dict(Counter(names.get(int(value), str(int(value))) for value in column))


def view_name(text: str) -> str:
    """'pa ' and 'PA' are one view."""
    return text.strip().upper()


@dataclass(frozen=True)
class TrainingData:
    """What `describe_images` gave, read back; pattern: the mean image's cells."""

    traits: tuple[Trait, ...]
    ranges: Mapping[str, tuple[float, float]]
    kinds: Mapping[str, Mapping[str, int]]
    views: Mapping[str, int]
    pattern: np.ndarray
    modalities: Mapping[str, int] = field(default_factory=dict)
    body_parts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    # Any: values of a file; each is checked below.
    def from_dict(cls, values: Mapping[str, Any], volumes: bool) -> TrainingData:
        """volumes: whether the model is for them. Raises CheckpointError for anything else."""
        try:
            traits = _TRAITS[values["kind"]]
            if (values["kind"] == "volumes") != volumes:
                raise ValueError(f"it is of {values['kind']}")
            ranges = {t.name: _range(values["ranges"][t.name]) for t in traits if t.names is None}
            kinds = {t.name: _counts(values["kinds"][t.name]) for t in traits if t.names is not None}
            views, pattern = _counts(values["views"]), _pattern(values["pattern"], volumes)
            acquired = (_counts(values.get(key, {})) for key in ("modalities", "body_parts"))
            return cls(traits, ranges, kinds, views, pattern, *acquired)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"what a checkpoint says of its training data cannot be read ({error!r})") from None

    def other_acquisition(self, attributes: Mapping[str, str], shown: bool = True) -> list[str]:
        """In words, whether a file with these attributes of DICOM is of a modality or body part that no training image
        was of; nothing where the one or the others do not say. shown: with what the file says.
        """
        found = []
        pairs = ((MODALITY, "modality", self.modalities), (BODY_PART, "body part", self.body_parts))
        for keyword, word, known in pairs:
            value = view_name(attributes.get(keyword, ""))
            if value and known and value not in known:
                named = f"{word} {value}" if shown else f"another {word}"
                found.append(f"{named} (training: {', '.join(sorted(known))})")
        return found

    def differences(self, traits: Traits, view: str = "", shown: bool = True) -> list[str]:
        """In words, how an image with these traits (see `measure`) and this view is unlike the training images. shown:
        with its view.
        """
        values = traits.figures.tolist()
        if len(self.pattern):
            values.append(likeness(traits.cells, self.pattern))
        found = [self._difference(trait, value) for trait, value in zip(self.traits, values, strict=True)]
        view = view_name(view)
        if view and self.views and view not in self.views:
            found.append(f"{f'view {view}' if shown else 'another view'} (training: {', '.join(sorted(self.views))})")
        return [text for text in found if text]

    def _difference(self, trait: Trait, value: float) -> str:
        if trait.names is not None:
            kind, known = trait.names.get(int(value), str(int(value))), self.kinds[trait.name]
            return "" if kind in known else f"{kind} (training: {', '.join(sorted(known))})"
        low, high = self.ranges[trait.name]
        least, most = trait.limits(low, high)
        if least <= value <= most:
            return ""
        span = " to ".join(dict.fromkeys(format(bound, trait.number) for bound in (low, high)))
        return f"{trait.words} {value:{trait.number}}{trait.unit} (training: {span})"


def _range(values: Iterable[float]) -> tuple[float, float]:
    low, high = (float(value) for value in values)
    if not np.isfinite([low, high]).all() or low > high:
        raise ValueError(f"{low} to {high}")
    return low, high


def _counts(values: Mapping[str, int]) -> dict[str, int]:
    return {str(name): int(count) for name, count in values.items()}


def _pattern(values: ArrayLike, volumes: bool) -> np.ndarray:
    pattern = np.array(values, np.float64)
    if pattern.shape != (0 if volumes else _CELLS**2,) or not np.isfinite(pattern).all():
        raise ValueError(f"pattern of shape {pattern.shape}")
    return pattern
