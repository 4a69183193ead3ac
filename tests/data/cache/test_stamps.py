"""Whether a cache sees that files have changed: whatever they did to size and time, and without decoding in vain."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import CacheError, ConfigError
from data.cache import stamps as cache_stamps
from tests.data.cache.cached_sources import COUNT, all_inputs, cache_files, draw, inputs, loaders_of, write_mixed

PLAIN, DISK, CONTENT = "DATA.augment=false", "DATA.cache=disk", "DATA.cache_check=content"
LENGTH = 20_000


def padded(path: Path, number: int) -> None:
    """A drawn image in a file of LENGTH bytes: what follows PNG's IEND and JPEG's EOI is left alone."""
    draw(path, number)
    path.write_bytes(path.read_bytes().ljust(LENGTH, b"\0"))


@pytest.fixture
def own(tmp_path, caplog) -> Path:
    """Data with a cache, all of whose files have one size and one time of change."""
    caplog.set_level(logging.INFO)
    folder = write_mixed(tmp_path / "data")
    for number in range(COUNT):
        path = folder / "images" / f"{number:02d}.png"
        padded(path, number)
        os.utime(path, (1e9, 1e9))
    loaders_of(folder, PLAIN, DISK)
    caplog.clear()
    return folder


def exchange(path: Path, number: int) -> None:
    before = path.stat()
    padded(path, number)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def equal(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.allclose(one[row], other[row], atol=1e-3) for row in one)


def test_content_that_was_exchanged_under_the_old_size_and_time(own, caplog):
    exchange(own / "images" / "05.png", 10)
    exchange(own / "images" / "07.png", 11)
    cached = all_inputs(loaders_of(own, PLAIN, DISK))
    assert equal(cached, all_inputs(loaders_of(own, PLAIN)))
    assert f"the files of 2 of {COUNT} images have changed" in caplog.text


def test_two_files_that_changed_places(own, caplog):
    one, other = own / "images" / "05.png", own / "images" / "06.png"
    one.rename(own / "images" / "x.png")
    other.rename(one)
    (own / "images" / "x.png").rename(other)
    assert equal(all_inputs(loaders_of(own, PLAIN, DISK)), all_inputs(loaders_of(own, PLAIN)))
    assert f"the files of 2 of {COUNT} images have changed" in caplog.text


@pytest.mark.parametrize("change", ["copied", "touched"])
def test_files_that_only_look_changed_are_compared_once_and_not_decoded_again(own, tmp_path, change, caplog):
    (cache,) = cache_files(own)
    content = cache.read_bytes()
    if change == "copied":  # everything has another ctime and inode
        shutil.copytree(own, tmp_path / "copy")
        shutil.rmtree(own)
        (tmp_path / "copy").rename(own)
    else:
        (own / "images" / "05.png").touch()
    expected = all_inputs(loaders_of(own, PLAIN))
    assert equal(all_inputs(loaders_of(own, PLAIN, DISK)), expected)
    count = COUNT if change == "copied" else 1
    assert f"the content of the files of {count} images is compared" in caplog.text and "rebuilt" not in caplog.text
    assert cache.read_bytes() == content and cache.with_suffix(".stamps") in cache_files(own)
    caplog.clear()
    loaders_of(own, PLAIN, DISK)
    assert "is compared" not in caplog.text
    exchange(own / "images" / "09.png", 14)
    assert equal(all_inputs(loaders_of(own, PLAIN, DISK)), all_inputs(loaders_of(own, PLAIN)))
    assert f"the files of 1 of {COUNT} images have changed" in caplog.text
    assert cache_files(own) == [cache]


@pytest.mark.parametrize("damage", ["cut", "flipped", "of another cache"])
def test_damaged_notes_are_not_believed(own, damage, caplog):
    (own / "images" / "05.png").touch()
    loaders_of(own, PLAIN, DISK)
    notes = next(path for path in cache_files(own) if path.suffix == ".stamps")
    content = bytearray(notes.read_bytes())
    content[{"of another cache": 3}.get(damage, 90)] ^= 1
    notes.write_bytes(content[:-7] if damage == "cut" else content)
    caplog.clear()
    loaders_of(own, PLAIN, DISK)
    assert "the content of the files of 1 images is compared" in caplog.text


def test_notes_that_cannot_be_written_cost_a_comparison(own, caplog, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache_stamps, "write_atomically", refuse)
    (own / "images" / "05.png").touch()
    for _ in range(2):
        caplog.clear()
        loaders_of(own, PLAIN, DISK)
        assert "is compared with the cache" in caplog.text and "cannot be noted" in caplog.text


def test_the_check_by_content_trusts_no_times(own, caplog, monkeypatch):
    """As on a file system that does not keep ctime."""
    stamp = cache_stamps._stamp
    monkeypatch.setattr(cache_stamps, "_stamp", lambda path: "\0".join(stamp(path).split("\0")[:3]))
    loaders_of(own, PLAIN, DISK)
    exchange(own / "images" / "05.png", 10)
    caplog.clear()
    loaders_of(own, PLAIN, DISK)
    assert "have changed" not in caplog.text  # what it is for
    assert equal(all_inputs(loaders_of(own, PLAIN, DISK, CONTENT)), all_inputs(loaders_of(own, PLAIN)))
    assert f"the files of 1 of {COUNT} images have changed" in caplog.text
    with pytest.raises(ConfigError, match=r"DATA\.cache_check is for DATA\.cache 'disk', not 'none'"):
        loaders_of(own, CONTENT)


def test_unreadable_images_are_no_change(own, caplog):
    (own / "images" / "05.png").write_bytes(b"no image")
    options = (PLAIN, DISK, CONTENT, "DATA.max_bad_images=1")
    for _ in range(2):
        caplog.clear()
        loaders_of(own, *options)
    assert "have changed" not in caplog.text and "left out (1 of at most 1)" not in caplog.text


def test_series_are_compared_by_all_their_slices(tmp_path):
    from data.readers.digests import digest_of_all

    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode() * 9)
    whole = digest_of_all(paths)
    assert digest_of_all(paths[:2]) != whole != digest_of_all([*paths, tmp_path / "missing"])
    paths[1].write_bytes(b"x" * 9)
    assert digest_of_all(paths) != whole
    paths[1].write_bytes(b"b" * 9)
    assert digest_of_all(paths) == whole


# ---- truncated while it is read


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_that_is_truncated_while_it_is_read_ends_the_run_with_one_line(own, workers):
    """A mapped file would end the process by SIGBUS; and it is no image's fault, however many may be bad."""
    loaders = loaders_of(own, PLAIN, DISK, f"DATA.num_workers={workers}", "DATA.max_bad_images=99")
    inputs(loaders.train)
    (path,) = cache_files(own)
    os.truncate(path, 100)
    with pytest.raises(CacheError, match=r"^the cache '.*' was truncated while it is read: start again \(--resume\)"):
        inputs(loaders.train, 1)
    assert loaders.train.bad.reasons == {}
    assert equal(all_inputs(loaders_of(own, PLAIN, DISK)), all_inputs(loaders_of(own, PLAIN)))


def test_a_process_that_opens_it_after_that_is_told_so(own):
    read = loaders_of(own, PLAIN, DISK).train.dataset.dataset_index.read
    later = pickle.loads(pickle.dumps(read))
    (path,) = cache_files(own)
    os.truncate(path, 100)
    with pytest.raises(CacheError, match="has become another one"):
        later(0)
    os.truncate(path, 0)
    with pytest.raises(CacheError, match="has become another one"):
        pickle.loads(pickle.dumps(read))(0)
    path.unlink()
    with pytest.raises(CacheError, match="cannot open the cache"):
        pickle.loads(pickle.dumps(read))(0)
    assert np.asarray(later.size).tolist() == [16, 16]
