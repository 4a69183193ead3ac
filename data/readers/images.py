"""One image file to one array: PNG, JPEG and WebP here, others beside it; and the channel and intensity rules."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import DataError
from data.readers.dicom import DICOM_SUFFIXES, looks_like_dicom, read_dicom
from data.readers.naming import naming
from data.readers.orientation import orientation_of, swaps_sides, upright
from data.readers.png import PNG_MAGIC, check_png
from data.readers.regular_files import read_head
from data.readers.tiff import TIFF_MAGICS, over_black, read_tiff

DRAWN_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*DRAWN_SUFFIXES, *DICOM_SUFFIXES)

_JPEG_MAGIC = b"\xff\xd8\xff"
# ITU-R BT.601 luma in 1/65536, the weights Pillow uses; they sum to 65536, so equal channels stay exactly as they are.
_LUMA = np.array([19595, 38470, 7471], np.uint32)


def read_image(path: Path) -> np.ndarray:
    """Decode one PNG, JPEG, WebP, TIFF or DICOM file; its first bytes decide which, not its name.

    Returns [H, W] or [H, W, 3] (RGB): uint8 or uint16 as stored for PNG, JPEG, WebP and TIFF (palettes and CMYK as RGB,
    1-bit as 0/255, transparency laid over black; 32-bit TIFF as float32 in [0, 1], see read_tiff); float32 in [0, 1]
    for grey DICOM and uint8 RGB for colour DICOM (see read_dicom).
    The image is upright: the orientation that EXIF, XMP or TIFF's tag 274 states is applied, in all formats and on
    every path. So height and width, and pixels of boxes, are those of the image as it is seen; a mask is an image of
    its own and is turned as its own file says.

    Raises DataError, naming the file, for anything that prevents decoding: a missing or truncated file, a
    missing codec, more pixels than Pillow's decompression-bomb limit, several pages or frames, another format.
    """
    with naming("image", path):
        return _decode(path)


def read_reduced(path: Path, least: tuple[int, int]) -> np.ndarray | None:
    """A JPEG file decoded at the smallest of 1/2, 1/4 and 1/8 that leaves at least (height, width); else None.

    uint8, as `read_image` would give it at that scale; None for other formats and for images too small for 1/2.
    libjpeg leaves out the frequencies that the scale cannot show (a smaller inverse DCT), which halves the time. Where
    twice the size of a model's input is left, that hardly changes: by 0.15 grey levels of 255 on average and 18 at most
    (at burnt-in letters) for 60 of NIH's images at 1,024 px, quality 90, and an input of 224 px; a coarser scale would
    show. See docs/benchmarks/data.md.
    The limits and the upright orientation are those of the full image. Raises DataError as `read_image` does.
    """
    with naming("image", path):
        return _decode_reduced(path, least)


def to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """[H, W] or [H, W, 3] to [H, W, channels] in the same dtype: grey is repeated, RGB becomes BT.601 luma.

    A grey image that was stored as RGB comes back exactly. Raises ValueError unless channels is 1 or 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    if array.ndim == 2:
        return np.repeat(array[..., None], channels, axis=2)
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"an image is [H, W], [H, W, 1] or [H, W, 3], not {list(array.shape)}")
    if array.shape[2] == channels:
        return array
    return np.repeat(array, 3, axis=2) if channels == 3 else _luma(array)[..., None]


def scale_intensity(array: np.ndarray) -> np.ndarray:
    """The intensity rule: uint8 stays, float32 (already [0, 1]) stays, uint16 becomes float32 by its own min–max.

    16-bit files mostly hold 10 to 15 significant bits and do not say how many: dividing by 65535 would leave a
    12-bit image nearly black. An image of one value becomes zeros. Raises ValueError for any other dtype.
    """
    if array.dtype in (np.uint8, np.float32):
        return array
    if array.dtype != np.uint16:
        raise ValueError(f"an image is uint8, uint16 or float32, not {array.dtype}")
    low, high = int(array.min()), int(array.max())
    return (array.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1))


def to_uint8(array: np.ndarray) -> np.ndarray:
    """An image as people see it: uint8 of the same shape, by the intensity rule of `scale_intensity`."""
    unit = scale_intensity(array)
    return unit if unit.dtype == np.uint8 else np.rint(unit * 255).astype(np.uint8)


def _luma(array: np.ndarray) -> np.ndarray:
    """[H, W, 3] to [H, W], rounded for integers; 65535 * 65536 + 32768 still fits uint32."""
    if array.dtype.kind == "f":
        return (array @ (_LUMA / 65536.0)).astype(array.dtype)
    return ((array.astype(np.uint32) @ _LUMA + np.uint32(32768)) >> np.uint32(16)).astype(array.dtype)


def _decode(path: Path) -> np.ndarray:
    head = read_head(path)
    if not head:
        raise DataError("the file is empty")
    if head.startswith((PNG_MAGIC, _JPEG_MAGIC)) or _is_webp(head):
        return _read_pillow(path, head)
    if looks_like_dicom(head):  # before TIFF: a DICOM file's preamble may be a TIFF header (PS3.10 7.1)
        return read_dicom(path, Image.MAX_IMAGE_PIXELS)
    if head.startswith(TIFF_MAGICS):
        found = read_tiff(path)
        return found if isinstance(found, np.ndarray) else _pillow_array(found)
    if path.suffix.lower() in (*DICOM_SUFFIXES, ""):
        raise DataError("not DICOM: neither 'DICM' at byte 128 nor a data set at byte 0")
    raise DataError(f"neither PNG, JPEG, WebP, TIFF nor DICOM: it begins with {head[:8]!r}")


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _decode_reduced(path: Path, least: tuple[int, int]) -> np.ndarray | None:
    if not read_head(path).startswith(_JPEG_MAGIC):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("JPEG",)) as image:
            full, orientation = image.size, orientation_of(image)
            image.draft(None, least if swaps_sides(orientation) else least[::-1])
            return None if image.size == full else upright(_pillow_array(image), orientation)


def _read_pillow(path: Path, head: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.format == "PNG":
                check_png(path)
            elif image.format == "WEBP" and getattr(image, "n_frames", 1) > 1:
                raise DataError("it is an animation; save the image to use as a file of its own")
            image.load()
            array = _read_deep_colour(path) if _is_deep_colour(head) else _pillow_array(image)
            return upright(array, orientation_of(image))


def _pillow_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        array, clear = _sixteen_bits(np.asarray(image)), image.info.get("transparency")
        return array if clear is None else np.where(array == clear, np.uint16(0), array)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.array(image.convert("L" if grey else "RGB"))


def _sixteen_bits(array: np.ndarray) -> np.ndarray:
    if array.min() < 0 or array.max() > 65535:
        raise DataError(f"its values run from {array.min()} to {array.max()}; at most 16 bits are read")
    return array.astype(np.uint16)


def _is_deep_colour(head: bytes) -> bool:
    """PNG of 16 bits per channel with colour or alpha (IHDR: depth at byte 24, colour type at 25)."""
    return head.startswith(PNG_MAGIC) and len(head) > 25 and head[24] == 16 and head[25] in (2, 4, 6)


def _read_deep_colour(path: Path) -> np.ndarray:
    """uint16 RGB [H, W, 3]: Pillow would keep 8 of the 16 bits, OpenCV keeps all.

    Call it after Pillow has decoded the file without complaint: OpenCV hides truncation and has no size limit.
    """
    import cv2

    array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16 or array.ndim != 3:
        raise DataError("OpenCV cannot decode this 16-bit colour PNG")
    return over_black(array)
