"""Caches that are damaged, forged, interrupted, written by two at once, or filled by workers that die."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, DataError
from data.cache import building as cache_building
from data.cache import file as cache_file
from data.cache import reader as cache_reader
from data.cache.building import Builder, cached_in_memory, cached_on_disk
from data.cache.file import MAGIC, CacheIndex, DamagedCache, SharedBytes, free_memory, open_cache_file, write_index
from data.loading.loaders import EpochBatchSampler, ImageDataset, ImageLoader, Labels, UnreadableImages
from data.loading.worker_watch import WorkerFailures
from data.study import IMAGE, DatasetIndex, Reader, Study
from data.transforms.images import Preprocess
from tests.data.cache.cached_sources import COUNT, all_inputs, cache_files, loaders_of, write_mixed
from tests.waiting import LIMIT_S
from utils.torch_private import LoaderIterator

ROOT = Path(__file__).resolve().parents[3]
PLAIN, DISK = "DATA.augment=false", "DATA.cache=disk"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """torch looks after its workers every 5 s."""
    monkeypatch.setattr(LoaderIterator._try_get_data, "__defaults__", (0.2,))


@pytest.fixture
def own(tmp_path) -> Path:
    return write_mixed(tmp_path / "data")


@pytest.fixture
def cached(own) -> tuple[Path, Path, dict[int, torch.Tensor]]:
    """(data, their cache's file, what it gives)."""
    found = all_inputs(loaders_of(own, PLAIN, DISK))
    return own, cache_files(own)[0], found


def equal(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[row], other[row]) for row in one)


# ---- damage


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "another file": lambda content: b"\x89PNG" * 100,
    "cut off": lambda content: content[: len(content) // 2],
    "without its first half": lambda content: content[len(content) // 2 :],
    "without a page": lambda content: content[:100] + content[200:],
    "one byte of the first image": lambda content: flipped(content, len(MAGIC)),
    "one byte of the index": lambda content: flipped(content, len(content) - 400),
    "one byte of the footer": lambda content: flipped(content, len(content) - 20),
    "a page of zeros": lambda content: content[:50] + bytes(1000) + content[1050:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cache_is_told_and_made_again(cached, name, caplog):
    own, path, expected = cached
    content = path.read_bytes()
    path.write_bytes(DAMAGES[name](content))
    assert equal(expected, all_inputs(loaders_of(own, PLAIN, DISK)))
    assert "is damaged and is rebuilt" in caplog.text and path.read_bytes() == content
    assert cache_files(own) == [path]


def test_a_pipe_is_no_cache(cached, caplog):
    own, path, expected = cached
    path.unlink()
    os.mkfifo(path)
    assert equal(expected, all_inputs(loaders_of(own, PLAIN, DISK))) and path.is_file()
    assert "a pipe" in caplog.text


def test_damage_that_is_not_looked_at_is_found_when_it_is_read(cached, monkeypatch):
    """Every image is compared with its checksum, once a process."""
    own, path, _ = cached
    monkeypatch.setattr(cache_reader, "_LOOKED_AT", 2)  # the first and the last
    index, _ = open_cache_file(path, COUNT)
    row = int(np.argsort(index.records["offset"])[5])
    path.write_bytes(flipped(path.read_bytes(), len(MAGIC) + int(index.records["offset"][row]) + 100))
    read = loaders_of(own, PLAIN, DISK).train.dataset.dataset_index.read
    for other in set(range(COUNT)) - {row}:
        read(other)
    with pytest.raises(DataError, match=rf"is damaged at its image {row}: delete it"):
        read(row)


@pytest.mark.parametrize("fault", ["outside", "kind", "length", "unreadable", "no reason", "text", "rows"])
def test_a_forged_index_is_refused(cached, fault, caplog):
    """With right checksums, but pointing where nothing is, or at images of no kind."""
    own, path, expected = cached
    index, _ = open_cache_file(path, COUNT)
    images, records, about = int(index.records["length"].sum()), index.records.copy(), dict(index.about)
    content = path.read_bytes()[: len(MAGIC) + images]
    if fault == "outside":
        records["offset"][3] = images
    elif fault == "unreadable":
        del about["unreadable"]
    elif fault == "text":
        about = "text"  # type: ignore[assignment]
    elif fault == "rows":
        records = records[:-1]
    else:
        records["kind" if fault != "length" else "length"][3] = {"kind": 77, "length": 5, "no reason": 0}[fault]
    with path.open("wb") as file:
        file.write(content)
        write_index(file, images, CacheIndex(records, about))
    assert equal(expected, all_inputs(loaders_of(own, PLAIN, DISK)))
    assert "is damaged and is rebuilt" in caplog.text


def test_a_text_that_is_no_json(tmp_path):
    (tmp_path / "x").write_bytes(MAGIC)
    with (tmp_path / "x").open("ab") as file:
        write_index(file, 0, CacheIndex(cache_reader.empty_records(0), {}))
    assert open_cache_file(tmp_path / "x", 0)[0].about == {}
    with pytest.raises(DamagedCache, match="of 1 images"):
        open_cache_file(tmp_path / "x", 1)


# ---- interruptions


def test_an_error_in_the_middle_leaves_nothing(own, monkeypatch):
    append = cache_building._append

    def full(records, rows, encoded, end, write):
        append(records, rows[:3], encoded[:3], end, write)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_building, "_append", full)
    with pytest.raises(ConfigError, match=r"its disk is full\): set DATA.cache_dir"):
        loaders_of(own, DISK)
    assert cache_files(own) == []
    monkeypatch.undo()
    assert all_inputs(loaders_of(own, DISK)) and len(cache_files(own)) == 1


_BUILD = """
import sys, time
from pathlib import Path
from data.cache import building as cache_building
from tests.data.cache.cached_sources import loaders_of
append = cache_building._append
def slow(*arguments):
    end = append(*arguments)
    print("begun", flush=True)
    sys.stdin.readline()
    return end
cache_building._append = slow
loaders_of(Path(sys.argv[1]), "DATA.cache=disk", "DATA.augment=false", "DATA.num_workers=1")
"""


def builder_process(folder: Path) -> subprocess.Popen:
    """A process that builds the cache of a folder and stops in the middle until a line is sent; it has begun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _BUILD, str(folder)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_killed_build_is_no_cache_and_is_cleared_away_later(own):
    process = builder_process(own)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (leftover,) = cache_files(own)
    assert leftover.name.endswith(".tmp")
    plain, again = all_inputs(loaders_of(own, PLAIN)), all_inputs(loaders_of(own, PLAIN, DISK))
    assert list(plain) == list(again) and leftover in cache_files(own)  # it might be another run's
    (path,) = set(cache_files(own)) - {leftover}
    path.unlink()
    os.utime(leftover, (time.time() - 4000,) * 2)
    loaders_of(own, DISK)
    assert cache_files(own) == [path]


def test_two_runs_may_build_at_once(own):
    first, second = builder_process(own), builder_process(own)
    assert len(cache_files(own)) == 2
    reader = loaders_of(own, PLAIN, DISK)  # a third one, which is done before them
    expected = all_inputs(reader)
    content = next(path for path in cache_files(own) if path.suffix == ".cache").read_bytes()
    for process in (first, second):
        process.communicate("\n" * 9, timeout=LIMIT_S)
        assert process.returncode == 0
        assert equal(expected, all_inputs(reader)) and equal(expected, all_inputs(loaders_of(own, PLAIN, DISK)))
    assert [path.read_bytes() == content for path in cache_files(own)] == [True]


def test_a_spawned_worker_refuses_a_cache_that_was_replaced(cached):
    """It opens the file itself; records and bytes would belong to two files."""
    import pickle

    own, _, _ = cached
    read = loaders_of(own, PLAIN, DISK).train.dataset.dataset_index.read
    copy = pickle.loads(pickle.dumps(read))
    np.testing.assert_array_equal(copy(0), read(0))
    later = pickle.loads(pickle.dumps(read))
    with (own / "images" / "00.png").open("ab") as file:
        file.write(b"another content")
    loaders_of(own, PLAIN, DISK)
    with pytest.raises(DataError, match="has become another one"):
        later(0)
    assert read(0) is not None  # the old file is still open


# ---- workers


@dataclass(frozen=True)
class Images(Reader):
    """Drawn images; whoever reads number 40 for the first time dies."""

    marks: Path

    def __call__(self, index: int) -> np.ndarray:
        if index == 40 and not (self.marks / "died").exists():
            (self.marks / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.random.default_rng(index).integers(0, 256, (20, 24), dtype=np.uint8)

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.marks,)


def builder_of(folder: Path, limit: int) -> tuple[Builder, Preprocess]:
    count = 150
    studies = tuple(Study(f"{i}.png", {IMAGE: f"{i}.png"}, np.zeros(1, np.float32)) for i in range(count))
    dataset_index, preprocess = DatasetIndex(("a",), studies, Images(folder)), Preprocess((16, 16), 1, [0.5], [0.25])
    labels = Labels(np.zeros((count, 1), np.float32), np.ones((count, 1), bool))
    bad, batches = UnreadableImages(0), EpochBatchSampler(range(count), 8, True, 0)
    dataset = ImageDataset(dataset_index, preprocess, 0)
    loader = ImageLoader(dataset, labels, batches, bad, 2, failures=WorkerFailures(limit, 60.0))
    return Builder(loader, preprocess, bad, "plain"), preprocess


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_killed_worker_costs_no_image(tmp_path, kind, caplog):
    (tmp_path / "images").mkdir()
    builder, preprocess = builder_of(tmp_path / "images", limit=1)
    created = cached_in_memory(builder) if kind == "ram" else cached_on_disk(builder, tmp_path / "c", tmp_path)
    assert "SIGKILL while it read 40.png" in caplog.text
    for index in range(150):
        np.testing.assert_array_equal(created.read(index), preprocess.fit(builder.dataset_index.read(index)))


def test_a_worker_killed_too_often_leaves_no_cache(tmp_path):
    (tmp_path / "images").mkdir()
    builder, _ = builder_of(tmp_path / "images", limit=0)
    with pytest.raises(DataError, match=r"data workers failed 1 times.*\n.*40\.png"):
        cached_on_disk(builder, tmp_path / "c", tmp_path)
    assert list((tmp_path / "c").iterdir()) == []


# ---- memory


def test_shared_bytes_are_found_again_in_any_chunk():
    sink, rng = SharedBytes(100), np.random.default_rng(0)
    pieces = [rng.integers(0, 256, int(n), dtype=np.uint8) for n in rng.integers(1, 80, 60)]
    for piece in pieces:
        sink.write(piece)
    sink.finish()
    positions = np.cumsum([0, *map(len, pieces)])
    for position, piece in zip(positions.tolist(), pieces):
        np.testing.assert_array_equal(sink(position, len(piece)), piece)
    assert 10 < len(sink._chunks) < 60 and all(len(chunk) >= 100 for chunk in sink._chunks[:-1])


def test_free_memory_is_the_least_of_what_bounds_it(tmp_path, monkeypatch):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = free_memory()
    assert found is not None and 0 < found < machine
    assert cache_file._left_to_group(tmp_path) is None
    for name, text in (("memory.max", "max"), ("memory.current", "600"), ("memory.stat", "anon 5\ninactive_file 50\n")):
        (tmp_path / name).write_text(text)
    assert cache_file._left_to_group(tmp_path) is None  # 'max': no limit
    (tmp_path / "memory.max").write_text("1000\n")
    assert cache_file._left_to_group(tmp_path) == 450
    monkeypatch.setattr(cache_file, "_left_to_group", lambda: 450)
    assert free_memory() == 450


def test_the_progress_is_told_in_images(own, caplog):
    caplog.set_level(logging.INFO)
    loaders_of(own, DISK, "LOGGING.progress=plain")
    assert f"decoding images  {COUNT}/{COUNT}" in caplog.text
