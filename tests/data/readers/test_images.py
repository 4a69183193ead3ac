"""Readers against independent references: Pillow's own conversions, pydicom's apply_* functions, exact inverses."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import processing
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, SecondaryCaptureImageStorage

from configs.errors import DataError
from data.readers.dicom_values import window
from data.readers.images import read_image, scale_intensity, to_channels

ROOT = Path(__file__).resolve().parents[3]
DICOM = ROOT.parent / "shared" / "data" / "dicom"
needs_dicom = pytest.mark.skipif(not DICOM.is_dir(), reason="no ../shared/data/dicom here")
rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (13, 17), dtype=np.uint8)
COLOUR = rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)
DEEP = rng.integers(0, 65536, (13, 17), dtype=np.uint16)


def save_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", **attributes: object) -> Dataset:
    """A minimal Secondary Capture file; attributes override what it says."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return pydicom.dcmread(path)


def lut_item(table: np.ndarray, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(table), first, bits])
    item.add_new("LUTData", "US", table.tolist())
    return item


# ---- PNG and JPEG


@pytest.mark.parametrize("array", [GREY, COLOUR, DEEP], ids=["grey8", "rgb8", "grey16"])
def test_png_comes_back_exactly(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png")
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_sixteen_bit_colour_keeps_its_bits(tmp_path):
    deep = rng.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    got = read_image(tmp_path / "a.png")
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, deep)


def test_sixteen_bit_alpha_lies_over_black(tmp_path):
    deep = rng.integers(0, 65536, (9, 7, 4), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., [2, 1, 0, 3]])
    want = np.rint(deep[..., :3].astype(float) * deep[..., 3:] / 65535)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), want)


def test_jpeg_is_pillows(tmp_path):
    for array, name in ((GREY, "g.jpg"), (COLOUR, "c.jpeg")):
        Image.fromarray(array).save(tmp_path / name, quality=90)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.asarray(Image.open(tmp_path / name)))


def test_content_decides_not_the_name(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.dcm", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm"), GREY)
    save_dicom(tmp_path / "b.png", GREY)
    assert read_image(tmp_path / "b.png").dtype == np.float32


def test_palette_one_bit_and_cmyk(tmp_path):
    Image.fromarray(COLOUR).quantize(16).save(tmp_path / "p.png")
    want = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), want)
    Image.fromarray(GREY > 127).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_image(tmp_path / "1.png"), (GREY > 127) * np.uint8(255))
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "c.jpg")
    assert read_image(tmp_path / "c.jpg").shape == COLOUR.shape


def test_alpha_lies_over_black(tmp_path):
    opaque = np.dstack([GREY, np.full_like(GREY, 255)])
    Image.fromarray(opaque, "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), GREY)
    clear = np.dstack([COLOUR, np.zeros_like(GREY)])
    Image.fromarray(clear, "RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), np.zeros_like(COLOUR))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif, quality=95)
    stored = np.asarray(Image.open(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), np.rot90(stored, -1))


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb() -> bytes:
    """A small PNG that says it is 14,000 x 14,000 pixels."""
    header = struct.pack(">IIBBBBB", 14000, 14000, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 14001 * 100, 9)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", data) + _png_chunk(b"IEND", b"")


def _png_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def _jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.kron(GREY, np.ones((20, 20), np.uint8))).save(buffer, format="JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("empty.png", b"", "empty"),
        ("text.png", b"hello, I am no image", "neither PNG, JPEG, WebP, TIFF nor DICOM"),
        ("text.dcm", b"hello" * 100, "not DICOM"),
        ("noext", b"hello" * 100, "not DICOM"),
        ("cut.png", _png_bytes(GREY)[:150], "truncated|Truncated|broken"),
        ("cut16.png", _png_bytes(DEEP)[:150], "truncated|Truncated|broken"),
        ("cut.jpg", _jpeg_bytes()[:2000], "truncated"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "identify"),
        ("bomb.png", _bomb(), "DecompressionBomb"),
        ("gif.png", b"GIF89a" + b"\0" * 300, "neither PNG"),
    ],
)
def test_what_cannot_be_decoded_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        read_image(tmp_path / name)
    assert name in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot read image"):
        read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_is_only_ever_a_data_error(tmp_path):
    save_dicom(tmp_path / "a.dcm", DEEP, WindowCenter=30000, WindowWidth=5000)
    sources = {"a.png": _png_bytes(GREY), "a.jpg": _jpeg_bytes(), "a.dcm": (tmp_path / "a.dcm").read_bytes()}
    damage = np.random.default_rng(1)
    for name, content in sources.items():
        for _ in range(120):
            broken = bytearray(content)
            for position in damage.integers(0, len(broken), 8):
                broken[position] = damage.integers(0, 256)
            (tmp_path / name).write_bytes(bytes(broken[: damage.integers(1, len(broken) + 1)]))
            try:
                got = read_image(tmp_path / name)
            except DataError:
                continue
            assert got.dtype in (np.uint8, np.uint16, np.float32)


# ---- channels and intensity


def test_to_channels():
    for array in (GREY, DEEP, GREY.astype(np.float32) / 255):
        three = to_channels(array, 3)
        assert three.shape == (13, 17, 3) and three.dtype == array.dtype
        back = to_channels(three, 1)
        assert back.shape == (13, 17, 1) and back.dtype == array.dtype
        np.testing.assert_allclose(back[..., 0], array, rtol=3e-7 if array.dtype == np.float32 else 0)
        np.testing.assert_array_equal(to_channels(array, 1)[..., 0], array)
    np.testing.assert_array_equal(to_channels(COLOUR, 1)[..., 0], np.asarray(Image.fromarray(COLOUR).convert("L")))
    np.testing.assert_array_equal(to_channels(COLOUR, 3), COLOUR)
    white = np.full((2, 2, 3), 65535, np.uint16)
    assert (to_channels(white, 1) == 65535).all()
    for bad in (np.zeros((2, 2, 4)), np.zeros(3)):
        with pytest.raises(ValueError, match="an image is"):
            to_channels(bad, 3)
    with pytest.raises(ValueError, match="1 or 3"):
        to_channels(GREY, 2)


def test_scale_intensity():
    assert scale_intensity(GREY) is GREY
    unit = np.float32(GREY) / 255
    assert scale_intensity(unit) is unit
    twelve = rng.integers(100, 4096, (8, 8), dtype=np.uint16)
    got = scale_intensity(twelve)
    low, high = float(twelve.min()), float(twelve.max())
    np.testing.assert_allclose(got, (twelve.astype(float) - low) / (high - low), atol=1e-7)
    assert got.dtype == np.float32 and got.min() == 0 and got.max() == 1
    assert not scale_intensity(np.full((3, 3), 7, np.uint16)).any()
    with pytest.raises(ValueError, match="int64"):
        scale_intensity(np.zeros((2, 2), np.int64))


# ---- DICOM


def test_without_window_the_own_range_counts_and_monochrome1_is_the_inverse(tmp_path):
    save_dicom(tmp_path / "2.dcm", DEEP)
    save_dicom(tmp_path / "1.dcm", DEEP, "MONOCHROME1", PresentationLUTShape="INVERSE")
    two, one = read_image(tmp_path / "2.dcm"), read_image(tmp_path / "1.dcm")
    assert two.dtype == one.dtype == np.float32
    low, high = float(DEEP.min()), float(DEEP.max())
    np.testing.assert_allclose(two, (DEEP - low) / (high - low), atol=1e-7)
    np.testing.assert_array_equal(one, np.float32(1) - two)
    assert len(np.unique(two)) == len(np.unique(DEEP)), "16 bits must stay 16 bits"


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_rescale_and_window_agree_with_pydicom(tmp_path, function, signed):
    stored = rng.integers(-2000, 2000, (16, 16)).astype(np.int16) if signed else DEEP // 16
    dataset = save_dicom(
        tmp_path / "a.dcm",
        stored,
        RescaleSlope=1.5,
        RescaleIntercept=-1024,
        WindowCenter=[400, 40],
        WindowWidth=[1500, 80],
        VOILUTFunction=function,
    )
    reference = processing.apply_windowing(processing.apply_modality_lut(stored, dataset), dataset)
    low, high = (-(2**15), 2**15 - 1) if signed else (0, 2**16 - 1)
    bottom, top = low * 1.5 - 1024, high * 1.5 - 1024
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm"), (reference - bottom) / (top - bottom), atol=1e-6)


def test_luts_agree_with_pydicom(tmp_path):
    stored = rng.integers(0, 1024, (16, 16), dtype=np.uint16)
    modality = np.sort(rng.integers(0, 4096, 900))
    voi = np.sort(rng.integers(0, 1024, 3000))
    dataset = save_dicom(
        tmp_path / "a.dcm",
        stored,
        "MONOCHROME1",
        ModalityLUTSequence=[lut_item(modality, 50, 16)],
        VOILUTSequence=[lut_item(voi, 200, 10), lut_item(voi[::-1], 0, 10)],
        WindowCenter=1,
        WindowWidth=2,
    )
    dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
    reference = processing.apply_voi_lut(processing.apply_modality_lut(stored, dataset), dataset)
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm"), 1 - reference / 1023.0, atol=1e-6)


def test_voi_lut_with_negative_first_value(tmp_path):
    stored = rng.integers(-60, 60, (16, 16)).astype(np.int16)
    table = np.arange(0, 256, 2)
    save_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[lut_item(table, -50, 8)])
    slow = [[table[min(max(int(value) + 50, 0), 127)] / 255 for value in row] for row in stored]
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm"), slow, atol=1e-7)


def test_window_of_a_slow_loop():
    def linear(x: float, center: float, width: float) -> float:
        if x <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if x > center - 0.5 + (width - 1) / 2:
            return 1.0
        return (x - (center - 0.5)) / (width - 1) + 0.5

    values = np.linspace(-10, 10, 101)
    for center, width in ((0, 5), (2.5, 1), (-3, 12.25)):
        np.testing.assert_allclose(
            window(values, center, width), [linear(x, center, width) for x in values], atol=1e-12
        )
    for bad in ((0, 0.5, "LINEAR"), (0, 0, "LINEAR_EXACT"), (0, -1, "SIGMOID"), (0, 9, "CUBIC")):
        with pytest.raises(DataError, match=r"window width|VOI LUT function"):
            window(values, *bad)


def test_for_presentation_is_windowed_once_as_the_standard_asks(tmp_path):
    save_dicom(
        tmp_path / "a.dcm", DEEP, PresentationIntentType="FOR PRESENTATION", WindowCenter=32768, WindowWidth=65536
    )
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm"), DEEP / 65535.0, atol=1e-6)


def test_padding_is_left_out_and_black(tmp_path):
    stored = rng.integers(100, 1000, (16, 16)).astype(np.int16)
    stored[:4] = -2000
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        save_dicom(tmp_path / "a.dcm", stored, photometric, PixelPaddingValue=-2000)
        got = read_image(tmp_path / "a.dcm")
        assert not got[:4].any()
        assert got[4:].min() == 0 and got[4:].max() == 1


def test_one_value_only_and_empty_window(tmp_path):
    save_dicom(tmp_path / "a.dcm", np.full((4, 4), 9, np.uint16), WindowCenter=None, WindowWidth=None)
    assert not read_image(tmp_path / "a.dcm").any()


def test_colour_dicom(tmp_path):
    save_dicom(tmp_path / "rgb.dcm", COLOUR, "RGB")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.dcm"), COLOUR)
    ybr = processing.convert_color_space(COLOUR, "RGB", "YBR_FULL")
    save_dicom(tmp_path / "ybr.dcm", ybr, "YBR_FULL")
    got = read_image(tmp_path / "ybr.dcm")
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - COLOUR).max() <= 2


def test_palette_dicom(tmp_path):
    table = {
        f"{colour}PaletteColorLookupTable{kind}": value
        for colour, ramp in (("Red", range(256)), ("Green", range(255, -1, -1)), ("Blue", [7] * 256))
        for kind, value in (("Descriptor", [256, 0, 16]), ("Data", np.array(ramp, "<u2") * 257))
    }
    table = {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in table.items()}
    save_dicom(tmp_path / "p.dcm", GREY, "PALETTE COLOR", **table)
    want = np.dstack([GREY, 255 - GREY, np.full_like(GREY, 7)])
    np.testing.assert_array_equal(read_image(tmp_path / "p.dcm"), want)


def test_stripped_file_meta_is_read(tmp_path):
    """A data set from byte 0 on, in either encoding, is what is left when preamble and file meta are stripped."""
    dataset = save_dicom(tmp_path / "a.dcm", DEEP, WindowCenter=30000, WindowWidth=9000)
    whole = read_image(tmp_path / "a.dcm")
    for implicit in (True, False):
        for name in ("b.dcm", "b"):
            pydicom.dcmwrite(tmp_path / name, _bare(dataset), implicit_vr=implicit, little_endian=True)
            assert (tmp_path / name).read_bytes()[:2] == b"\x08\x00"
            np.testing.assert_array_equal(read_image(tmp_path / name), whole)


def _bare(dataset: Dataset) -> Dataset:
    bare = Dataset()
    for element in dataset:
        bare.add(element)
    return bare


@pytest.mark.parametrize(
    "change, says",
    [
        ({"NumberOfFrames": 3, "PixelData": DEEP.tobytes() * 3}, "3 frames"),
        ({"PixelData": DEEP.tobytes()[:-20]}, "less than expected"),
        ({"Rows": 60000, "Columns": 60000}, "exceed the limit"),
        ({"Rows": 0}, "no image"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "window width"),
        ({"PhotometricInterpretation": "HSV"}, "HSV"),
    ],
)
def test_dicom_that_is_not_one_image(tmp_path, change, says):
    save_dicom(tmp_path / "image.dcm", DEEP, **change)
    with pytest.raises(DataError, match=says) as error:
        read_image(tmp_path / "image.dcm")
    assert "image.dcm" in str(error.value)


def test_dicom_without_pixels(tmp_path):
    dataset = save_dicom(tmp_path / "image.dcm", DEEP)
    del dataset.PixelData
    dataset.save_as(tmp_path / "image.dcm")
    with pytest.raises(DataError, match="no pixel data"):
        read_image(tmp_path / "image.dcm")


def test_missing_codec_says_what_to_install(tmp_path, monkeypatch):
    dataset = save_dicom(tmp_path / "image.dcm", DEEP)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "image.dcm")
    decoder = pydicom.pixels.get_decoder(JPEGLosslessSV1)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(DataError, match="python-gdcm"):
        read_image(tmp_path / "image.dcm")


@needs_dicom
def test_the_image_and_its_monochrome1_twin_are_inverses():
    image = read_image(DICOM / "cxr_rsna_monochrome2.dcm")
    twin = read_image(DICOM / "cxr_fake_monochrome1.dcm")
    assert image.shape == (1024, 1024) and image.dtype == np.float32
    np.testing.assert_array_equal(twin, np.float32(1) - image)
    stored = pydicom.dcmread(DICOM / "cxr_rsna_monochrome2.dcm").pixel_array
    np.testing.assert_allclose(image, stored / 254.0, atol=1e-7)


@needs_dicom
def test_stored_files():
    mr = pydicom.dcmread(DICOM / "pydicom_MR_small.dcm")
    reference = processing.apply_voi_lut(mr.pixel_array, mr)
    got = read_image(DICOM / "pydicom_MR_small.dcm")
    np.testing.assert_allclose(got, (reference + 2**15) / (2**16 - 1), atol=1e-6)
    np.testing.assert_array_equal(got, read_image(DICOM / "pydicom_MR_small_RLE.dcm"))
    ct = pydicom.dcmread(DICOM / "pydicom_CT_small.dcm").pixel_array.astype(float)
    want = (ct - ct.min()) / (ct.max() - ct.min())
    np.testing.assert_allclose(read_image(DICOM / "pydicom_CT_small.dcm"), want, atol=1e-6)
    assert read_image(DICOM / "pydicom_JPEG2000.dcm").shape == (1024, 256)
    colour = read_image(DICOM / "pydicom_examples_rgb_color.dcm")
    np.testing.assert_array_equal(colour, pydicom.dcmread(DICOM / "pydicom_examples_rgb_color.dcm").pixel_array)


@needs_dicom
def test_stored_files_that_are_damaged():
    with pytest.raises(DataError, match=r"pydicom_MR_truncated\.dcm.*less than expected"):
        read_image(DICOM / "pydicom_MR_truncated.dcm")
    # one stray byte stands before its data set: where it begins would have to be guessed
    with pytest.raises(DataError, match=r"pydicom_no_meta\.dcm.*not DICOM"):
        read_image(DICOM / "pydicom_no_meta.dcm")


def test_pydicom_is_imported_only_for_dicom(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    code = (
        "import sys; from pathlib import Path; from data.readers.images import read_image; "
        f"read_image(Path({str(tmp_path / 'a.png')!r})); sys.exit('pydicom' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
