"""Lookup tables of DICOM: Modality LUT, VOI LUT and palettes, in every encoding that is met.

A descriptor says (number of entries, first value mapped, bits per entry), and writers disagree with it in ways that
the length of the data tells (PS3.3 C.7.6.3.1.5 and .6, C.11.1.1.1, C.11.2.1.1, and the note that CP-522 added): entries
of 8 bits packed two in a word or one in each, more or fewer of them, narrower or wider ones. What can be told is read;
what cannot, and a pixel that needs an entry that is not there, is a DataError. pydicom 3.0 takes the declared depth
for the size of an entry, ignores the byte order of OW in VOI and Modality LUTs of 8 bits, and does not read the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError
from data.readers.dicom_attributes import words_of

if TYPE_CHECKING:
    from pydicom import Dataset

_SEGMENT_LIMIT = 2**16


@dataclass(frozen=True)
class LookupTable:
    """entries: uint16, at most as many as declared. count, bits: as declared. first: the first value mapped."""

    entries: np.ndarray
    count: int
    first: int
    bits: int
    name: str

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entry of each value (rounded), uint16; beyond the ends of the table its end entries."""
        index = np.clip(np.rint(np.asarray(values, np.float64)) - self.first, 0, self.count - 1).astype(np.int64)
        if index.size and index.max() >= self.entries.size:
            raise DataError(
                f"{self.name} has {self.entries.size} of {self.count} entries, and its pixels need entry "
                f"{int(index.max()) + 1}"
            )
        return self.entries[index]

    @property
    def largest(self) -> int:
        """The largest entry."""
        return int(self.entries.max()) if self.entries.size else 0

    @property
    def depth(self) -> int:
        """Bits of an entry: the declared ones, unless the entries say otherwise.

        More, where an entry needs more. Fewer, where not a quarter of the range is used: some devices state the size
        of a word (16) instead of the range of its values, and every image would be nearly black.
        """
        needed = self.largest.bit_length()
        return needed if needed > self.bits or 0 < needed < self.bits - 1 else self.bits


def sequence_table(item: Dataset, name: str, little_endian: bool, low: float, high: float) -> LookupTable:
    """The table of an item of ModalityLUTSequence or VOILUTSequence; low, high: what may be looked up in it."""
    descriptor = words_of(item, "LUTDescriptor", little_endian)
    data = words_of(item, "LUTData", little_endian)
    return lookup_table(descriptor, data, name, low, high)


def lookup_table(descriptor: np.ndarray, data: np.ndarray, name: str, low: float, high: float) -> LookupTable:
    """A table from the words of its descriptor and its data; low, high: the smallest and largest value to look up."""
    count, first, bits = _described(descriptor, name, low, high)
    if not data.size:
        raise DataError(f"{name} has no data")
    return LookupTable(_entries(data, count, bits, name), count, first, bits, name)


def _described(descriptor: np.ndarray, name: str, low: float, high: float) -> tuple[int, int, int]:
    if descriptor.size != 3:
        raise DataError(f"{name}'s descriptor has {descriptor.size} values, not 3")
    count, first, bits = (int(word) for word in descriptor)
    count = count or 2**16
    if not 1 <= bits <= 16:
        raise DataError(f"{name} says that an entry has {bits} bits; 1 to 16 are allowed")
    return count, _first_mapped(first, count, low, high), bits


def _first_mapped(word: int, count: int, low: float, high: float) -> int:
    """The first value mapped from its 16 bits: signed where what is looked up may be negative, else not.

    PS3.3 C.11.1.1.1, C.11.2.1.1 and C.7.6.3.1.5 tie the sign to the values that are looked up, and writers often have
    the VR wrong, so the VR is not asked. The other reading is taken where only it lets the table meet those values.
    """
    signed = word - 2**16 if word >= 2**15 else word
    readings = (signed, word) if low < 0 else (word, signed)
    for first in readings:
        if first <= high and first + count > low:
            return first
    return readings[0]


def _entries(words: np.ndarray, count: int, bits: int, name: str) -> np.ndarray:
    """The entries in the words of the data, at most count of them."""
    packed = (count + 1) // 2  # words that hold two entries of 8 bits each
    if bits > 8:
        if words.size == packed and count > 1:
            raise DataError(
                f"{name} says {count} entries of {bits} bits and has {words.size} words: half of the entries, or "
                "entries of 8 bits"
            )
        return words[:count]
    if words.size != packed and (words.size == count or not (words >> 8).any()):
        return words[:count]
    return words.astype("<u2").view(np.uint8)[:count].astype(np.uint16)  # the first entry is the low byte


# ---- palettes


def palette(dataset: Dataset, little_endian: bool, low: float, high: float) -> list[LookupTable]:
    """The tables of red, green and blue (PS3.3 C.7.6.3.1.5, .6; segmented: C.7.9.2); alpha is not used.

    Each colour goes by its own descriptor, although the standard asks for three equal ones.
    """
    tables = []
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        descriptor = words_of(dataset, f"{name}Descriptor", little_endian)
        data = words_of(dataset, f"{name}Data", little_endian)
        segments = words_of(dataset, f"Segmented{name}Data", little_endian)
        if not data.size and segments.size:
            count, first, bits = _described(descriptor, name, low, high)
            tables.append(LookupTable(_expand(segments, count, bits, name), count, first, bits, name))
        else:
            tables.append(lookup_table(descriptor, data, name, low, high))
    return tables


def palette_colours(tables: list[LookupTable], index: np.ndarray) -> np.ndarray:
    """uint8 RGB [..., 3] of palette indices: entries of 8 bits as they are, the 8 highest bits of deeper ones.

    Entries declared as 16 bits of which none exceeds 255 came from a writer that did not scale them up; as they stand
    the image would be black.
    """
    needed = {bits: max(table.largest for table in tables if table.bits == bits) for bits in {t.bits for t in tables}}
    channels = []
    for table in tables:
        bits = max(table.bits, needed[table.bits].bit_length())
        channels.append(to_eight_bits(table.look_up(index), 8 if needed[table.bits] < 256 else bits))
    return np.stack(channels, axis=-1)


def to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values of so many bits as uint8: the 8 highest bits, or fewer ones stretched to 0 to 255."""
    if bits >= 8:
        return (values >> (bits - 8)).astype(np.uint8)
    return np.rint(values * (255.0 / (2**bits - 1))).astype(np.uint8)


def _expand(words: np.ndarray, count: int, bits: int, name: str) -> np.ndarray:
    """The entries of a segmented table (PS3.3 C.7.9.2), uint16.

    Bytes or words, and the offset of an indirect segment in bytes or in units of an entry: what the standard says
    comes first, and the other readings where only they make as many entries as are declared.
    """
    as_bytes = words.astype("<u2").view(np.uint8).astype(np.int64).tolist()
    as_words = words.astype(np.int64).tolist()
    for units in (as_bytes, as_words) if bits <= 8 else (as_words, as_bytes):
        size = 1 if units is as_bytes else 2
        for per_unit in (size, 1):
            entries = _segments(units, 0, None, None, size, per_unit)
            if entries is not None and len(entries) == count:
                return np.array(entries, np.uint16)
    raise DataError(f"{name}: its segments do not make {count} entries")


def _segments(
    units: list[int], start: int, number: int | None, last: int | None, size: int, per_unit: int
) -> list[int] | None:
    """The entries of `number` segments from a unit on, None: all; None where they are not valid.

    last: the entry before them. size: bytes of a unit. per_unit: what an indirect offset counts, bytes of a unit or 1.
    """
    found: list[int] = []
    position, nested = start, number is not None
    while (number is None and position + 2 < len(units)) or (number is not None and number > 0):
        if position + 2 >= len(units):
            return None
        kind, length = units[position], units[position + 1]
        position += 2
        more: list[int] | None
        if kind == 0:
            more, position = units[position : position + length], position + length
            more = more if len(more) == length else None
        elif kind == 1 and length and (found or last is not None):
            previous = found[-1] if found else last
            ends = np.linspace(float(previous or 0), units[position], length + 1)[1:]
            more, position = np.rint(ends).astype(int).tolist(), position + 1
        elif kind == 2 and not nested and found:
            width = 4 // size
            offset = sum(unit << (8 * size * place) for place, unit in enumerate(units[position : position + width]))
            more = _segments(units, offset // per_unit, length, found[-1], size, per_unit)
            position += width
        else:
            more = None
        if more is None or len(found) + len(more) > _SEGMENT_LIMIT:
            return None
        found += more
        number = None if number is None else number - 1
    return found
