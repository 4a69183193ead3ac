"""Hundreds of DICOM files made from rules, against arithmetic by the standard's formulas, pydicom and gdcm."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.pixels import processing

from configs.errors import DataError
from data.readers.dicom import read_dicom
from data.readers.dicom_codestream import check_jpeg_headers
from data.readers.dicom_values import check_rendering, clipped_fraction
from data.readers.images import read_image
from data.readers.remarks import collecting
from data.sources.volume_files import read_volume
from tests.data.readers import dicom_cases, dicom_frame_cases, dicom_table_cases

CASES = [
    *dicom_cases.grey(),
    *dicom_cases.unused_bits(),
    *dicom_cases.floats(),
    *dicom_cases.padding(),
    *dicom_table_cases.tables(),
    *dicom_table_cases.disagreeing_tables(),
    *dicom_table_cases.palettes(),
    *dicom_table_cases.colours(),
    *dicom_frame_cases.attributes(),
    *dicom_frame_cases.groups(),
]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(folder: Path, case: dicom_cases.Case):
    content, right = case.make()
    path = folder / "image.dcm"
    path.write_bytes(content)
    if isinstance(right, str):
        with pytest.raises(DataError, match=right) as error:
            read_image(path)
        assert "image.dcm" in str(error.value) and "\n" not in str(error.value)
        return
    got = read_image(path)
    assert got.dtype == (np.uint8 if right.ndim == 3 else np.float32)
    np.testing.assert_allclose(got, right, rtol=0, atol=case.tolerance)


VOLUMES = dicom_frame_cases.stored_volumes()


@pytest.mark.parametrize("layout", ["classic series", "Enhanced series", "shared groups", "groups of each frame"])
@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_have_the_same_units(tmp_path: Path, name: str, layout: str):
    words, stored, said, units = VOLUMES[name]
    if layout.endswith("series"):
        for number, content in enumerate(dicom_frame_cases.series_files(words, stored, said, layout[0] == "E")):
            (tmp_path / f"{number}.dcm").write_bytes(content)
        path = tmp_path
    else:
        path = tmp_path / "a.dcm"
        path.write_bytes(dicom_frame_cases.multiframe_file(words, stored, said, layout.startswith("groups")))
    np.testing.assert_array_equal(read_volume(path).voxels, units.astype(np.float32))


# ---- second opinions


def _as_dataset(content: bytes) -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(content))


def test_there_are_enough_of_them():
    names = [case.name for case in CASES]
    assert len(names) >= 300 and len(set(names)) == len(names)


@pytest.mark.parametrize("kind", ["Mod", "VOI"])
def test_tables_agree_with_pydicom_where_it_reads_them(folder: Path, kind: str):
    """pydicom 3.0 reads words of 8 and 16 bits in Modality LUTs (10 to 16 in VOI LUTs), and no packed ones."""
    compared = 0
    for case in dicom_table_cases.tables():
        readable = kind in case.name and ("16 bits" in case.name or (kind == "VOI" and " 8 bits" not in case.name))
        if not readable or "SS of 16 bits" in case.name:
            continue
        content, _ = case.make()
        dataset = _as_dataset(content)
        stored = dataset.pixel_array.astype(np.int32)  # pydicom's index has the type of the pixels, and overflows
        if kind == "Mod":
            right = dicom_cases.stretched(processing.apply_modality_lut(stored, dataset))
        else:
            right = processing.apply_voi_lut(stored, dataset) / (2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
        (folder / "table.dcm").write_bytes(content)
        np.testing.assert_allclose(read_image(folder / "table.dcm"), right, atol=1e-6, err_msg=case.name)
        compared += 1
    assert compared > 10


def test_palettes_agree_with_pydicom_where_it_reads_them(folder: Path):
    for case in dicom_table_cases.palettes():
        if not case.name.startswith("palette 16 bits explicit") and "explicit, offsets in entries" not in case.name:
            continue
        content, _ = case.make()
        dataset = _as_dataset(content)
        colours = processing.apply_color_lut(dataset.pixel_array.astype(np.int32), dataset)
        (folder / "palette.dcm").write_bytes(content)
        got = read_image(folder / "palette.dcm")
        np.testing.assert_array_equal(got, colours >> (8 * colours.dtype.itemsize - 8), err_msg=case.name)


def test_grey_values_agree_with_gdcm(folder: Path):
    """What gdcm hands over of native files whose words hold nothing but the pixel."""
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm does not install here")
    for case in dicom_cases.grey():
        if "stretched" not in case.name or case.name.startswith("32") or "rle" in case.name or "deflated" in case.name:
            continue
        content, _ = case.make()
        (folder / "grey.dcm").write_bytes(content)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(folder / "grey.dcm"))
        assert reader.Read()
        buffer = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
        dataset = _as_dataset(content)
        kind = f"{'ui'[dataset.PixelRepresentation]}{dataset.BitsAllocated // 8}"
        right = dicom_cases.stretched(np.frombuffer(buffer, kind).reshape(dataset.Rows, dataset.Columns))
        right = 1 - right if dataset.PhotometricInterpretation == "MONOCHROME1" else right
        np.testing.assert_allclose(read_image(folder / "grey.dcm"), right, atol=1e-6, err_msg=case.name)


@pytest.mark.parametrize("where", ["overlay above", "shifted up", "shifted up over an overlay"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("codec", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_unused_bits_of_what_gdcm_compressed(folder: Path, codec: str, signed: bool, where: str):
    """16-bit samples of which 12 are the pixel: the codec carries all of them."""
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm does not install here")
    pixels = dicom_cases.ramp(12, signed)
    words, top = dicom_cases.placed(pixels, 12, where)
    (folder / "native.dcm").write_bytes(dicom_cases.written(dicom_cases.dataset_of(words, 16)))
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(folder / "native.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, codec)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    fragment = change.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0)
    codestream = fragment.GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")
    syntax = {"JPEGLosslessProcess14_1": "JPEGLosslessSV1"}.get(codec, codec)
    dataset = dicom_cases.encapsulated(dicom_cases.dataset_of(words, 12, HighBit=top), getattr(uid, syntax), codestream)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    (folder / "packed.dcm").write_bytes(buffer.getvalue())
    np.testing.assert_allclose(read_image(folder / "packed.dcm"), dicom_cases.stretched(pixels), atol=1e-6)


# ---- the guard


def test_check_rendering_and_clipped_fraction():
    stored = dicom_cases.ramp(12)
    everywhere = np.ones(stored.shape, bool)
    shown = dicom_cases.stretched(stored).astype(np.float32)
    assert check_rendering(stored, shown, everywhere) is None
    assert "run from 0 to 4095, and as an image all are 1" in (check_rendering(stored, shown * 0 + 1, everywhere) or "")
    assert check_rendering(stored * 0, shown * 0, everywhere) is None, "one stored value is one grey value"
    inside = stored < 100
    assert check_rendering(stored, np.where(inside, np.float32(0.5), shown), inside) is not None
    colours = np.repeat(stored[..., None], 3, axis=2)
    assert check_rendering(colours, (colours >> 4).astype(np.uint8), everywhere) is None
    assert check_rendering(colours, np.full(colours.shape, 9, np.uint8), everywhere) is not None
    grey_steps = (colours * (1, 0, 0)).astype(np.uint8)
    assert check_rendering(stored, grey_steps, everywhere) is None

    assert clipped_fraction(stored, shown, everywhere) == 0
    narrow = dicom_cases.linear(stored.astype(float), 2000, 2).astype(np.float32)
    assert clipped_fraction(stored, narrow, everywhere) == 1
    half = dicom_cases.linear(stored.astype(float), 4095, 4096).astype(np.float32)
    assert clipped_fraction(stored, half, everywhere) == pytest.approx((half == 0).mean())
    mask = (stored > 2000).astype(np.uint8)
    assert clipped_fraction(mask, mask.astype(np.float32), everywhere) == 0, "a mask of two values loses nothing"
    assert clipped_fraction(stored, narrow, everywhere & False) == 0


def test_a_window_that_clips_nearly_all_is_remarked(folder: Path):
    narrow = dicom_cases.dataset_of(dicom_cases.ramp(12), 12, WindowCenter="2000", WindowWidth="41")
    (folder / "narrow.dcm").write_bytes(dicom_cases.written(narrow))
    with collecting() as remarks:
        image = read_dicom(folder / "narrow.dcm")
    share = ((image == 0) | (image == 1)).mean()
    assert 0.98 < share < 1 and f"{share:.1%} of the pixels black or white" in remarks["clipped"].detail
    wide = dicom_cases.dataset_of(dicom_cases.ramp(12), 12, WindowCenter="2000", WindowWidth="1000")
    (folder / "wide.dcm").write_bytes(dicom_cases.written(wide))
    with collecting() as remarks:
        assert 0.7 < np.isin(read_dicom(folder / "wide.dcm"), (0, 1)).mean() < 0.8 and not remarks


# ---- codestreams that gdcm must not be given


def _lossless_jpeg(bits: int = 12, rows: int = 16, factors: int = 0x11, counts: bytes = b"\0\x02" + bytes(14)) -> bytes:
    """A header of lossless JPEG (T.81 B.2) with nothing behind it."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content

    frame = bytes((bits, 0, rows, 0, 16, 1, 1, factors, 0))
    tables = b"\0" + counts + bytes(sum(counts))
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, tables) + segment(0xDA, bytes((1, 1, 0, 1, 0, 0)))


DAMAGE = {
    "depth": (_lossless_jpeg(bits=0xD0), "208 bits per sample"),
    "size": (_lossless_jpeg(rows=255), "255 x 16 pixels of 1 samples, not 16 x 16 of 1"),
    "sampling": (_lossless_jpeg(factors=0x9B), r"sampling factors \[9, 11\]"),
    "table": (_lossless_jpeg(counts=b"\x09" + bytes(15)), "a Huffman table of it is not valid"),
    "cut": (_lossless_jpeg()[:30], "its header breaks off"),
    "marker": (_lossless_jpeg().replace(b"\xff\xc4", b"\x9b\xc4"), "its header breaks off"),
    "no frame header": (_lossless_jpeg().replace(b"\xff\xc3", b"\xff\xfe"), "its start of scan is not valid"),
}


@pytest.mark.parametrize("codestream, words", DAMAGE.values(), ids=DAMAGE)
def test_damaged_jpeg_headers_are_refused_before_gdcm_ends_the_process(codestream: bytes, words: str):
    dataset = dicom_cases.dataset_of(dicom_cases.ramp(12), 12)
    check_jpeg_headers(dicom_cases.encapsulated(dataset, uid.JPEGLosslessSV1, _lossless_jpeg()))
    with pytest.raises(DataError, match=words):
        check_jpeg_headers(dicom_cases.encapsulated(dataset, uid.JPEGLosslessSV1, codestream))
