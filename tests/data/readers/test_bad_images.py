"""240 bad or odd images: each is read rightly or is a DataError that names it, with bounded memory; nothing runs."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.errors import DataError
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.readers.images import read_image
from data.sources.image_files import FileReader
from data.study import IMAGE, DatasetIndex, Study
from data.transforms.images import Preprocess
from tests.data.readers.bad_images import COLOUR, GREY, Case, all_cases, encoded, noise, png
from tests.faults import in_child, outside

ALLOWED_MB = 128  # the smallest of the bombs would take 196


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> tuple[Path, list[Case]]:
    folder, found = tmp_path_factory.mktemp("bad"), list(all_cases())
    for case in found:
        (folder / case.name).write_bytes(case.content)
    return folder, found


@pytest.fixture(scope="module")
def walked(cases, tmp_path_factory) -> dict[str, Any]:
    folder, found = cases
    sound = [case.name for case in found if case.must == "read"][::7]
    out = str(tmp_path_factory.mktemp("read"))
    task = {"folder": str(folder), "names": [case.name for case in found], "out": out}
    return {**in_child(__name__, "walk", {**task, "names": sound}, task), "out": Path(out)}


def walk(task: dict[str, Any]) -> dict[str, str]:
    """In the child: read all, save what was read, return the DataError of each other; any other exception ends it."""
    errors = {}
    for name in task["names"]:
        try:
            np.save(f"{task['out']}/{name}.npy", read_image(Path(task["folder"], name)))
        except DataError as error:
            errors[name] = str(error)
    return errors


def fault_of(case: Case, error: str | None, out: Path) -> str | None:
    """What is wrong with how a case was read, or None."""
    if error is not None:
        named = case.name in error
        return None if named and case.must != "read" else f"refused: {error}"
    if case.must == "refuse":
        return "read as an image"
    got, want = np.load(out / f"{case.name}.npy"), case.pixels
    assert want is not None
    if case.must == "survive":
        return None if got.dtype == np.uint8 and got.ndim in (2, 3) else f"{got.dtype} {got.shape}"
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}"
    difference = np.abs(got.astype(float) - want).max()
    return None if difference <= case.tolerance else f"pixels differ by {difference:g}"


def test_each_is_read_rightly_or_refused_by_name(cases, walked):
    _, found = cases
    faults = {}
    for case in found:
        fault = fault_of(case, walked["result"].get(case.name), walked["out"])
        if fault:
            faults[case.name] = fault
    silent = [case for case in found if case.must == "survive" and case.name not in walked["result"]]
    differ = sum(not np.array_equal(np.load(walked["out"] / f"{case.name}.npy"), case.pixels) for case in silent)
    print(f"{len(found)} images of 12 kinds: {Counter(case.must for case in found)}; {len(walked['result'])} refused,")
    print(f"{len(found) - len(walked['result'])} read, {len(faults)} wrongly; JPEG with a flipped bit: {differ} of 10")
    print("are other pixels without any sign, which the format cannot notice")
    assert len(found) == 240 and len({case.name for case in found}) == 240
    assert not faults, "\n".join(f"{name}: {fault}" for name, fault in faults.items())


def test_memory_stays_bounded_and_nothing_is_run_or_read_elsewhere(cases, walked):
    print(f"peak memory grew by {walked['grown_mb']:.0f} MB over reading sound images; {ALLOWED_MB} are allowed")
    assert walked["grown_mb"] < ALLOWED_MB
    assert walked["forbidden"] == []
    assert outside(walked["opened"], cases[0], walked["out"]) == []


def test_no_flipped_bit_of_a_png_changes_a_pixel(tmp_path):
    """All bits of two small files, 400 of a smooth one: Pillow alone read 279 of 2,000 such as other pixels.

    It leaves the checksums of IDAT unread and stops at the last row, before the checksum of the compressed data.
    """
    rng, path = np.random.default_rng(0), tmp_path / "a.png"
    grey, deep = noise(rng)[:9, :9], noise(rng, 3, high=65536)[:5, :5]
    smooth = np.sort(rng.integers(0, 256, (300, 400), dtype=np.uint8), axis=1)
    files = ((png(grey, GREY), grey), (png(deep, COLOUR, 16), deep), (encoded(Image.fromarray(smooth), "PNG"), smooth))
    counts: Counter[str] = Counter()
    for content, pixels in files:
        count = 8 * len(content)
        for bit in range(count) if count < 9999 else rng.integers(0, count, 400).tolist():
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            counts[outcome(path, pixels)] += 1
    print(f"{counts.total()} single flipped bits of three PNG files: {dict(counts)}")
    assert set(counts) == {"refused"} and counts.total() > 1000


def outcome(path: Path, pixels: np.ndarray) -> str:
    try:
        got = read_image(path)
    except DataError:
        return "refused"
    return "same" if np.array_equal(got, pixels) else "differs"


def test_the_loader_names_each_bad_image_once_and_delivers_the_rest(cases, walked, caplog):
    caplog.set_level(logging.ERROR)
    folder, found = cases
    names = tuple(case.name for case in found)
    dataset_index = DatasetIndex(
        ("a",), tuple(Study(name, {IMAGE: name}, np.zeros(1, np.float32)) for name in names), FileReader(folder, names)
    )
    ones = np.ones((len(names), 1))
    bad = UnreadableImages(len(names))
    dataset = ImageDataset(dataset_index, Preprocess((16, 16), 1, [0.5], [0.25]), seed=0)
    batches = EpochBatchSampler(np.arange(len(names)), 16, shuffle=True, seed=0)
    loader = ImageLoader(dataset, Labels(ones.astype(np.float32), ones.astype(bool)), batches, bad)
    delivered: Counter[int] = Counter()
    for epoch in range(2):
        for _, batch in loader.epoch(epoch):
            if batch is not None:
                assert np.isfinite(batch.inputs.image.numpy()).all()
                delivered.update(batch.index.tolist())
    refused = {names.index(name) for name in walked["result"]}
    print(f"two epochs: {len(bad.reasons)} images named once each, {len(delivered)} delivered twice")
    assert set(bad.reasons) == refused and all(names[index] in reason for index, reason in bad.reasons.items())
    assert set(delivered) == set(range(len(names))) - refused and set(delivered.values()) == {2}
