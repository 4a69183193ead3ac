"""Images and volumes as they are read: which cannot be, which show nothing, which are unlike the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from configs.errors import DataError
from data.loading.loaders import EpochBatchSampler, ImageDataset, StudyLoader, UnreadableImages
from data.loading.remarks import ImageRemarks
from data.loading.worker_watch import WorkerFailures
from data.profile import IMAGE_TRAITS, VOLUME_TRAITS, Measurement, Trait, Traits, likeness, measure
from data.readers.contrast import judge
from data.readers.tables import some
from data.readers.volumes import FittedVolume, Volume
from data.study import DatasetIndex
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess
from utils.examination.findings import Finding, Severity, are, counted, have
from utils.progress import Progress

_BATCH = 8
_DISPLAYED = 5
# An image is unlike the others where its aspect or size is so many times theirs, as long as few of them are.
_ASPECT, _SIZE, _FEW = 1.5, 4.0, 0.1
# Robust deviations (1.4826 times the median distance from the median), and the least distance that counts, of [0, 1].
_DEVIATIONS, _LEAST_DISTANCE = 6.0, 0.25
_NEGATIVE, _ALIKE = -0.3, 0.5
# From so many images on there is a rule that others can be unlike.
_FEWEST = 8


@dataclass
class Scan:
    """rows: of the image index, that were decoded, of so many. names: of all. traits, unreadable: by row."""

    rows: list[int]
    of: int
    names: dict[int, str]
    traits: dict[int, Traits] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    remarks: ImageRemarks = field(default_factory=ImageRemarks)
    trouble: str = ""  # why the scan ended early


@dataclass(frozen=True)
class _Examined(Measurement):
    """Of images in full; what a run would remark of them, and of volumes what it would refuse, is noted on the way."""

    preprocess: Preprocess | VolumePreprocess

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> Traits:
        """See `measure`."""
        image = dataset_index.read(index)
        if isinstance(self.preprocess, VolumePreprocess):
            assert not isinstance(image, np.ndarray)
            self._fit(self.preprocess, image, dataset_index.studies[index].name)
        else:
            assert isinstance(image, np.ndarray)
            judge(image)
        return measure(image)

    @staticmethod
    def _fit(preprocess: VolumePreprocess, volume: Volume | FittedVolume, name: str) -> None:
        try:
            preprocess.fit(volume)
        except DataError as reason:
            raise DataError(f"cannot use volume '{name}': {reason}") from reason


class _Noted(UnreadableImages):
    """All of them, without an end."""

    def __init__(self) -> None:
        super().__init__(0)

    def add(self, index: int, reason: str) -> None:
        self.reasons.setdefault(index, reason)

    def end_epoch(self) -> None:
        pass


def sample_rows(count: int, most: int | None) -> np.ndarray:
    """All rows, or so many of them, the same ones each time. int64, in order."""
    if most is None or count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def scan_images(
    image_index: DatasetIndex,
    rows: np.ndarray,
    preprocess: Preprocess | VolumePreprocess,
    workers: int,
    timeout: float | None,
    style: str,
) -> Scan:
    """Decode images in full, by worker processes, so that a decoder that crashes ends the scan and not the program.

    preprocess: of the run. style: of the progress bar.
    """
    names = {row: study.name for row, study in enumerate(image_index.studies)}
    bad, scan = _Noted(), Scan(rows.tolist(), len(names), names)
    dataset = ImageDataset(image_index, _Examined(preprocess), 0)
    loader: StudyLoader[list[Traits]] = StudyLoader(
        dataset, EpochBatchSampler(rows, _BATCH, False, 0), bad, max(workers, 1), failures=WorkerFailures(3, timeout)
    )
    progress = Progress(len(rows), "reading images", style, max(len(rows) // 4, 1), unit="image")
    try:
        for number, read, traits in loader.epoch(0):
            scan.traits.update(zip(read.tolist(), traits or []))
            progress.advance(min(_BATCH, len(rows) - number * _BATCH))
    except DataError as error:
        scan.trouble = str(error)
    finally:
        progress.close()
    scan.unreadable, scan.remarks = bad.reasons, bad.remarks
    return scan


def scan_findings(scan: Scan, volumes: bool, allowed: int, shape: Sequence[int]) -> list[Finding]:
    """allowed: DATA.max_bad_images. shape: of the network's input."""
    found = [*_unreadable(scan, allowed)]
    traits = VOLUME_TRAITS if volumes else IMAGE_TRAITS
    if not scan.traits:
        return found
    rows = list(scan.traits)
    figures = np.stack([scan.traits[row].figures for row in rows]).astype(np.float64)
    columns = {trait.name: figures[:, at] for at, trait in enumerate(traits[: figures.shape[1]])}
    names = [scan.names[row] for row in rows]
    if volumes:
        found += _unlike_volumes(columns, names)
    else:
        found += [*_unlike_shapes(columns, names, shape), *_unlike_values(columns, names)]
        found += _negatives(np.stack([scan.traits[row].cells for row in rows]), names)
    return found


def describe_scan(scan: Scan, volumes: bool) -> list[str]:
    """'320 x 256 to 512 x 512 pixels; 8 bits 90, 16 bits 10; grey 100'."""
    if not scan.traits:
        return []
    traits = VOLUME_TRAITS if volumes else IMAGE_TRAITS
    figures = np.stack([one.figures for one in scan.traits.values()])
    parts = []
    for at, trait in enumerate(traits[: figures.shape[1]]):
        if trait.names is not None:
            kinds = Counter(trait.names.get(int(value), str(int(value))) for value in figures[:, at])
            parts.append(", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()))
        elif trait.name not in ("contrast",):
            parts.append(f"{trait.words} {_span(trait, figures[:, at])}")
    return ["; ".join(parts)]


def _span(trait: Trait, values: np.ndarray) -> str:
    ends = dict.fromkeys(format(float(end), trait.number) for end in (values.min(), values.max()))
    return f"{' to '.join(ends)}{trait.unit}"


def _unreadable(scan: Scan, allowed: int) -> Iterator[Finding]:
    if scan.trouble:
        yield Finding(
            "error", "images", f"reading had to be given up: {scan.trouble}", "take out the file that is named"
        )
    if not scan.unreadable:
        return
    severity: Severity = "error" if len(scan.unreadable) > allowed else "warning"
    listed = "\n           ".join(list(scan.unreadable.values())[:_DISPLAYED])
    more = len(scan.unreadable) - _DISPLAYED
    yield Finding(
        severity,
        "images",
        f"{len(scan.unreadable):,} of {counted(scan.of, 'image')} cannot be read, and DATA.max_bad_images "
        f"allows {allowed}:\n           {listed}{f' and {more:,} more' if more > 0 else ''}",
        "repair or remove them, or raise DATA.max_bad_images",
    )


def _few(wrong: np.ndarray) -> list[int]:
    """The places of what is unlike the rest, if it is a rest; [] where so many are that there is no rule."""
    places = np.flatnonzero(wrong).tolist()
    return places if 0 < len(places) <= max(_FEW * len(wrong), 1) and len(wrong) >= _FEWEST else []


def _ratio(values: np.ndarray, most: float) -> np.ndarray:
    """Which of them are more than so many times the median, or less than that part of it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(np.log(values / np.median(values))) > math.log(most)


def _unlike_shapes(columns: dict[str, np.ndarray], names: list[str], shape: Sequence[int]) -> Iterator[Finding]:
    height, width = columns["height"], columns["width"]

    def named(places: list[int]) -> str:
        return some([f"{names[at]} ({width[at]:.0f} x {height[at]:.0f})" for at in places], _DISPLAYED)

    usual = f"{np.median(width):.0f} x {np.median(height):.0f}"
    aspect = _few(_ratio(columns["aspect"], _ASPECT))
    if aspect:
        yield Finding(
            "warning",
            "images",
            f"{have(len(aspect), 'image')} another shape than most ({usual}): {named(aspect)}",
            "screenshots, other views or cropped images? Look at them; DATA.resize=letterbox keeps the aspect",
        )
    size = _few(_ratio(np.sqrt(height * width), _SIZE))
    if size:
        yield Finding(
            "warning",
            "images",
            f"{are(len(size), 'image')} of another size than most ({usual}): {named(size)}",
            "thumbnails or other sources? Look at them",
        )
    small = np.flatnonzero((height < shape[0] / 2) & (width < shape[1] / 2)).tolist()
    if small:
        yield Finding(
            "note",
            "images",
            f"{len(small):,} of {counted(len(names), 'image')} read: less than half as large as the network's input "
            f"({shape[1]} x {shape[0]}): {named(small)}",
            "a smaller DATA.image_size costs less and shows as much",
        )


def _unlike_values(columns: dict[str, np.ndarray], names: list[str]) -> Iterator[Finding]:
    for trait in (one for one in IMAGE_TRAITS if one.names is not None):
        kinds = columns[trait.name]
        usual = Counter(kinds.tolist()).most_common(1)[0][0]
        others = np.flatnonzero(kinds != usual).tolist()
        if others:
            assert trait.names is not None
            said = [f"{names[at]} ({trait.names.get(int(kinds[at]), kinds[at])})" for at in others]
            yield Finding(
                "note",
                "images",
                f"{len(others):,} of {counted(len(names), 'image')} read: not {trait.names.get(int(usual), usual)} as "
                f"most are: {some(said, _DISPLAYED)}",
                "images from two sources? A network may learn the source: see to it that both have all classes",
            )
    brightness = columns["brightness"]
    distance = np.abs(brightness - np.median(brightness))
    limit = max(_DEVIATIONS * 1.4826 * float(np.median(distance)), _LEAST_DISTANCE)
    unlike = _few(distance > limit)
    if unlike:
        said = [f"{names[at]} ({brightness[at]:.2f})" for at in unlike]
        yield Finding(
            "warning",
            "images",
            f"{are(len(unlike), 'image')} much brighter or darker than most (mean {np.median(brightness):.2f} "
            f"of 1): {some(said, _DISPLAYED)}",
            "an inverted image, a wrong window or another kind of image? Look at them",
        )


def _negatives(cells: np.ndarray, names: list[str]) -> Iterator[Finding]:
    """Images whose light and dark places are the others' dark and light ones."""
    middle = np.median(cells, axis=0)
    alike = np.array([likeness(one, middle) for one in cells])
    if np.median(alike) < _ALIKE:
        return
    unlike = _few(alike < _NEGATIVE)
    if unlike:
        said = [f"{names[at]} ({alike[at]:.2f})" for at in unlike]
        yield Finding(
            "warning",
            "images",
            f"{are(len(unlike), 'image')} bright where the others are dark (correlation with the median "
            f"image): {some(said, _DISPLAYED)}",
            "negatives (black on white for white on black), turned images, another part of the body? Look at them",
        )


def _unlike_volumes(columns: dict[str, np.ndarray], names: list[str]) -> Iterator[Finding]:
    for trait in VOLUME_TRAITS:
        values = columns[trait.name]
        if trait.ratio and (unlike := _few(_ratio(values, 2 * trait.ratio))):
            said = [f"{names[at]} ({values[at]:{trait.number}}{trait.unit})" for at in unlike]
            yield Finding(
                "warning",
                "images",
                f"{trait.words} of {counted(len(unlike), 'volume')} is unlike the others' "
                f"({np.median(values):{trait.number}}{trait.unit}): {some(said, _DISPLAYED)}",
                "a scout, another series or a wrong spacing? Look at them",
            )
    middle = columns["high"]
    wide = np.ptp(middle) > 0 and _few(_ratio(np.abs(middle) + 1, 5.0))
    if wide:
        said = [f"{names[at]} ({middle[at]:.4g})" for at in wide]
        yield Finding(
            "warning",
            "images",
            f"{have(len(wide), 'volume')} values of another range than most (99.5 percentile "
            f"{np.median(middle):.4g}): {some(said, _DISPLAYED)}",
            "another unit (HU or stored values), or another modality? With DATA.window all must be in one unit",
        )
