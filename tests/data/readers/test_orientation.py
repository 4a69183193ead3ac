"""The eight orientations of Exif 3.0 (4.6.5.1.6) and TIFF 6.0 (tag 274), in each format and on each path.

The oracle is what the standard says of the stored row 0 and column 0: where on the upright image they lie.
"""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from configs.errors import DataError
from data.profile import IMAGE_TRAITS, measure
from data.readers.images import read_image, read_reduced
from data.readers.orientation import upright
from data.readers.remarks import collecting
from data.readers.tiff import read_tiff

rng = np.random.default_rng(3)
GREY = rng.integers(0, 256, (10, 14), dtype=np.uint8)
COLOUR = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
DEEP, DEEP_COLOUR = GREY.astype(np.uint16) * 257, COLOUR.astype(np.uint16) * 257
ALL = range(1, 9)
# orientation → (side of the upright image where the stored row 0 lies, side where column 0 lies)
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def seen(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The upright image, pixel by pixel as the standard says."""
    rows_at, columns_at = SIDES[orientation]
    height, width = stored.shape[:2]
    size = (width, height) if rows_at in ("left", "right") else (height, width)
    out = np.empty((*size, *stored.shape[2:]), stored.dtype)
    for row in range(height):
        for column in range(width):
            place = {rows_at: row, columns_at: column}
            y = place["top"] if "top" in place else size[0] - 1 - place["bottom"]
            x = place["left"] if "left" in place else size[1] - 1 - place["right"]
            out[y, x] = stored[row, column]
    return out


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("stored", [GREY, COLOUR], ids=["grey", "colour"])
def test_arrays_are_turned_as_the_standard_says(stored, orientation):
    turned = upright(stored, orientation)
    np.testing.assert_array_equal(turned, seen(stored, orientation))
    assert turned.flags.c_contiguous


PNGS = {
    "grey": Image.fromarray(GREY),
    "rgb": Image.fromarray(COLOUR),
    "palette": Image.fromarray(COLOUR).quantize(16),
    "one bit": Image.fromarray(GREY > 127),
    "grey alpha": Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)]), "LA"),
    "16 bits": Image.fromarray(DEEP),
}


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("name", PNGS)
def test_png(tmp_path, name, orientation):
    PNGS[name].save(tmp_path / "plain.png")
    PNGS[name].save(tmp_path / "turned.png", exif=exif_of(orientation))
    stored, turned = read_image(tmp_path / "plain.png"), read_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(turned, seen(stored, orientation))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(path: Path, added: bytes, last: bool = False) -> None:
    """Insert a chunk behind IHDR, or before IEND."""
    content = path.read_bytes()
    at = len(content) - 12 if last else 33
    path.write_bytes(content[:at] + added + content[at:])


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("channels", [3, 4])
def test_png_of_deep_colour(tmp_path, channels, orientation):
    """OpenCV's path. eXIf holds what JPEG's APP1 holds behind 'Exif' and two zeros (PNG, third edition, 11.3.4.5)."""
    alpha = np.full((*GREY.shape, channels - 3), 65535, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([DEEP_COLOUR[..., ::-1], alpha]))
    with_chunk(tmp_path / "a.png", chunk(b"eXIf", exif_of(orientation).tobytes().removeprefix(b"Exif\0\0")))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), seen(DEEP_COLOUR, orientation))


@pytest.mark.parametrize("orientation", ALL)
def test_png_whose_exif_stands_elsewhere(tmp_path, orientation):
    """Behind the pixels, which the standard allows; in ImageMagick's text; in an XMP packet."""
    exif = exif_of(orientation).tobytes()
    profile = f"\nexif\n{len(exif):8d}\n{exif.hex()}\n".encode()
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    added = {
        "behind": (chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")), True),
        "zTXt": (chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)), False),
        "tEXt": (chunk(b"tEXt", b"Raw profile type exif\0" + profile), False),
        "XMP": (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), False),
    }
    for name, (content, last) in added.items():
        Image.fromarray(GREY).save(tmp_path / "a.png")
        with_chunk(tmp_path / "a.png", content, last)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), seen(GREY, orientation), name)


@pytest.mark.parametrize("orientation", ALL)
def test_jpeg_and_its_reduced_decoding(tmp_path, orientation):
    """Against Pillow's exif_transpose, an oracle for 8 bits."""
    large = cv2.resize(GREY, (140, 100), interpolation=cv2.INTER_CUBIC)
    for name, array in {"grey": large, "colour": np.dstack([large, large // 2, 255 - large])}.items():
        path = tmp_path / f"{name}.jpg"
        Image.fromarray(array).save(path, exif=exif_of(orientation), quality=95)
        want = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        np.testing.assert_array_equal(read_image(path), want)
        small = read_reduced(path, (min(want.shape[:2]) // 2, min(want.shape[:2]) // 2))
        assert small is not None and small.shape[:2] == (want.shape[0] // 2, want.shape[1] // 2)
        shrunk = cv2.resize(want, small.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - shrunk).mean() < 3


@pytest.mark.parametrize("orientation", ALL)
def test_webp(tmp_path, orientation):
    for array in (np.dstack([GREY] * 3), COLOUR):
        Image.fromarray(array).save(tmp_path / "a.webp", lossless=True, exif=exif_of(orientation))
        np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), seen(array, orientation))


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff(tmp_path, compression, orientation):
    """Uncompressed ones are what Pillow 13 scrambles when it opens them by name."""
    unit = (GREY.astype(np.float64) - GREY.min()) / (int(GREY.max()) - int(GREY.min()))
    floats = GREY.astype(np.float32) * 3 - 100
    for name, stored, shown in (
        ("grey", GREY, GREY),
        ("one bit", GREY > 127, (GREY > 127) * np.uint8(255)),
        ("colour", COLOUR, COLOUR),
        ("16 bits", DEEP, DEEP),
        ("32 bits", GREY.astype(np.int32) * 70000 - 9, unit),
        ("float", floats, unit),
    ):
        Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
        got = read_image(tmp_path / "a.tif")
        assert got.dtype == (np.float32 if shown is unit else shown.dtype), name
        np.testing.assert_allclose(got, seen(shown, orientation), atol=1e-7 if shown is unit else 0, err_msg=name)


def set_tag(path: Path, tag: int, value: int) -> None:
    """Set a tag of a little-endian TIFF: its directory is written anew at the end."""
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    entries = [bytes(content[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    entries = [entry for entry in entries if entry[:2] != struct.pack("<H", tag)]
    entries.append(struct.pack("<HHIHH", tag, 3, 1, value, 0))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    struct.pack_into("<I", content, 4, len(content))
    path.write_bytes(bytes(content) + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0))


@pytest.mark.parametrize("orientation", ALL)
def test_tiff_of_deep_colour(tmp_path, orientation):
    cv2.imwrite(str(tmp_path / "a.tif"), DEEP_COLOUR[..., ::-1])
    set_tag(tmp_path / "a.tif", 274, orientation)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), seen(DEEP_COLOUR, orientation))


@pytest.mark.parametrize("stated", [0, 9, 65535])
def test_numbers_that_mean_nothing_leave_the_image_as_it_is(tmp_path, stated):
    for name in ("a.png", "a.tif"):
        Image.fromarray(GREY).save(tmp_path / name, exif=exif_of(stated))
        np.testing.assert_array_equal(read_image(tmp_path / name), GREY)


def test_an_exif_block_that_cannot_be_read_is_remarked(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with_chunk(tmp_path / "a.png", chunk(b"eXIf", b"nonsense of some length"))
    with collecting() as remarks:
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), GREY)
    assert list(remarks) == ["orientation"] and "not a TIFF file" in remarks["orientation"].detail
    cut = exif_of(6).tobytes().removeprefix(b"Exif\0\0")[:-10]  # its directory counts more entries than it has
    Image.fromarray(GREY).save(tmp_path / "b.png")
    with_chunk(tmp_path / "b.png", chunk(b"eXIf", cut))
    with collecting() as remarks:
        read_image(tmp_path / "b.png")
    assert list(remarks) == ["orientation"]


def test_what_is_measured_of_an_image_is_of_the_upright_one(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif_of(6))
    figures = measure(read_image(tmp_path / "a.png")).figures
    sides = {trait.name: figures[i] for i, trait in enumerate(IMAGE_TRAITS) if trait.name in ("height", "width")}
    assert sides == {"height": 14, "width": 10}


# ---- TIFF beside its orientation


def test_white_is_zero_is_inverted(tmp_path):
    """TIFF 6.0, PhotometricInterpretation 0. Pillow inverts 8 bits, writing and reading, and no others."""
    Image.fromarray(GREY).save(tmp_path / "8.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_image(tmp_path / "8.tif"), GREY)
    Image.fromarray(DEEP).save(tmp_path / "16.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_image(tmp_path / "16.tif"), 65535 - DEEP)
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif", tiffinfo={262: 0})
    unit = read_image(tmp_path / "float.tif")
    assert unit[GREY.max() == GREY].max() == 0 and unit[GREY.min() == GREY].min() == 1


def test_values_that_are_no_numbers_become_the_smallest(tmp_path):
    values = GREY.astype(np.float32)
    values[0, 0], values[1, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    with collecting() as remarks:
        unit = read_image(tmp_path / "a.tif")
    assert np.isfinite(unit).all() and unit[0, 0] == unit[1, 1] == 0 and unit.max() == 1
    assert remarks["not_finite"].detail == "2 of 140 values"


def test_unsigned_32_bits_are_no_negative_numbers(tmp_path):
    """Pillow has signed ones alone, so that the upper half of the range would come out darkest."""
    values = np.array([[0, 1, 2**31, 2**32 - 1]], np.uint32)
    Image.fromarray(values.view(np.int32)).save(tmp_path / "a.tif")
    set_tag(tmp_path / "a.tif", 339, 1)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), [[0, 0, 0.5, 1]], atol=1e-6)


def test_pages_are_refused_and_thumbnails_are_not(tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(GREY[:5, :5])
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    with pytest.raises(DataError, match=r"two\.tif': it holds 2 pages"):
        read_image(tmp_path / "two.tif")
    second.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(tmp_path / "small.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "small.tif"), GREY)


def test_a_dicom_file_with_a_tiff_preamble_is_dicom(tmp_path):
    """PS3.10 7.1: the preamble may hold a TIFF header."""
    from tests.data.readers.test_images import save_dicom

    save_dicom(tmp_path / "a.dcm", GREY)
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(b"II*\0" + content[4:])
    assert read_image(tmp_path / "a.dcm").dtype == np.float32
    Image.fromarray(GREY).save(tmp_path / "b.tif")
    assert isinstance(read_tiff(tmp_path / "b.tif"), Image.Image)


def test_bombs_and_damage_are_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.tif", compression="tiff_lzw")
    whole = (tmp_path / "a.tif").read_bytes()
    set_tag(tmp_path / "a.tif", 256, 60000)
    set_tag(tmp_path / "a.tif", 257, 60000)
    Image.fromarray(COLOUR).save(tmp_path / "b.webp", lossless=True)
    (tmp_path / "b.webp").write_bytes((tmp_path / "b.webp").read_bytes()[:60])
    (tmp_path / "c.tif").write_bytes(whole[:30])
    Image.fromarray(COLOUR).save(tmp_path / "d.webp", save_all=True, append_images=[Image.fromarray(COLOUR // 2)])
    for name, says in (("a.tif", "DecompressionBomb"), ("b.webp", ""), ("c.tif", ""), ("d.webp", "an animation")):
        with pytest.raises(DataError, match=f"{name}': .*{says}"):
            read_image(tmp_path / name)
