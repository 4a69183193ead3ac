"""Lookup tables and colours of the DICOM corpus: encodings, descriptors that data contradict, palettes, RGB and YBR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import convert_color_space
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.data.readers.dicom_cases import NATIVE, SIDE, Case, dataset_of, looked_up, ramp, stretched, written

RNG = np.random.default_rng(3)
CURVE = np.rint(np.linspace(0, 1, 4096) ** 0.6 * 4095).astype(np.uint16)  # 12 bits, monotonic
EIGHT = (CURVE >> 4).astype(np.uint16)


# ---- how entries lie in a file


def words_in_file(table: np.ndarray, syntax: str) -> bytes:
    """OW, an entry in each word, in the byte order of the file (PS3.5 A.3)."""
    return table.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()


def packed_in_file(table: np.ndarray, syntax: str) -> bytes:
    """OW, two 8-bit entries in a word, the first in the low byte, in the byte order of the file (C.7.6.3.1.6)."""
    even = np.concatenate([table, np.zeros(len(table) % 2, table.dtype)]).astype(np.uint16)
    return words_in_file(even[::2] | (even[1::2] << 8), syntax)


def item_of(
    table: Any, first: int, bits: int, count: int | None = None, vr: str = "OW", data_vr: str = "OW"
) -> Dataset:
    item = Dataset()
    count = len(table) if count is None else count
    item.add_new("LUTDescriptor", vr, [count, first, bits])
    item.add_new("LUTData", data_vr, table)
    item.ModalityLUTType = "US"
    return item


ENCODINGS = {  # bits of an entry, and how the data are written for a syntax
    "words": (12, "OW", words_in_file),
    "words of 16 bits": (16, "OW", lambda table, syntax: words_in_file(table << 4, syntax)),
    "US": (12, "US", lambda table, syntax: table.tolist()),
    "SS of 16 bits": (16, "SS", lambda table, syntax: (table << 4).view(np.int16).tolist()),
    "8 bits packed": (8, "OW", lambda table, syntax: packed_in_file(table >> 4, syntax)),
    "8 bits in words": (8, "OW", lambda table, syntax: words_in_file(table >> 4, syntax)),
    "8 bits packed, US": (8, "US", lambda table, syntax: np.frombuffer(packed_in_file(table >> 4, ""), "<u2").tolist()),
}


def tables() -> Iterator[Case]:
    """Modality and VOI LUT in every encoding, syntax and kind of first value mapped."""
    for encoding in ENCODINGS:
        for label, syntax in NATIVE.items():
            if syntax == ImplicitVRLittleEndian and ENCODINGS[encoding][1] != "OW":
                continue
            for kind in ("ModalityLUTSequence", "VOILUTSequence"):
                for where in ("unsigned 0", "unsigned 100", "signed -900", "unsigned 60000", "odd number"):
                    name = f"{kind[:3]} {encoding} {label} {where}"
                    yield Case(name, lambda a=(kind, encoding, syntax, where): _table(*a))


def _table(kind: str, encoding: str, syntax: str, where: str) -> tuple[bytes, np.ndarray]:
    first = int(where.split()[-1]) if where[-1].isdigit() else 0
    signed = first < 0
    pixels = (ramp(12).astype(np.int64) + first - 37).clip(
        -(2**15) if signed else 0, 2**15 - 1 if signed else 2**16 - 1
    )
    pixels = pixels.astype(np.int16 if signed else np.uint16)
    bits, data_vr, encode = ENCODINGS[encoding]
    curve = CURVE[:3999] if where == "odd number" else CURVE[:4000]
    entries = {8: curve >> 4, 12: curve, 16: curve << 4}[bits]
    dataset = dataset_of(pixels, 16, syntax)
    item = item_of(encode(curve, syntax), first, bits, len(curve), "SS" if signed else "US", data_vr)
    setattr(dataset, kind, [item])
    values = looked_up(pixels, entries, first).astype(np.float64)
    return written(dataset), stretched(values) if kind[0] == "M" else values / (2.0**bits - 1)


def disagreeing_tables() -> Iterator[Case]:
    """Descriptors that the data or the pixels contradict: read where only one reading is left, refused else."""
    full = ramp(12)
    low = (full >> 3).astype(np.uint16)  # 0 to 511
    voi = "VOILUTSequence"

    def case(
        name: str, pixels: np.ndarray, item: Dataset, right: np.ndarray | str, kind: str = voi, **more: Any
    ) -> Case:
        return Case(
            name, lambda: (written(dataset_of(pixels, more.pop("stored", 16), **{kind: [item]}, **more)), right)
        )

    def described(table: np.ndarray, bits: int, first: int = 0, count: int = 4096, vr: str = "US") -> Dataset:
        return item_of(words_in_file(table, ""), first, bits, count, vr)

    right, wide = CURVE[full] / 4095, (CURVE[full] << 4) / 65535
    signed, far = (full.astype(np.int32) - 2048).astype(np.int16), full + np.uint16(60000)
    hounsfield: dict[str, Any] = {"RescaleIntercept": "-1024", "RescaleSlope": "1", "stored": 12}
    modality, beyond = "ModalityLUTSequence", "pixels need entry"
    yield case("0 is 65,536 entries", full * 16, described(np.arange(65536), 16, count=0), full * 16 / 65535)
    yield case("more entries", low, described(CURVE, 12, count=512), CURVE[low] / 4095)
    yield case("fewer, not needed", low, described(CURVE, 12, count=5000), CURVE[low] / 4095)
    yield case("fewer, needed", full, described(CURVE[:4000], 12), beyond)
    yield case("12 bits declared as 16", full, described(CURVE, 16), right)
    yield case("8 bits declared as 16", full, described(EIGHT, 16), EIGHT[full] / 255)
    yield case("16 bits declared as 12", full, described(CURVE << 4, 12), wide)
    yield case("16 bits declared as 8", full, described(CURVE << 4, 8), wide)
    yield case("half of the range is meant", full, described(CURVE >> 1, 12), (CURVE[full] >> 1) / 4095)
    packed = item_of(packed_in_file(EIGHT, ""), 0, 16, 4096, "US")
    yield case("8 bits packed, declared as 16", full, packed, "half of the entries")
    yield case("first as US, signed pixels", signed, described(CURVE, 12, 63488), right)
    yield case("first as SS, unsigned pixels", far, described(CURVE, 12, -5536, vr="SS"), right)
    yield case("first signed after rescale", full, described(CURVE, 12, -1024, vr="SS"), right, **hounsfield)
    yield case("first as US after rescale", full, described(CURVE, 12, 64512), right, **hounsfield)
    yield case("no data", full, described(CURVE[:0], 12), "has no data")
    yield case("two values", full, _short_descriptor(), "descriptor has 2 values")
    yield case("0 bits", full, described(CURVE, 0), "an entry has 0 bits")
    yield case("17 bits", full, described(CURVE, 17), "an entry has 17 bits")
    yield case("all entries 7", full, described(CURVE * 0 + 7, 12), "run from 0 to 4095")
    yield case("LUT before window", full, described(CURVE, 12), right, WindowCenter="9", WindowWidth="9")
    yield case("modality fewer, needed", full, described(CURVE[:4000], 16), beyond, modality)
    yield case("modality narrower", full, described(CURVE, 16), right, modality)
    angiography = "1.2.840.10008.5.1.4.1.1.12.1"  # its Modality LUT is for measuring (C.8.7.1.1.2)
    yield case("XA", full, described(CURVE, 16), stretched(full), modality, SOPClassUID=angiography)


def _short_descriptor() -> Dataset:
    item = item_of(words_in_file(CURVE, ""), 0, 12)
    item.add_new("LUTDescriptor", "US", [4096, 0])
    return item


# ---- palettes

COLOURS = {
    "Red": np.arange(256, dtype=np.uint16),
    "Green": np.arange(255, -1, -1, dtype=np.uint16),
    "Blue": (np.arange(256) * 3 % 256).astype(np.uint16),
}
PALETTES = {  # declared bits, how a table is written
    "16 bits": (16, lambda table, syntax: words_in_file(table * 257, syntax)),
    "8 bits packed": (8, packed_in_file),
    "8 bits in words": (8, words_in_file),
    "16 bits not scaled": (16, words_in_file),
    "16 bits declared as 8": (8, lambda table, syntax: words_in_file(table * 257, syntax)),
}


def palettes() -> Iterator[Case]:
    for encoding in PALETTES:
        for label, syntax in NATIVE.items():
            for first in (0, 100, -100):
                name = f"palette {encoding} {label} from {first}"
                yield Case(name, lambda a=(encoding, syntax, first): _palette(*a), tolerance=0)
    for size in (8, 16):
        for label, syntax in NATIVE.items():
            for offsets in ("bytes", "entries"):
                name = f"segmented {size} bits {label}, offsets in {offsets}"
                yield Case(name, lambda a=(size, syntax, offsets): _segmented(*a), tolerance=0)
    yield Case("palette, each colour by its own descriptor", _own_descriptors, tolerance=0)
    yield Case("palette of one colour", lambda: _broken_palette(COLOURS["Red"] * 0 + 9, 256), tolerance=0)
    yield Case("palette with too few entries", lambda: _broken_palette(COLOURS["Red"][:100], 256), tolerance=0)
    yield Case("palette without data", lambda: _broken_palette(COLOURS["Red"][:0], 256), tolerance=0)
    for first in (3000, -3000):
        yield Case(f"supplemental palette from {first}", lambda first=first: _supplemental(first), tolerance=0.51)


def _add(dataset: Dataset, colour: str, descriptor: list[int], data: bytes, segmented: str = "") -> None:
    name = f"{colour}PaletteColorLookupTable"
    dataset.add_new(f"{name}Descriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    dataset.add_new(f"{segmented}{name}Data", "OW", data)


def _indices(first: int) -> np.ndarray:
    """Indices some of which lie before and behind a table of 256 entries."""
    values = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 2 + first - 100
    return values.clip(0 if first >= 0 else -(2**15)).astype(np.int16 if first < 0 else np.uint16)


def _palette(encoding: str, syntax: str, first: int) -> tuple[bytes, np.ndarray]:
    bits, encode = PALETTES[encoding]
    index = _indices(first)
    dataset = dataset_of(index, 16, syntax, PhotometricInterpretation="PALETTE COLOR")
    for colour, table in COLOURS.items():
        _add(dataset, colour, [256, first, bits], encode(table, syntax))
    return written(dataset), np.stack([looked_up(index, table, first) for table in COLOURS.values()], -1)


def _segmented(bits: int, syntax: str, offsets: str) -> tuple[bytes, np.ndarray]:
    """C.7.9.2: discrete entries twice, a line, and the last two segments once more by an indirect segment."""
    scale, width = (1, 4) if bits == 8 else (257, 2)
    offset = 4 * (bits // 8) if offsets == "bytes" else 4  # of the second segment, which begins at the fourth unit
    entries = [[5, 9], [10, 20, 60], 121]
    units = [0, 2, *(value * scale for value in entries[0]), 0, 3, *(value * scale for value in entries[1])]
    units += [1, 61, entries[2] * scale, 2, 2, offset, *[0] * (width - 1)]
    again = [*entries[1], *np.rint(60 + np.arange(1, 62) * (121 - 60) / 61)]
    expanded = np.array([*entries[0], *again, *again], np.int64)
    index = (np.arange(SIDE * SIDE) % 140).reshape(SIDE, SIDE).astype(np.uint8)
    dataset = dataset_of(index, 8, syntax, PhotometricInterpretation="PALETTE COLOR")
    data = (packed_in_file if bits == 8 else words_in_file)(np.array(units, np.uint16), syntax)
    for colour in COLOURS:
        _add(dataset, colour, [len(expanded), 0, bits], data, "Segmented")
    return written(dataset), np.repeat(looked_up(index, expanded, 0)[..., None], 3, axis=2)


def _own_descriptors() -> tuple[bytes, np.ndarray]:
    index = ramp(8, allocated=8)
    dataset = dataset_of(index, 8, PhotometricInterpretation="PALETTE COLOR")
    _add(dataset, "Red", [256, 0, 8], packed_in_file(COLOURS["Red"], ""))
    _add(dataset, "Green", [100, 50, 16], words_in_file(COLOURS["Green"][:100] * 257, ""))
    _add(dataset, "Blue", [0, 0, 8], packed_in_file(np.resize(COLOURS["Blue"], 65536), ""))
    green = looked_up(index, COLOURS["Green"][:100], 50)
    return written(dataset), np.stack([index, green, COLOURS["Blue"][index]], -1)


def _broken_palette(table: np.ndarray, count: int) -> tuple[bytes, str]:
    dataset = dataset_of(ramp(8, allocated=8), 8, PhotometricInterpretation="PALETTE COLOR")
    for colour in COLOURS:
        _add(dataset, colour, [count, 0, 16], words_in_file(table * 257, ""))
    if not len(table):
        return written(dataset), "has no data"
    constant = len(table) == count
    return written(dataset), "run from 0 to 255, and as an image all are" if constant else "has 100 of 256 entries"


def _supplemental(first: int) -> tuple[bytes, np.ndarray]:
    """C.7.6.19: grey below the first value mapped, colours from there on."""
    signed = first < 0
    pixels = (ramp(12).astype(np.int64) - (5000 if signed else 0)).astype(np.int16 if signed else np.uint16)
    dataset = dataset_of(pixels, 16, PixelPresentation="COLOR")
    for colour, table in COLOURS.items():
        _add(dataset, colour, [256, first, 16], words_in_file(table * 257, ""))
    grey = pixels < first
    shade = stretched(pixels, grey) * 255
    right = [np.where(grey, shade, looked_up(pixels, table, first)) for table in COLOURS.values()]
    return written(dataset), np.stack(right, -1)


# ---- true colour


def colours() -> Iterator[Case]:
    for label, syntax in NATIVE.items():
        for stored in (8, 5, 12, 16):
            for planar in (0, 1):
                name = f"RGB {stored} bits {label} planar {planar}"
                yield Case(name, lambda a=(stored, syntax, planar): _rgb(*a), tolerance=0)
    for photometric in ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"):
        yield Case(photometric, lambda photometric=photometric: _ybr(photometric), tolerance=3)
    yield Case("RGB said to be signed", lambda: _rgb(8, ExplicitVRLittleEndian, 0, PixelRepresentation=1), tolerance=0)
    for photometric, words in (
        ("YBR_RCT", "not read from Explicit VR"),
        ("YBR_ICT", "not read from Explicit VR"),
        ("YBR_PARTIAL_420", "not read from Explicit VR"),
        ("MONOCHROME2", "not one grey image"),
        ("PALETTE COLOR", "1 samples per pixel, and SamplesPerPixel says 3"),
        ("HSV", "not known"),
    ):
        yield Case(
            f"three samples, {photometric}",
            lambda a=(photometric, words): (
                _rgb(8, ExplicitVRLittleEndian, 0, PhotometricInterpretation=a[0])[0],
                a[1],
            ),
        )
    yield Case("one sample, RGB", lambda: (_one_sample("RGB"), "3 samples per pixel"))


def _one_sample(photometric: str) -> bytes:
    return written(dataset_of(ramp(8, allocated=8), 8, PhotometricInterpretation=photometric))


def _image(stored: int) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.stack([x, y, (x + y) // 2], -1) / (SIDE - 1) * (2**stored - 1)
    return np.rint(image).astype(np.uint8 if stored <= 8 else np.uint16)


def _rgb(stored: int, syntax: str, planar: int, **more: Any) -> tuple[bytes, np.ndarray]:
    pixels = _image(stored)
    stored_as = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if planar else pixels
    attributes = {"Rows": SIDE, "Columns": SIDE, "SamplesPerPixel": 3, "PlanarConfiguration": planar}
    dataset = dataset_of(stored_as, stored, syntax, PhotometricInterpretation="RGB", **attributes)
    for name, value in more.items():
        setattr(dataset, name, value)
    right = pixels >> (stored - 8) if stored >= 8 else np.rint(pixels * 255.0 / (2**stored - 1))
    return written(dataset), right


def _ybr(photometric: str) -> tuple[bytes, np.ndarray]:
    """Chroma is the same in each pair of pixels, so that 4:2:2 loses nothing."""
    rgb = np.repeat(_image(8)[:, ::2], 2, axis=1)
    if photometric == "YBR_PARTIAL_422":  # BT.601: 219 steps of luma from 16, 224 of chroma around 128
        full = convert_color_space(rgb, "RGB", "YBR_FULL").astype(np.float64)
        scaled = np.stack(
            [16 + full[..., 0] * 219 / 255, *(128 + (full[..., k] - 128) * 224 / 255 for k in (1, 2))], -1
        )
        ybr = np.rint(scaled).astype(np.uint8)
    else:
        ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    if photometric.endswith("422"):
        pairs = ybr.reshape(-1, 2, 3)
        ybr = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], -1)
    attributes = {"Rows": SIDE, "Columns": SIDE, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    dataset = dataset_of(ybr.reshape(-1, 1), 8, PhotometricInterpretation=photometric, **attributes)
    return written(dataset), rgb
