"""Regions that attention is taught with and measured against: boxes, or masks that are files, by rows of images."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from configs.errors import DataError
from data.labels import nearest
from data.readers.images import read_image
from data.readers.tables import some
from data.regions.boxes import Boxes, read_boxes, region_of_boxes
from data.sources.image_files import ImageFiles
from data.study import DatasetIndex
from data.transforms.guided import Region
from utils.guidance import ANY_CLASS
from utils.text import told_apart

logger = logging.getLogger(__name__)

_ENDINGS = ("_mask", "_segmentation")  # of a mask's name behind the image's
_UPRIGHT = (None, 0, 1, 2, 3, 4)  # EXIF orientations that leave width and height
_EXIF_ORIENTATION = 274
# A mask that was scaled apart from its image may be off by a rounded pixel at either side.
_ROUNDING = 1.5


@dataclass(frozen=True)
class BoxRegions:
    """A RegionReader of boxes. names: of the images, by row; shapes: (height, width) of those that have boxes."""

    boxes: Boxes
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    shapes: Mapping[int, tuple[int, int]]
    together: bool = False

    def rows(self) -> Sequence[int]:
        """The images that have regions."""
        return tuple(self.shapes)

    def united(self) -> BoxRegions:
        """One region an image, of the boxes of all classes."""
        return replace(self, together=True)

    def of(self, row: int) -> Sequence[Region]:
        """A region a class that is in the table; together: one, whatever the class."""
        if row not in self.shapes:
            return ()
        name, shape = self.names[row], self.shapes[row]
        found = self.boxes.findings(name)
        regions = [
            Region(k, region_of_boxes(self.boxes.of(name, finding, shape), shape))
            for k, finding in enumerate(self.class_names)
            if finding in found
        ]
        if not self.together or not regions:
            return regions
        return [Region(ANY_CLASS, np.logical_or.reduce([region.pixels for region in regions]))]


@dataclass(frozen=True)
class MaskRegions:
    """A RegionReader of masks, one an image: the region of whatever it shows. files: by row."""

    files: Mapping[int, Path]

    def rows(self) -> Sequence[int]:
        """The images that have a mask, which may be black."""
        return tuple(self.files)

    def united(self) -> MaskRegions:
        """One region an image, as they are."""
        return self

    def of(self, row: int) -> Sequence[Region]:
        """The mask; () where there is none, or nothing in it."""
        if row not in self.files:
            return ()
        pixels = read_region(self.files[row])
        return [Region(ANY_CLASS, pixels)] if pixels.any() else ()


TaughtRegions = BoxRegions | MaskRegions


def read_region(path: Path) -> np.ndarray:
    """bool [H, W] of a black and white image: of two values the higher one, black alone is empty.

    Shades beside black and white are compression's. Raises DataError for an image that is neither.
    """
    image = read_image(path)
    grey = image.max(axis=2) if image.ndim == 3 else image
    values = np.unique(grey)
    if len(values) == 1:
        return np.full(grey.shape, bool(values[0] > 0))
    if len(values) == 2 and (values[0] == 0 or values[1] >= _full(grey) / 2):
        return np.asarray(grey == values[1])
    full = _full(grey)
    between = float(((grey > 0.2 * full) & (grey < 0.8 * full)).mean())
    if between > 0.02 or grey.max() < 0.8 * full:
        raise DataError(
            f"'{path}' is no black and white mask: it has {len(values)} values from {values[0]:g} to {values[-1]:g}. "
            "A mask has two, of which the higher one is the region"
        )
    return np.asarray(grey >= full / 2)


def _full(grey: np.ndarray) -> float:
    return float(np.iinfo(grey.dtype).max) if grey.dtype.kind == "u" else 1.0


def open_taught_regions(
    dataset_index: DatasetIndex,
    folder: Path,
    boxes: str | None,
    masks: str | None,
) -> TaughtRegions | None:
    """The regions that LOSS.attention.boxes or masks name, for `dataset_index.image_index`; None where neither does.

    folder: DATA.data_dir. Says how many images have one.
    Raises DataError where there is no such table, column or folder, where no image has a region, for a mask of another
    shape than its image, and as `read_boxes` does.
    """
    index = dataset_index.image_index
    if boxes is not None:
        found: TaughtRegions = _boxes(index, dataset_index.class_names, _place(folder, boxes))
        what = f"boxes of a class in LOSS.attention.boxes '{boxes}'"
    elif masks is not None:
        found = _masks(index, folder, masks)
        what = f"a mask of LOSS.attention.masks '{masks}'"
    else:
        return None
    count = len(found.rows())
    if not count:
        first = ", ".join(study.name for study in index.studies[:3])
        raise DataError(f"no image has {what}: the images are called {first}, …")
    logger.info("%d of %d images have %s", count, len(index.studies), what)
    return found


def _place(folder: Path, name: str) -> Path:
    """In the data's folder, where it is there, else as it is written."""
    inside = (folder if folder.is_dir() else folder.parent) / name
    return inside if inside.exists() else Path(name).expanduser()


def _boxes(index: DatasetIndex, class_names: Sequence[str], path: Path) -> BoxRegions:
    table = read_boxes(path)
    table.check_findings(class_names)
    names = tuple(study.name for study in index.studies)
    table.check_images(names)
    known = set(class_names)
    rows = [row for row, name in enumerate(names) if known & set(table.findings(name))]
    shapes = {row: _shape(index, row) for row in rows}
    known_shapes = {row: shape for row, shape in shapes.items() if shape is not None}
    return BoxRegions(table, tuple(class_names), names, known_shapes)


def _masks(index: DatasetIndex, folder: Path, masks: str) -> MaskRegions:
    columns = {column for study in index.studies for column in study.table}
    place = _place(folder, masks)
    if masks in columns:
        files = _of_column(index, folder, masks)
    elif place.is_dir():
        files = _of_folder(index, place)
    else:
        hint = nearest(masks, sorted(columns)) if columns else ""
        raise DataError(
            f"LOSS.attention.masks '{masks}' is neither a column of the labels table ({some(sorted(columns))})"
            f" nor a folder in '{folder}'{hint}"
        )
    for row, path in files.items():
        _check_shape(index, row, path)
    return MaskRegions(files)


def _of_column(index: DatasetIndex, folder: Path, column: str) -> dict[int, Path]:
    root = folder if folder.is_dir() else folder.parent
    files, found, missing = ImageFiles(root), {}, []
    for row, study in enumerate(index.studies):
        name = study.table.get(column, "").strip()
        if not name:
            continue
        try:
            file = files.find(name)
        except ValueError as error:
            raise DataError(f"LOSS.attention.masks: '{name}' in column '{column}': {error}") from None
        if file is None:
            missing.append(name)
        else:
            found[row] = root / file
    if missing:
        raise DataError(
            f"LOSS.attention.masks: column '{column}' names files that are not in '{root}': {some(missing)}"
        )
    return found


def _of_folder(index: DatasetIndex, folder: Path) -> dict[int, Path]:
    """Masks by the names of the images, suffixes and outer folders left out where they differ."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            by_stem[_stem(path.name)].append(path)
    found, owners = {}, dict[Path, str]()
    for row, study in enumerate(index.studies):
        file = PurePosixPath(study.file)
        candidates = by_stem.get(file.stem, [])
        outer = file.parent.parts
        # Of several the ones in folders of the same names, as many of them as can be.
        best = max((_shared(path.relative_to(folder).parent.parts, outer) for path in candidates), default=0)
        fitting = [p for p in candidates if _shared(p.relative_to(folder).parent.parts, outer) == best]
        if len(fitting) > 1:
            pair = told_apart(str(fitting[0]), str(fitting[1]))
            raise DataError(f"LOSS.attention.masks: the mask of '{study.name}' may be {pair}: leave one")
        for path in fitting:
            if path in owners:
                pair = told_apart(owners[path], study.name)
                raise DataError(
                    f"LOSS.attention.masks: '{path}' may be the mask of {pair}: put masks into their folders"
                )
            owners[path] = study.name
            found[row] = path
    return found


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many folders from the file outwards are called alike."""
    count = 0
    for first, second in zip(reversed(one), reversed(other)):
        if first != second:
            break
        count += 1
    return count


def _stem(name: str) -> str:
    stem = PurePosixPath(name).stem
    return next((stem.removesuffix(end) for end in _ENDINGS if stem.endswith(end)), stem)


def _check_shape(index: DatasetIndex, row: int, path: Path) -> None:
    """A mask may be smaller than its image, but of its proportions."""
    mask, image = _header_shape(path), _quick_shape(index, row)
    if mask is not None and image is not None and _alike(mask, image):
        return
    pixels, whole = read_region(path).shape, _read_shape(index, row)
    if whole is not None and not _alike((pixels[0], pixels[1]), whole):
        sizes = " and ".join(f"{height} × {width}" for height, width in (pixels, whole))
        raise DataError(
            f"the mask '{path}' and its image '{index.studies[row].name}' are {sizes} pixels: they must be of the same "
            "proportions"
        )


def _alike(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    scale = max(mask) / max(image)
    return all(abs(one - other * scale) <= _ROUNDING * max(scale, 1.0) for one, other in zip(mask, image))


def _shape(index: DatasetIndex, row: int) -> tuple[int, int] | None:
    return _quick_shape(index, row) or _read_shape(index, row)


def _read_shape(index: DatasetIndex, row: int) -> tuple[int, int] | None:
    """None where the image cannot be read, which the loader will say."""
    try:
        pixels = index.read(row)
    except DataError:
        return None
    assert isinstance(pixels, np.ndarray), "regions are of images"
    return int(pixels.shape[0]), int(pixels.shape[1])


def _quick_shape(index: DatasetIndex, row: int) -> tuple[int, int] | None:
    files = index.files(row)
    return _header_shape(files[0]) if len(files) == 1 else None


def _header_shape(path: Path) -> tuple[int, int] | None:
    """(height, width) that a file's header states of an upright image; None where the image must be read to know."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                upright = image.getexif().get(_EXIF_ORIENTATION) in _UPRIGHT
                return (image.height, image.width) if upright else None
    except Exception:  # a file that cannot be opened is told of by what reads it
        return None
