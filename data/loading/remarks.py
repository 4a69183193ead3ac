"""Counted warnings: what readers remarked of a run's images, told once for all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data.readers.remarks import KINDS, Kind, Remark
from data.readers.tables import some

logger = logging.getLogger(__name__)

_DISPLAYED = 5
_WORDS: dict[Kind, str] = {
    "constant": "have one value everywhere: nothing can be seen on them",
    "clipped": "are black or white nearly everywhere as they are shown to the model: check the window they name, "
    "DATA.window, or how they were exported",
    "flat": "have nearly no contrast as they are shown to the model: single pixels of extreme values, such as burnt-in "
    "marks or padding, may stretch the range",
    "not_finite": "hold values that are NaN or infinite, taken as their smallest value",
    "orientation": "have an EXIF block that cannot be read: taken as upright, though it may say that they are not",
}


@dataclass
class ImageRemarks:
    """Remarks by kind and row of the dataset index; `tell` logs what is new, a line per kind."""

    found: dict[Kind, dict[int, tuple[str, Remark]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    _told: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, row: int, name: str, remarks: Iterable[Remark]) -> None:
        """Take what was remarked of an image; the first of a kind stays."""
        for remark in remarks:
            self.found[remark.kind].setdefault(row, (name, remark))

    def of(self, row: int) -> list[Remark]:
        """All of one image."""
        return [rows[row][1] for rows in self.found.values() if row in rows]

    def tell(self) -> None:
        """Log how many images there are of each kind, and the first names, unless that was said."""
        for kind, rows in self.found.items():
            new = list(rows.values())[self._told[kind] :]
            if new:
                again = f" more ({len(rows)} in all)" if self._told[kind] else ""
                named = some([f"{name} ({remark.detail})" for name, remark in new], _DISPLAYED)
                logger.warning("%d images%s %s: %s", len(new), again, _WORDS[kind], named)
                self._told[kind] = len(rows)


def as_json(found: ImageRemarks, rows: int) -> dict[str, list[list[str]]]:
    """For a cache's description: row → [kind, detail] of each of its remarks."""
    listed = {str(row): [list(remark) for remark in found.of(row)] for row in range(rows)}
    return {row: remarks for row, remarks in listed.items() if remarks}


def from_json(values: object, rows: int) -> Mapping[int, tuple[Remark, ...]]:
    """The inverse. Raises ValueError for anything else."""
    if not isinstance(values, dict):
        raise ValueError("remarks are no mapping")
    found: dict[int, tuple[Remark, ...]] = {}
    for row, remarks in values.items():
        if not str(row).isdecimal() or int(row) >= rows or not isinstance(remarks, list):
            raise ValueError(f"remarks of row {row!r}")
        for remark in remarks:
            if not isinstance(remark, list) or len(remark) != 2 or remark[0] not in KINDS or type(remark[1]) is not str:
                raise ValueError(f"no remark: {remark!r}")
        found[int(row)] = tuple(Remark(*remark) for remark in remarks)
    return found
