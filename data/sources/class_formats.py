"""Class folders that their files' format would give away: a network learns that first, and a conversion that lost a
class's images looks the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from configs.errors import DataError

# Ends of names → (format, how its values become grey levels): images for the screen are one kind, TIFF is scaled by its
# depth, and DICOM, whatever its name, shown by its window.
_FORMATS = {
    ".png": ("PNG", "screen"),
    ".jpg": ("JPEG", "screen"),
    ".jpeg": ("JPEG", "screen"),
    ".webp": ("WebP", "screen"),
    ".tif": ("TIFF", "TIFF"),
    ".tiff": ("TIFF", "TIFF"),
}


def check_formats(data_dir: Path, classes: Mapping[str, Sequence[str]], named: bool) -> list[str]:
    """Notes about classes of which every file, and none of another class, has some format.

    classes: name → its files. named: whether DATA.class_names says that these are the classes.
    Raises DataError where grey levels are made in another way too, unless `named`.
    """
    found = {name: {_format(file) for file in files} for name, files in classes.items()}
    notes = []
    for name, own in found.items():
        others = set().union(*(formats for other, formats in found.items() if other != name))
        if not own or not others or own & others:
            continue
        words, other_words = (" or ".join(sorted(form for form, _ in formats)) for formats in (own, others))
        told = (
            f"all {len(classes[name]):,} images of the class '{name}' are {words}, those of other classes {other_words}"
        )
        if not named and not {kind for _, kind in own} & {kind for _, kind in others}:
            raise DataError(
                f"'{data_dir}': {told}: the format alone would tell the class, or images were lost in a conversion. "
                f"Save all in one format; DATA.class_names=[{','.join(classes)}] trains all the same"
            )
        notes.append(f"{told}: the format may tell the class")
    return notes


def _format(file: str) -> tuple[str, str]:
    return _FORMATS.get(PurePath(file).suffix.lower(), ("DICOM", "DICOM"))
