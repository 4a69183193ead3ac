"""Damaged DICOM files and series, made by pydicom and by flipping bits; what each must be read as."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from tests.data.readers.bad_images import Case, encoded, zeros

SIZE = 24
PIXELS = np.random.default_rng(7).integers(0, 4096, (SIZE, SIZE), dtype=np.uint16)
EIGHT = (PIXELS >> 4).astype(np.uint8)


def image(pixels: np.ndarray = PIXELS, syntax: str = ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SeriesInstanceUID, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = "1.2.3", 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.add_new("PixelData", "OW", pixels.tobytes())
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def encapsulated(syntax: str, *fragments: bytes, pixels: np.ndarray = EIGHT) -> Dataset:
    dataset = image(pixels, syntax)
    dataset.add_new("PixelData", "OB", encapsulate(list(fragments)))
    dataset["PixelData"].is_undefined_length = True
    return dataset


def rle(pixels: np.ndarray = PIXELS) -> Dataset:
    dataset = image(pixels)
    dataset.compress(RLELossless, generate_instance_uid=False)
    return dataset


def jpeg() -> bytes:
    return encoded(Image.fromarray(EIGHT), "JPEG")


def jpeg2000() -> bytes:
    return encoded(Image.fromarray(EIGHT), "JPEG2000", no_jp2=True)


def written(dataset: Dataset) -> bytes:
    dataset.preamble, dataset.file_meta.FileMetaInformationGroupLength = bytes(128), 0
    implicit, buffer = dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian, io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=True, force_encoding=True)
    return buffer.getvalue()


def deflated(body: bytes) -> bytes:
    """A file with this after its file meta, said to be deflated."""
    head = written(image(syntax=DeflatedExplicitVRLittleEndian))
    return head[: 132 + 12 + struct.unpack("<I", head[140:144])[0]] + body


def deflated_bomb(gigabytes: int) -> bytes:
    """A sound data set whose pixel data go on for gigabytes of zeros."""
    plain = written(image())
    start = 132 + 12 + struct.unpack("<I", plain[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    position = plain.index(b"\xe0\x7f\x10\x00OW")
    claimed_size = struct.pack("<I", gigabytes * 2**30)
    packed = packer.compress(plain[start : position + 8] + claimed_size) + packer.flush(zlib.Z_FULL_FLUSH)
    return deflated(packed + zeros(gigabytes * 2**30, raw=True))


def claims(codestream: bytes, marker: bytes, offset: int, size: bytes) -> bytes:
    """A codestream whose header says another size."""
    position = codestream.index(marker) + offset
    return codestream[:position] + size + codestream[position + len(size) :]


def nested(depth: int) -> bytes:
    """Sequences of undefined length, one in another; pydicom itself could not write them."""
    content = written(image())
    position = content.index(b"\xe0\x7f\x10\x00OW")
    tag = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return content[:position] + tag * depth + content[position:]


def lut(entries: int, bits: int, data: bytes | None) -> Any:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries, 0, bits])
    if data is not None:
        item.add_new("LUTData", "OW", data)
    return [item]


def without(name: str) -> Dataset:
    dataset = image()
    delattr(dataset, name)
    return dataset


def wrong_vr(name: str, vr: str, value: Any) -> Dataset:
    dataset = image()
    dataset.add_new(pydicom.datadict.tag_for_keyword(name), vr, value)
    return dataset


REFUSED: dict[str, Callable[[], Dataset | bytes]] = {
    **{f"no_{name}": lambda name=name: without(name) for name in ("Rows", "Columns", "BitsAllocated", "PixelData")},
    **{f"no_{name}": lambda name=name: without(name) for name in ("PixelRepresentation", "PhotometricInterpretation")},
    "no_samples": lambda: without("SamplesPerPixel"),
    "huge": lambda: image(Rows=65535, Columns=65535),
    "rows_0": lambda: image(Rows=0),
    "million_frames": lambda: image(NumberOfFrames=10**6),
    "frames_text": lambda: wrong_vr("NumberOfFrames", "LO", "many"),
    "bits_7": lambda: image(BitsAllocated=7),
    "bits_0": lambda: image(BitsAllocated=0),
    "bits_stored_99": lambda: image(BitsStored=99),
    "samples_4": lambda: image(SamplesPerPixel=4),
    "photometric": lambda: image(PhotometricInterpretation="RAINBOW"),
    "rows_text": lambda: wrong_vr("Rows", "LO", "many"),
    "rows_two": lambda: wrong_vr("Rows", "US", [24, 24]),
    "rows_float": lambda: wrong_vr("Rows", "FD", float("nan")),
    "pixels_text": lambda: wrong_vr("PixelData", "LT", "no pixels"),
    "pixels_short": lambda: image(PixelData=PIXELS.tobytes()[:-2]),
    "pixels_long": lambda: image(PixelData=PIXELS.tobytes() * 3),
    "pixels_none": lambda: image(PixelData=b""),
    "window_nan": lambda: image(WindowCenter="nan", WindowWidth="400"),
    "width_nan": lambda: image(WindowCenter="40", WindowWidth="nan"),
    "width_inf": lambda: image(WindowCenter="40", WindowWidth="inf"),
    "width_0": lambda: image(WindowCenter="40", WindowWidth="0"),
    "width_negative": lambda: image(WindowCenter="40", WindowWidth="-9"),
    "slope_nan": lambda: image(RescaleSlope="nan", RescaleIntercept="0"),
    "slope_nan_with_lut": lambda: image(RescaleSlope="nan", VOILUTSequence=lut(9, 8, bytes(18))),
    "slope_inf": lambda: image(RescaleSlope="inf", WindowCenter="40", WindowWidth="400"),
    "slope_huge": lambda: image(RescaleSlope="1e308", WindowCenter="40", WindowWidth="400"),
    "intercept_nan": lambda: image(RescaleIntercept="nan"),
    "float_nan": lambda: float_pixels(np.nan),
    "float_inf": lambda: float_pixels(np.inf),
    "lut_bits_0": lambda: image(VOILUTSequence=lut(9, 0, bytes(18))),
    "lut_bits_65535": lambda: image(VOILUTSequence=lut(9, 65535, bytes(18))),
    "lut_empty": lambda: image(VOILUTSequence=lut(9, 8, b"")),
    "lut_lacks_data": lambda: image(ModalityLUTSequence=lut(9, 8, None)),
    "nested": lambda: nested(5000),
    "syntax": lambda: written(image()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
    "rle_cut": lambda: encapsulated(RLELossless, rle_fragment()[:80], pixels=PIXELS),
    "rle_native": lambda: written(image()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
    "jpeg_cut": lambda: encapsulated(JPEGBaseline8Bit, jpeg()[:100]),
    "jpeg_empty": lambda: encapsulated(JPEGBaseline8Bit, bytes(2)),
    "jpeg_claims": lambda: encapsulated(JPEGBaseline8Bit, claims(jpeg(), b"\xff\xc0", 5, b"\x2e\xe0\x2e\xe0")),
    "j2k_cut": lambda: encapsulated(JPEG2000Lossless, jpeg2000()[:60]),
    "j2k_claims": lambda: encapsulated(JPEG2000Lossless, claims(jpeg2000(), b"\xff\x51", 6, b"\0\0\x2e\xe0" * 2)),
    "deflated_rubbish": lambda: deflated(b"\x07 no deflate"),
    "deflated_cut": lambda: deflated(zlib.compress(bytes(999), wbits=-15)[:5]),
    "deflated_bomb_3_gb": lambda: deflated_bomb(3),
}


def float_pixels(value: float) -> Dataset:
    dataset = image(BitsAllocated=32)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    pixels = PIXELS.astype("<f4")
    pixels[3, 4] = value
    dataset.add_new("FloatPixelData", "OF", pixels.tobytes())
    return dataset


def rle_fragment() -> bytes:
    return next(pydicom.encaps.generate_frames(rle().PixelData, number_of_frames=1))


def own_range(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    return ((pixels - low) / (high - low)).astype(np.float32)


def structured() -> Iterator[Case]:
    """Data sets that say something wrong, and sound ones in unusual dress."""
    for name, make in REFUSED.items():
        content = make()
        yield Case(f"{name}.dcm", content if isinstance(content, bytes) else written(content), "refuse")
    plain = written(image())
    start = 132 + 12 + struct.unpack("<I", plain[140:144])[0]
    sound = {
        "deflated": deflated(zlib.compress(plain[start:], wbits=-15)),
        "implicit": written(image(syntax=ImplicitVRLittleEndian)),
        "rle": written(rle()),
        "pixels_padded": written(image(PixelData=PIXELS.tobytes() + bytes(100))),
        "nested_little": nested_closed(20),
        "no_meta": plain[start:],
    }
    for name, content in sound.items():
        yield Case(f"{name}.dcm", content, "read", own_range(PIXELS))
    yield Case("j2k.dcm", written(encapsulated(JPEG2000Lossless, jpeg2000())), "read", own_range(EIGHT))


def nested_closed(depth: int) -> bytes:
    dataset, inner = image(), Dataset()
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedImageSequence = [inner]
        inner = outer
    dataset.ReferencedImageSequence = [inner]
    return written(dataset)


def sources(folder: Path) -> dict[str, bytes]:
    """Sound files to damage: our own, and what real ones the folder has."""
    own = {
        "native": written(image(WindowCenter="900", WindowWidth="3000", RescaleSlope="2", RescaleIntercept="-9")),
        "rle": written(rle()),
        "jpeg": written(encapsulated(JPEGBaseline8Bit, jpeg())),
        "j2k": written(encapsulated(JPEG2000Lossless, jpeg2000())),
        "implicit": written(image(syntax=ImplicitVRLittleEndian)),
        "luts": written(image(VOILUTSequence=lut(9, 8, bytes(range(18))), PixelPaddingValue=3)),
    }
    return {**own, **{path.stem: path.read_bytes() for path in sorted(folder.glob("*.dcm"))}}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes changed (mostly among the first 2,000, where the elements are), and, at times, cut."""
    changed = bytearray(content)
    reach = min(len(changed), 2000) if rng.random() < 0.7 else len(changed)
    for position in rng.integers(128, reach, rng.integers(1, 9)).tolist():
        changed[position] = int(rng.integers(256))
    if rng.random() < 0.3:
        del changed[int(rng.integers(140, len(changed))) :]
    return bytes(changed)


def random_damage(folder: Path, each: int) -> Iterator[Case]:
    for position, (name, content) in enumerate(sources(folder).items()):
        for number in range(each):
            rng = np.random.default_rng([position, number])
            yield Case(f"damaged_{name}_{number}.dcm", damaged(content, rng), "survive")


# ---- series


def series(**attributes: Any) -> list[bytes]:
    """Five slices; the attributes are those of the third."""
    found = []
    for number in range(5):
        position = {"ImagePositionPatient": [0, 0, 2 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        own = attributes if number == 2 else {}
        found.append(written(image(PIXELS + number, **{"PixelSpacing": [1, 1], **position, **own})))
    return found


BAD_SLICES: dict[str, dict[str, Any]] = {
    "slope_nan": {"RescaleSlope": "nan"},
    "slope_huge": {"RescaleSlope": "1e300"},
    "intercept_inf": {"RescaleIntercept": "inf"},
    "position_nan": {"ImagePositionPatient": ["0", "0", "nan"]},
    "position_huge": {"ImagePositionPatient": ["0", "0", "1e300"]},
    "orientation_zero": {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
    "spacing_huge": {"PixelSpacing": ["1e300", "1e300"]},
    "rows_huge": {"Rows": 65535, "Columns": 65535},
    "bits_7": {"BitsAllocated": 7},
    "pixels_short": {"PixelData": b"\0\0"},
    "frames": {"NumberOfFrames": 10**6},
}
