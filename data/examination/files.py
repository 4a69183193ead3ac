"""Files of images as they lie there: all of their heads, and a sample that tells later whether they have changed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from configs.errors import DataError
from data.examination.images import sample_rows
from data.readers.digests import thread_pool
from data.readers.regular_files import open_regular, read_head
from data.readers.tables import some
from data.study import DatasetIndex
from utils.examination.findings import Finding, counted
from utils.progress import Progress

SAMPLED = 256  # files whose ends a run remembers: read in a moment
_END_BYTES = 4096
_PART = 512
_DISPLAYED = 5


class FilesRecord(TypedDict):
    """images: how many there are. sample: image → bytes and CRC32 of the first and last 4 KiB of its first file."""

    images: int
    sample: dict[str, str]


def record_files(image_index: DatasetIndex) -> FilesRecord:
    """Of at most SAMPLED files, the same ones each time; those that cannot be read are left out."""
    found = {}
    for row in sample_rows(len(image_index.studies), SAMPLED).tolist():
        for path in image_index.files(row)[:1]:
            try:
                found[image_index.studies[row].name] = _ends(path)
            except (OSError, DataError):
                continue
    return {"images": len(image_index.studies), "sample": found}


def changed_files(image_index: DatasetIndex, record: object) -> list[Finding]:
    """What is not as a run's `record_files` says. A record that is none is a finding, too."""
    sample = record.get("sample") if isinstance(record, Mapping) else None
    if not isinstance(sample, Mapping):
        return [Finding("note", "data", "the run does not say what its files were: changes of them cannot be told")]
    paths = {study.name: image_index.files(row)[:1] for row, study in enumerate(image_index.studies)}
    changed, gone = [], []
    for name, was in sample.items():
        try:
            same = [_ends(path) == was for path in paths.get(str(name), ())]
        except (OSError, DataError):
            same = []
        if not same:
            gone.append(str(name))
        elif not all(same):
            changed.append(str(name))
    found = []
    for what, names in (("have other content", changed), ("are not there any more", gone)):
        if names:
            told = f"of {counted(len(sample), 'file')} that the run remembers, {len(names):,} {what}"
            advice = (
                "restore the data, or start a new run: this one would be trained on one set and measured on another"
            )
            found.append(Finding("warning", "data", f"{told}: {some(names, _DISPLAYED)}", advice))
    return found


def empty_files(image_index: DatasetIndex, style: str) -> dict[int, str]:
    """Row → why its files hold no image, by the first bytes of all of them; decoding tells the rest."""
    rows = range(len(image_index.studies))
    progress = Progress(len(rows), "looking at files", style, max(len(rows), 1), unit="image")
    found: dict[int, str] = {}
    try:
        with thread_pool() as pool:
            for first in range(0, len(rows), _PART):
                part = rows[first : first + _PART]
                answers = pool.map(lambda row: _trouble(image_index.files(row)), part)
                found |= {row: reason for row, reason in zip(part, answers) if reason}
                progress.advance(len(part))
    finally:
        progress.close()
    return found


def _trouble(paths: Sequence[Path]) -> str:
    for path in paths:
        try:
            if not read_head(path):
                return f"image '{path}': the file is empty"
        except DataError as error:
            return f"image '{path}': {error}"
        except OSError as error:
            return f"image '{path}': {error.strerror}"
    return ""


def _ends(path: Path) -> str:
    with open_regular(path) as file:
        checksum = zlib.crc32(file.read(_END_BYTES))
        size = file.seek(0, 2)
        file.seek(max(size - _END_BYTES, 0))
        return f"{size} {zlib.crc32(file.read(_END_BYTES), checksum):08x}"
