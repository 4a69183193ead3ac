"""Annotated places: boxes of the sample data and of NIH, masks of the sample data."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from configs.errors import DataError
from data.labels import nearest
from data.phantom.radiographs import FINDINGS
from data.readers.images import read_image
from data.readers.tables import raise_problems, read_table, some
from utils.text import folded, told_apart

NIH_BOX_TABLES = ("BBox_List_2017.csv", "BBox_List_2017.csv.gz")
BOX_TABLES = ("boxes.csv", "boxes.csv.gz", *NIH_BOX_TABLES)
# NIH's boxes are in pixels of the images as they were published.
NIH_SIDE = 1024
# The one finding that NIH's box list calls otherwise than its label table.
_NIH_NAMES = {"Infiltrate": "Infiltration"}
# The header is 'Image Index,Finding Label,Bbox [x,y,w,h],,,': one name is torn over four columns, and the three columns
# that it leaves without a name do not exist in the rows.
_NIH_HEADER = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_COLUMNS = ("image", "finding", "x", "y", "w", "h")


class Box(NamedTuple):
    """x, y of the upper left corner, width and height, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Boxes:
    """Boxes by image and finding.

    by_image: the image's name in the table → finding → its boxes. side: height and width of the images that the boxes
    are in pixels of; None: of the images themselves.

    A name of the table is an image's where both are one, or where they differ in folders that one of them leaves out
    and in the suffix only: images are often kept in another format, and in a folder more.
    """

    path: Path
    by_image: Mapping[str, Mapping[str, tuple[Box, ...]]]
    side: int | None = None

    def of(self, image: str, finding: str, shape: Sequence[int]) -> tuple[Box, ...]:
        """The boxes of a finding in an image of (height, width), in its pixels; () where there is none."""
        boxes = self._findings(image).get(finding, ())
        if self.side is None:
            return boxes
        down, right = shape[0] / self.side, shape[1] / self.side
        return tuple(Box(b.x * right, b.y * down, b.width * right, b.height * down) for b in boxes)

    def findings(self, image: str) -> tuple[str, ...]:
        """The findings of an image that have a box."""
        return tuple(self._findings(image))

    def name_of(self, image: str) -> str | None:
        """The table's name of an image, None where it has none. Raises DataError where it may be either of two."""
        wanted = _plain(image)
        found = [name for name in self._by_stem.get(stem(wanted), ()) if _same_place(name, wanted)]
        exact = [name for name in found if name == wanted] or [
            name for name in found if _without_suffix(name) == _without_suffix(wanted)
        ]
        found = exact or found
        if len(found) > 1:
            raise DataError(
                f"'{self.path}' names {told_apart(*found[:2])}, and the image '{image}' may be either of them"
            )
        return found[0] if found else None

    def check_images(self, images: Sequence[str]) -> None:
        """DataError naming a name of the table that two images may be, and both."""
        owners: dict[str, str] = {}
        for image in images:
            name = self.name_of(image)
            if name is not None and owners.setdefault(name, image) != image:
                pair = told_apart(owners[name], image)
                raise DataError(f"'{self.path}' names '{name}', which may be {pair}: write the folder before it")

    def check_findings(self, class_names: Sequence[str]) -> None:
        """DataError for a finding that is another spelling of a class, whose boxes would belong to none."""
        for finding in {finding for boxes in self.by_image.values() for finding in boxes}.difference(class_names):
            alike = next((name for name in class_names if folded(name) == folded(finding)), None)
            if alike is not None:
                pair = told_apart(finding, alike)
                raise DataError(f"'{self.path}' has boxes of a finding and the model a class, {pair}: write both alike")

    def _findings(self, image: str) -> Mapping[str, tuple[Box, ...]]:
        name = self.name_of(image)
        return {} if name is None else self.by_image[name]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self.by_image:
            names.setdefault(stem(name), []).append(name)
        return names


def stem(image: str) -> str:
    """'images/00000001_000.png' → '00000001_000'."""
    return PurePosixPath(image).stem


def _plain(name: str) -> str:
    """With '/' and in one Unicode form, as a table from Windows or macOS may not have it."""
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).as_posix()


def _without_suffix(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _same_place(one: str, other: str) -> bool:
    """Whether the folders of the one end with those of the other."""
    first, second = (PurePosixPath(name).parent.parts for name in (one, other))
    shorter = min(len(first), len(second))
    return not shorter or first[-shorter:] == second[-shorter:]


def find_boxes(data_dir: Path) -> Path | None:
    """The table of boxes beside a data source's labels, None where there is none."""
    return next((data_dir / name for name in BOX_TABLES if (data_dir / name).is_file()), None)


def read_boxes(path: str | Path, class_names: Sequence[str] | None = None) -> Boxes:
    """A table of boxes: image, finding, x, y, w, h as the sample data have it, or NIH's BBox_List_2017.csv (.gz too).

    NIH's are recognised by their header; its boxes are scaled to the actual images when they are requested, and its
    'Infiltrate' is 'Infiltration'. class_names: the classes there are; a finding that is none of them is an error.
    Raises DataError naming the file, and the lines, for other columns, numbers that are none, boxes without an area.
    """
    path = Path(path).expanduser()
    table = read_table(path)
    nih = table.header[:3] == _NIH_HEADER[:3]
    columns = _NIH_HEADER if nih else _COLUMNS
    missing = [name for name in columns if name not in table.header]
    if missing:
        raise DataError(f"'{path}' has no column {some(missing)}: a table of boxes has {', '.join(_COLUMNS)}")
    rows = [_parse(line, [cells[table.header.index(name)] for name in columns]) for line, cells in table.rows]
    raise_problems(path, [row for row in rows if isinstance(row, str)])
    found, names = [row for row in rows if not isinstance(row, str)], _NIH_NAMES if nih else {}
    parsed = [(image, names.get(finding, finding), box) for image, finding, box in found]
    _check_findings(path, {finding for _, finding, _ in parsed}, class_names)
    return Boxes(path, _by_image(parsed), NIH_SIDE if nih else None)


_Row = tuple[str, str, Box]


def _parse(line: int, cells: Sequence[str]) -> _Row | str:
    """(image, finding, box), or what is wrong with the line."""
    image, finding, *texts = cells
    try:
        box = Box(*map(float, texts))
    except ValueError:
        return f"line {line}: {', '.join(texts)} are not four numbers"
    if not all(map(math.isfinite, box)) or min(box.width, box.height) <= 0 or min(box.x, box.y) < 0:
        return f"line {line}: x and y must be 0 or more, w and h above 0, they are {', '.join(texts)}"
    if not image or not finding:
        return f"line {line}: no {'finding' if image else 'image'} is named"
    return image, finding, box


def _by_image(rows: Sequence[_Row]) -> dict[str, dict[str, tuple[Box, ...]]]:
    found: dict[str, dict[str, tuple[Box, ...]]] = {}
    for image, finding, box in rows:
        boxes = found.setdefault(_plain(image), {})
        boxes[finding] = (*boxes.get(finding, ()), box)
    return found


def _check_findings(path: Path, findings: set[str], class_names: Sequence[str] | None) -> None:
    unknown = sorted(findings - set(class_names)) if class_names is not None else []
    if unknown and class_names is not None:
        hint = nearest(unknown[0], class_names)
        raise DataError(f"'{path}' has boxes of {some(unknown)}, which the model has no class for{hint}")


def region_of_boxes(boxes: Sequence[Sequence[float]], shape: Sequence[int]) -> np.ndarray:
    """bool [H, W]: pixels whose centre lies in a box; of a box between pixel centres the one it lies on."""
    region = np.zeros(tuple(shape), bool)
    for x, y, width, height in boxes:
        rows, columns = _span(y, height, shape[0]), _span(x, width, shape[1])
        region[rows, columns] = True
    return region


def _span(start: float, length: float, limit: int) -> slice:
    first = min(max(math.ceil(start - 0.5), 0), limit - 1)
    return slice(first, min(max(math.ceil(start + length - 0.5), first + 1), limit))


def read_mask(path: Path, finding: str) -> np.ndarray | None:
    """bool [H, W] from an image of the sample data's masks/, None where the finding is not in it.

    Bit k of a pixel is set where finding k of data.phantom.radiographs.FINDINGS lies. Raises DataError for other
    images.
    """
    bits = read_image(path)
    if bits.ndim != 2 or bits.dtype != np.uint16:
        raise DataError(
            f"'{path}' is not a mask of the sample data: it is {bits.dtype} {list(bits.shape)}, not 16-bit grey"
        )
    if finding not in FINDINGS:
        raise DataError(f"the sample data's masks have no finding {finding!r}: there are {', '.join(FINDINGS)}")
    mask = (bits >> FINDINGS.index(finding) & 1).astype(bool)
    return mask if mask.any() else None
