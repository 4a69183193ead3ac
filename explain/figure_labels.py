"""Texts of the figures of columns and views: one line of limited width, whatever people call their columns."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

from utils.fonts import display_names, drawable

# Of a name, of the number that tells it from one that looks alike, and of a value beside it: columns of a Latin letter.
NAME_WIDTH, NUMBER_WIDTH, VALUE_WIDTH = 28, 4, 18
# Of a name within a file's, which holds three at most, and 255 bytes.
MAX_BYTES = 60


def row_names(names: Sequence[str]) -> list[str]:
    """Names as rows of a figure have them; no two look alike."""
    return [fit(name, NAME_WIDTH + NUMBER_WIDTH) for name in display_names(names, NAME_WIDTH)]


def row_label(name: str, cell: str) -> str:
    """Name and value on a line, or on two, so that a long name leaves the value in sight. cell: '' where missing."""
    value = f"= {fit(drawable(cell), VALUE_WIDTH)}" if cell else "(missing)"
    return f"{name}{' ' if width(name) + width(value) < NAME_WIDTH + VALUE_WIDTH else chr(10)}{value}"


def class_title(class_name: str) -> str:
    """A class name in a title, with room for figures beside it."""
    return fit(drawable(class_name), 48)


def figure_title(text: str) -> str:
    """A line of a title."""
    return fit(drawable(text), 92)


def signed(value: float) -> str:
    """Two digits behind the point, or the first one that is not 0."""
    if not value:
        return "0"
    return (f"{value:+.2f}" if abs(value) >= 0.01 else f"{value:+.1g}").replace("-", "−", 1)


def fit(text: str, columns: int) -> str:
    """The text, cut where it is wider; Chinese letters are as wide as two others."""
    if width(text) <= columns:
        return text
    while width(text) > columns - 1:
        text = text[:-1]
    return f"{text.rstrip()}…"


def width(text: str) -> int:
    """In columns of a Latin letter."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def file_stem(*names: str) -> str:
    """A file's name for names of any letters; different ones for different names."""
    parts = [
        re.sub(r"[^\w.-]+", "_", name).encode(errors="replace")[:MAX_BYTES].decode(errors="ignore") for name in names
    ]
    return f"{'_'.join(parts)}_{zlib.crc32(chr(0).join(names).encode(errors='surrogateescape')):08x}"


def image_stem(class_name: str, image: str) -> str:
    """Of the overlay of an image that stands alone."""
    return f"{class_name.replace('/', '_')}_{Path(image).stem}_{zlib.crc32(image.encode()):08x}"
