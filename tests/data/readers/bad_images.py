"""240 bad or odd images, 12 kinds of 20, made from seeds; what each must be read as is known without a decoder."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
COUNT = 20


@dataclass
class Case:
    """A file, and what reading it must give.

    must: 'read' (pixels, within tolerance), 'refuse' (a DataError), 'notice' (either of them), 'survive' (a DataError
    or any image: damage that the format cannot notice).
    """

    name: str
    content: bytes
    must: str
    pixels: np.ndarray | None = None
    tolerance: int = 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(array: np.ndarray, colour: int, depth: int = 8, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of [H, W] or [H, W, C], written without any library: rows of filter 0, big endian, packed if below 8."""
    rows = array.reshape(array.shape[0], -1)
    if depth < 8:
        bits = np.unpackbits(rows[..., None].astype(np.uint8), axis=2)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(len(rows), -1), axis=1)
    else:
        packed = rows.astype(">u2" if depth == 16 else np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    size = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour, 0, 0, 0)
    return MAGIC + chunk(b"IHDR", size) + before + chunk(b"IDAT", data) + after + chunk(b"IEND", b"")


def claims(width: int, height: int, colour: int = GREY, depth: int = 8, before: bytes = b"", rows: int = 100) -> bytes:
    """A PNG of zeros that says it is huge; `rows` of them are there."""
    bits = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[colour] * depth
    data = zeros(rows * (1 + -(-min(width, 2**20) * bits // 8)))
    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return MAGIC + chunk(b"IHDR", size) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(count: int, raw: bool = False) -> bytes:
    """`count` zero bytes, packed by zlib (raw: by deflate alone) without ever being there."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = block * (count // 2**20) + rest.compress(bytes(count % 2**20)) + rest.flush()
    return packed if raw else b"\x78\x9c" + packed + struct.pack(">HH", count % 65521, 1)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def dicom(pixels: np.ndarray) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation = *pixels.shape, 1, 0
    dataset.PhotometricInterpretation, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        "MONOCHROME2",
        8,
        8,
        7,
    )
    dataset.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def smooth(rng: np.random.Generator, channels: int = 1) -> np.ndarray:
    """An image that JPEG keeps nearly as it is: uint8 [H, W] or [H, W, channels]."""
    height, width = rng.integers(24, 60, 2)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 110 * np.sin(x / rng.uniform(9, 20) + rng.uniform(0, 6)) * np.cos(y / 11) for _ in range(channels)]
    return np.squeeze(np.stack(waves, axis=2), axis=2 if channels == 1 else ()).astype(np.uint8)


def noise(rng: np.random.Generator, *channels: int, high: int = 256) -> np.ndarray:
    shape = (*rng.integers(3, 40, 2), *channels)
    return rng.integers(0, high, shape, dtype=np.uint16 if high > 256 else np.uint8)


def sound(rng: np.random.Generator, number: int) -> tuple[str, bytes, np.ndarray]:
    """(extension, content, pixels) of a sound PNG or JPEG; the JPEG's pixels are Pillow's."""
    if number % 2:
        content = encoded(Image.fromarray(smooth(rng, 1 if number % 4 == 1 else 3)), "JPEG", quality=90)
        return "jpg", content, np.asarray(Image.open(io.BytesIO(content)))
    deep = number % 4 == 2
    pixels = noise(rng, high=65536) if deep else noise(rng, 3)
    return "png", png(pixels, GREY if deep else COLOUR, 16 if deep else 8), pixels


# ---- the kinds


def header_only(rng: np.random.Generator, number: int) -> Case:
    extension, content, _ = sound(rng, number)
    return Case(f"{number}.{extension}", content[: (1, 2, 3, 4, 5, 7, 8, 9, 12, 16)[number // 2]], "refuse")


def truncated(rng: np.random.Generator, number: int) -> Case:
    """A PNG cut anywhere is noticed; the last bytes of a JPEG may be missing without a pixel being lost."""
    extension, content, pixels = sound(rng, number)
    positions = (20, 30, 36, 45, len(content) // 2, len(content) - 17, len(content) - 12, len(content) - 4)
    position = positions[number // 2] if number < 16 else int(rng.integers(20, len(content)))
    return Case(f"{number}.{extension}", content[:position], "refuse" if extension == "png" else "notice", pixels)


def empty(rng: np.random.Generator, number: int) -> Case:
    """No byte at all, and bytes that say nothing, under every extension."""
    content = (b"", bytes(1 << number // 2), b"\xff" * number, b" \n" * number)[number // 5]
    return Case(f"{number}.{('png', 'jpg', 'jpeg', 'dcm', 'dicom')[number % 5]}", content, "refuse")


def flipped_bit(rng: np.random.Generator, number: int) -> Case:
    """One bit of a PNG, where it must show, or of a JPEG, which has no checksum."""
    if number % 2:
        _, content, pixels = sound(rng, number)
        return Case(f"{number}.jpg", flip(rng, content), "survive", pixels)
    kinds = ((GREY, 8, ()), (GREY, 16, ()), (COLOUR, 8, (3,)), (COLOUR, 16, (3,)))
    colour, depth, channels = kinds[number // 2 % 4]
    pixels = noise(rng, *channels, high=2**depth)
    return Case(f"{number}.png", flip(rng, png(pixels, colour, depth)), "notice", pixels)


def flip(rng: np.random.Generator, content: bytes) -> bytes:
    """One bit of it is another."""
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def wrong_extension(rng: np.random.Generator, number: int) -> Case:
    names = ("png", "jpg", "dcm", "jpeg", "dicom")
    if number < 10:
        _, content, pixels = sound(rng, number)
        return Case(f"{number}.{('dcm', 'png', 'jpeg', 'dicom')[number % 4]}", content, "read", pixels)
    if number < 12:
        pixels = noise(rng)
        pixels[0, :2] = 0, 255  # so that the min-max is the whole range
        return Case(f"{number}.png", dicom(pixels), "read", pixels / np.float32(255))
    pixels = noise(rng, 3)
    image = Image.fromarray(pixels)
    if number in (14, 16):  # read by their content, as PNG, JPEG and DICOM are
        content = encoded(image, "TIFF") if number == 14 else encoded(image, "WEBP", lossless=True)
        return Case(f"{number}.{names[number % 5]}", content, "read", pixels)
    others = [encoded(image, kind) for kind in ("GIF", "BMP", "PCX", "PPM", "ICO")]
    others += [b"no image, but text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\x03\x04" + bytes(200)]
    return Case(f"{number}.{names[number % 5]}", others[number - 12], "refuse")


def bomb(rng: np.random.Generator, number: int) -> Case:
    """More pixels than are ever decoded, in a small file; text and profiles that swell; shapes at the edge."""
    packed = zeros(400 * 2**20)
    small = noise(rng)
    text, profile = chunk(b"zTXt", b"a\0\0" + packed), chunk(b"iCCP", b"a\0\0" + packed)
    international = chunk(b"iTXt", b"a\0\1\0\0\0" + packed)
    huge = [claims(14000, 14000, colour, rows=14000) for colour in (GREY, COLOUR, COLOUR_ALPHA)]
    huge += [claims(14000, 14000, COLOUR, 16), claims(14000, 14000, GREY, 16), claims(40000, 40000, GREY, 1)]
    huge += [claims(2**31 - 1, 2**31 - 1), claims(2**31 - 1, 1), claims(1, 2**31 - 1), claims(65535, 65535, GREY_ALPHA)]
    huge += [jpeg_claims(65000, 65000), jpeg_claims(65500, 65500), jpeg_claims(14000, 14000), jpeg_claims(9999, 10001)]
    if number < len(huge):
        return Case(f"{number}.{'jpg' if 9 < number < 14 else 'png'}", huge[number], "refuse")
    if number < 17:
        before = (text, profile, international)[number - 14]
        return Case(f"{number}.png", png(small, GREY, before=before), "notice", small)
    shape = ((1, 50000), (50000, 1), (1, 1))[number - 17]
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    return Case(f"{number}.png", png(pixels, GREY), "read", pixels)


def jpeg_claims(width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size: height at byte 5 and width at byte 7 of its SOF0 segment."""
    content = bytearray(encoded(Image.new("L", (64, 64), 90), "JPEG"))
    position = content.index(b"\xff\xc0")
    content[position + 5 : position + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def postscript(rng: np.random.Generator, number: int) -> Case:
    """EPS in all its dresses, which Pillow would hand to Ghostscript."""
    plain = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\n(x) (w) file quit\n%%EOF\n"
    dos = b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 30, len(plain), 0, 0, 0, 0) + b"\xff\xff" + plain
    contents = (plain, dos, plain.replace(b"\n", b"\r"), MAGIC + plain, b"\xff\xd8\xff" + plain)
    name = f"{number}.{('png', 'jpg', 'dcm', 'jpeg')[number // 5]}"
    return Case(name, contents[number % 5] + bytes(rng.integers(0, 99)), "refuse")


def cmyk(rng: np.random.Generator, number: int) -> Case:
    """Ink to light by the textbook: (1 - ink)(1 - black); 6 of 255 for what JPEG loses."""
    ink = smooth(rng, 4) // (1 + number % 3)
    light = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255.0
    content = encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=98, subsampling=0)
    return Case(f"{number}.jpg", content, "read", np.rint(light).astype(np.uint8), tolerance=6)


def palette_alpha(rng: np.random.Generator, number: int) -> Case:
    """Palettes of 1 to 8 bits with an alpha for each entry, a transparent grey, a transparent colour; over black."""
    if number < 16:
        depth = (1, 2, 4, 8)[number % 4]
        entries = rng.integers(0, 256, (2**depth, 3), dtype=np.uint8)
        alpha = rng.integers(0, 256, 2**depth if number < 12 else 1, dtype=np.uint8)
        index = noise(rng, high=2**depth)
        opacity = np.full(2**depth, 255.0)
        opacity[: len(alpha)] = alpha
        want = np.rint(entries[index] * opacity[index][..., None] / 255.0).astype(np.uint8)
        before = chunk(b"PLTE", entries.tobytes()) + chunk(b"tRNS", alpha.tobytes())
        return Case(f"{number}.png", png(index, PALETTE, depth, before), "read", want, tolerance=1)
    if number < 18:
        pixels = noise(rng)
        clear = int(pixels[0, 0])
        content = png(pixels, GREY, before=chunk(b"tRNS", struct.pack(">H", clear)))
        return Case(f"{number}.png", content, "read", np.where(pixels == clear, 0, pixels).astype(np.uint8))
    pixels = noise(rng, 3)
    clear = pixels[0, 0]
    content = png(pixels, COLOUR, before=chunk(b"tRNS", struct.pack(">HHH", *clear.tolist())))
    return Case(f"{number}.png", content, "read", np.where((pixels == clear).all(2, keepdims=True), 0, pixels))


def animated(rng: np.random.Generator, number: int) -> Case:
    """The first frame of an animated PNG is the image; an animated GIF is none of the formats that are read."""
    first = noise(rng)
    frames = [Image.fromarray(rng.integers(0, 256, first.shape, dtype=np.uint8)) for _ in range(3)]
    options = {"save_all": True, "append_images": frames, "duration": 50}
    if number >= 12:
        return Case(f"{number}.png", encoded(Image.fromarray(first), "GIF", **options), "refuse")
    still = {"default_image": True} if number % 2 else {}
    return Case(f"{number}.png", encoded(Image.fromarray(first), "PNG", **options, **still), "read", first)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a, 1),
}


def rotated(rng: np.random.Generator, number: int) -> Case:
    """EXIF 2.32, 4.6.4.A: the orientations 1 to 8, values that mean nothing, and an EXIF block that is rubbish."""
    image = Image.fromarray(smooth(rng, 1 if number % 2 else 3))
    pixels = np.asarray(Image.open(io.BytesIO(encoded(image, "JPEG", quality=90))))
    orientation = (*range(1, 9), *range(1, 9), 0, 9, 65535)[number] if number < 19 else 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif if number < 19 else b"Exif\0\0" + rng.bytes(40)
    turned = TURNS.get(orientation, lambda array: array)(pixels)
    return Case(f"{number}.jpg", encoded(image, "JPEG", quality=90, exif=block), "read", turned)


def sixteen_bit(rng: np.random.Generator, number: int) -> Case:
    """Grey and colour, with alpha, with a transparent value: all 16 bits, over black."""
    kind = number % 5
    channels = {0: (), 1: (3,), 2: (2,), 3: (4,), 4: ()}[kind]
    pixels = noise(rng, *channels, high=2 ** (16 if number < 10 else 12))
    if kind in (0, 1):
        return Case(f"{number}.png", png(pixels, COLOUR if kind else GREY, 16), "read", pixels)
    if kind == 4:
        before = chunk(b"tRNS", struct.pack(">H", int(pixels[0, 0])))
        want = np.where(pixels == pixels[0, 0], 0, pixels).astype(np.uint16)
        return Case(f"{number}.png", png(pixels, GREY, 16, before), "read", want)
    light = pixels[..., :-1] * (pixels[..., -1:] / 65535.0)
    want = np.rint(light if kind == 3 else np.repeat(light, 3, axis=2)).astype(np.uint16)
    return Case(f"{number}.png", png(pixels, COLOUR_ALPHA if kind == 3 else GREY_ALPHA, 16), "read", want)


KINDS = (header_only, truncated, flipped_bit, empty, wrong_extension, bomb)
KINDS += (postscript, cmyk, palette_alpha, animated, rotated, sixteen_bit)


def all_cases() -> Iterator[Case]:
    """The 240, their names beginning with their kind."""
    for position, kind in enumerate(KINDS):
        for number in range(COUNT):
            case = kind(np.random.default_rng([position, number]), number)
            case.name = f"{kind.__name__}_{case.name}"
            yield case
