"""Attributes of a DICOM data set, whatever their VR, and where those of one frame stand.

pydicom hands a value over as its VR says, or fails; the readers need a number, or one error that names the attribute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

RESCALE = ("RescaleSlope", "RescaleIntercept")
VOI = ("WindowCenter", "WindowWidth", "VOILUTSequence")


def is_little_endian(dataset: Dataset) -> bool:
    """The byte order of a file's data set, which its OW values and their LUTs have too (PS3.5 A.3)."""
    return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)


def first_number(dataset: Dataset, name: str) -> float | None:
    """The first value of an attribute as a finite number, None where it is absent or empty; else DataError."""
    found = values_of(dataset, name)
    if not found:
        return None
    number = _number(found[0], name)
    if not np.isfinite(number):
        raise DataError(f"{name} {found[0]} is no finite number")
    return number


def single_number(dataset: Dataset, name: str, little_endian: bool = True) -> float | None:
    """The only value of an attribute, NaN allowed, None where absent or empty; DataError for text or several.

    Bytes (VR UN or OW) are one 16-bit word.
    """
    found = values_of(dataset, name)
    if len(found) > 1:
        raise DataError(f"{name} has {len(found)} values where one is allowed")
    if not found:
        return None
    if isinstance(found[0], bytes) and len(found[0]) == 2:
        return float(int.from_bytes(found[0], "little" if little_endian else "big"))
    return _number(found[0], name)


def integer(dataset: Dataset, name: str, default: int) -> int:
    """An attribute as an integer, the default where it is absent or empty; DataError where it is none."""
    found = single_number(dataset, name)
    if found is None:
        return default
    if not np.isfinite(found) or found != int(found):
        raise DataError(f"{name} {found:g} is no integer")
    return int(found)


def words_of(dataset: Dataset, name: str, little_endian: bool) -> np.ndarray:
    """uint16 words of an attribute that is US, SS, OW, OB or UN; empty where it is absent.

    Entries of lookup tables are unsigned whatever the VR says (PS3.3 C.11.1.1.1), so SS is read as its 16 bits.
    """
    found = values_of(dataset, name)
    if len(found) == 1 and isinstance(found[0], bytes):
        data = found[0] + bytes(len(found[0]) % 2)
        order = "<u2" if little_endian or dataset[name].VR == "OB" else ">u2"  # OB has no byte order (PS3.5 6.2)
        return np.frombuffer(data, order).astype(np.uint16)
    try:
        return (np.array(found, np.int64) & 0xFFFF).astype(np.uint16)
    except (TypeError, ValueError, OverflowError) as reason:
        raise DataError(f"{name} holds no numbers") from reason


def values_of(dataset: Dataset, name: str) -> list[object]:
    """All values of an attribute; [] where it is absent or empty, DataError where pydicom cannot read it."""
    try:
        value: object = dataset.get(name)
    except Exception as reason:  # a DS of text, an element that is cut short, ...
        detail = " ".join(str(reason).split())
        raise DataError(f"{name} cannot be read: {detail}") from reason
    if value is None or value == b"" or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [one for one in value if one is not None and one != ""]
    return [value]


def _number(value: object, name: str) -> float:
    try:
        return float(value.decode() if isinstance(value, bytes) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, UnicodeDecodeError) as reason:
        raise DataError(f"{name} {str(value)[:40]!r} is no number") from reason


# ---- functional groups


def frame_groups(dataset: Dataset, frame: int) -> list[Dataset]:
    """The functional groups of a frame: its own, then the shared ones (PS3.3 C.7.6.16.1.1); [] in classic objects."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    return [*own[frame : frame + 1], *shared[:1]]


def group_with(dataset: Dataset, frame: int, sequence: str, names: Iterable[str]) -> Dataset:
    """The item of a frame's functional group that has one of the attributes, else the data set itself.

    So an Enhanced object (PS3.3 C.7.6.16.2.9, .10), be it of one frame or of many, and a classic one are read alike.
    """
    for groups in frame_groups(dataset, frame):
        items = groups.get(sequence)
        if items and any(_is_there(items[0], name) for name in names):
            return items[0]
    return dataset


def check_frame_groups(dataset: Dataset) -> None:
    """DataError where there are functional groups of more frames than pixels: whose they are is not known."""
    frames, described = integer(dataset, "NumberOfFrames", 1), dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(described) > max(frames, 1):
        raise DataError(
            f"PerFrameFunctionalGroupsSequence describes {len(described)} frames, NumberOfFrames is {frames}: "
            "which of them its pixels belong to is not known"
        )


def _is_there(item: Dataset, name: str) -> bool:
    return name in item and not item[name].is_empty
