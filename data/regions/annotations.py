"""Annotated regions of a dataset index's images, from a table of boxes or from the sample data's masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.regions.boxes import Box, Boxes, find_boxes, read_boxes, read_mask, region_of_boxes
from data.study import DatasetIndex
from utils.text import told_apart


@dataclass(frozen=True)
class Regions:
    """Where findings are. boxes: the table they are in, or None where `masks` is the folder of masks.

    dataset_index: a row an image, which rows below are of: an image of a study has its own regions.
    """

    dataset_index: DatasetIndex
    boxes: Boxes | None
    masks: Path | None = None

    @property
    def kind(self) -> str:
        """'boxes' or 'masks'."""
        return "boxes" if self.boxes is not None else "masks"

    def classes(self, row: int) -> tuple[int, ...]:
        """The classes that have a region in an image: those of the table, or its labels where it has a mask."""
        study, names = self.dataset_index.studies[row], self.dataset_index.class_names
        if self.boxes is not None:
            found = set(self.boxes.findings(study.name))
            return tuple(k for k, name in enumerate(names) if name in found)
        return tuple(np.flatnonzero(study.labels == 1).tolist()) if self._mask_file(row).is_file() else ()

    def of(self, row: int, k: int, shape: Sequence[int]) -> tuple[np.ndarray, tuple[Box, ...]]:
        """(bool [H, W], the boxes that it is the union of, () of a mask) of class k in an image of (H, W).

        Raises DataError where the mask is of another size, or does not show the class.
        """
        name = self.dataset_index.class_names[k]
        if self.boxes is not None:
            boxes = self.boxes.of(self.dataset_index.studies[row].name, name, shape)
            return region_of_boxes(boxes, shape), boxes
        mask = read_mask(self._mask_file(row), name)
        if mask is None or mask.shape != tuple(shape):
            size = "×".join(map(str, shape))
            raise DataError(f"'{self._mask_file(row)}' does not show {name} in an image of {size} pixels")
        return mask, ()

    def _mask_file(self, row: int) -> Path:
        """The mask of a file's path below the folder of masks, or of as much of its end as there is one for.

        Raises DataError where that is the end of two images' paths.
        """
        assert self.masks is not None
        file = self.dataset_index.studies[row].file
        for end in _ends(file):
            path = self.masks / end
            if not path.is_file():
                continue
            if len(self._files_by_end[end]) > 1:
                one, other = self._files_by_end[end][:2]
                raise DataError(
                    f"the mask '{path}' may be of {told_apart(one, other)}: put it into a folder of that name"
                )
            return path
        return self.masks / file

    @cached_property
    def _files_by_end(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        for study in self.dataset_index.studies:
            for end in _ends(study.file):
                files.setdefault(end, []).append(study.file)
        return files


def _ends(file: str) -> list[str]:
    """'x/y/a.png' → ['x/y/a.png', 'y/a.png', 'a.png']."""
    parts = file.split("/")
    return ["/".join(parts[begin:]) for begin in range(len(parts))]


def open_regions(
    dataset_index: DatasetIndex, data_dir: Path, boxes: str | None = None, masks: str | None = None
) -> Regions | None:
    """The regions in a table `boxes`, a folder `masks`, or the table that lies beside the data; None where none does.

    They are of the rows of `dataset_index.image_index`. Raises DataError for a folder or table that is not there, for
    a name of the table that several images may be, a finding that is another spelling of a class, and as
    `read_boxes` does.
    """
    images = dataset_index.image_index
    if masks is not None:
        if not Path(masks).expanduser().is_dir():
            raise DataError(f"--masks: there is no folder '{masks}'")
        return Regions(images, None, Path(masks).expanduser())
    path = Path(boxes).expanduser() if boxes is not None else find_boxes(data_dir)
    if path is None:
        return None
    table = read_boxes(path)
    table.check_findings(dataset_index.class_names)
    table.check_images([study.name for study in images.studies])
    return Regions(images, table)
