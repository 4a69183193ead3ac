"""Which way up an image is: the orientation that a file's EXIF block, XMP packet or TIFF tag 274 states."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import ExifTags, Image

from data.readers.remarks import remark

# Orientation → how the stored array becomes the upright one: rows and columns swapped first, then rows reversed, then
# columns reversed (Exif 3.0, 4.6.5.1.6; TIFF 6.0, tag 274: where the stored row 0 and column 0 belong).
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def orientation_of(image: Image.Image) -> int:
    """1 to 8 as stated by a loaded image; 1 where nothing is stated or what is means nothing.

    Looked for in EXIF (JPEG's APP1, PNG's eXIf chunk before or after the pixels, the 'Raw profile type exif' text of
    ImageMagick, WebP's EXIF chunk), then in XMP. Of TIFF it is 1: Pillow turns those while it loads them.
    An EXIF block that cannot be read is remarked, and the image taken as upright, as browsers and OpenCV do.
    """
    if image.format == "TIFF":
        return 1
    try:
        with warnings.catch_warnings(record=True) as damage:
            warnings.simplefilter("always")
            stated = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as reason:  # EXIF is a file format of its own: struct.error, SyntaxError, ValueError, …
        remark("orientation", f"{type(reason).__name__}: {reason}")
        return 1
    if stated is None and damage:
        remark("orientation", str(damage[0].message))
    return int(stated) if isinstance(stated, (int, float)) and stated in _TURNS else 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """The stored [H, W] or [H, W, C] as it is to be seen, contiguous; height and width change places for 5 to 8."""
    swapped, rows, columns = _TURNS[orientation]
    turned = array.swapaxes(0, 1) if swapped else array
    turned = turned[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(turned)


def swaps_sides(orientation: int) -> bool:
    """Whether the upright image has the stored one's width as its height."""
    return _TURNS[orientation][0]
