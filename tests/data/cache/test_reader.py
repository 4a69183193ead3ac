"""Training from a cache: the same inputs, whatever the images are, and whatever becomes of their files."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, DataError
from data.cache import building as cache_building
from data.cache import reader as cache_reader
from data.cache.reader import CachedReader, Encoder, encode
from data.cache.stamps import stamps
from data.transforms.images import Preprocess
from data.transforms.volumes import VolumePreprocess
from tests.data.cache.cached_sources import (
    COUNT,
    all_inputs,
    cache_files,
    deep,
    draw,
    inputs,
    loaders_of,
    write_mixed,
)
from tests.waiting import LIMIT_S

KINDS = ("ram", "disk")
PLAIN = "DATA.augment=false"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed") / "data")


@pytest.fixture
def own(mixed, tmp_path) -> Path:
    """A copy that a test may change; times of change are kept."""
    shutil.copytree(mixed, tmp_path / "data", ignore=shutil.ignore_patterns(".hyb*"))
    return tmp_path / "data"


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """Every image file that is decoded from now on."""
    from data.sources import image_files

    found = []
    for name in ("read_image", "read_reduced"):
        original = getattr(image_files, name)
        monkeypatch.setattr(image_files, name, lambda path, *a, f=original: found.append(path) or f(path, *a))
    return found


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor], deviation: float = 1 / 65535) -> bool:
    """Equal order; bit for bit where files have 8 bits, else within `deviation` of the range (std is at least 0.2)."""
    assert list(one) == list(other)
    return all(
        (one[row] - other[row]).abs().max() <= deviation / 0.2 if deep(row) else torch.equal(one[row], other[row])
        for row in one
    )


# ---- inputs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_those_without_a_cache(own, kind, mode, channels):
    options = (PLAIN, f"DATA.resize={mode}", f"MODEL.in_channels={channels}", "DATA.mean=[0.4]", "DATA.std=[0.2]")
    plain = all_inputs(loaders_of(own, *options))
    cached = all_inputs(loaders_of(own, *options, f"DATA.cache={kind}"))
    assert len(plain) == COUNT and same(plain, cached)
    assert any(not torch.equal(plain[row], cached[row]) for row in plain if deep(row))  # 16 bits are rounded


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_augmented_epochs_are_those_without_a_cache(own, kind, workers):
    """Any epoch, from its beginning or its middle, as a resumed run asks for it, by loaders built anew."""
    plain = loaders_of(own)
    for _ in range(2):
        cached = loaders_of(own, f"DATA.cache={kind}", f"DATA.num_workers={workers}")
        for epoch, start in ((0, 0), (3, 0), (3, 2)):
            # the warp spreads the rounding of float images over their contrast, which is stretched by a tenth
            assert same(inputs(plain.train, epoch, start), inputs(cached.train, epoch, start), 3 / 65535)


def test_a_resumed_run_from_the_same_cache_is_bit_for_bit_the_same(own):
    for kind in KINDS:
        first, again = (loaders_of(own, f"DATA.cache={kind}") for _ in range(2))
        whole, rest = list(first.train.epoch(2)), list(again.train.epoch(2, 1))
        assert len(rest) == len(whole) - 1 > 0
        assert all(torch.equal(a.inputs.image, b.inputs.image) for (_, a), (_, b) in zip(whole[1:], rest, strict=True))


def test_what_describes_the_data_is_measured_on_the_files(own):
    plain = loaders_of(own).describe()
    assert plain["training_data"]["ranges"]["height"] == [20, 96]
    for kind in KINDS:
        assert loaders_of(own, f"DATA.cache={kind}").describe() == plain


def test_volumes(tmp_path):
    from data.phantom.volumes import write_phantom_volumes

    write_phantom_volumes(tmp_path / "v", 12, 64)
    options = ("DATA.image_size=[8, 16, 16]", "DATA.spacing_mm=[9, 8, 7]", "MODEL.in_channels=1")
    for augment in ("false", "true"):
        plain = all_inputs(loaders_of(tmp_path / "v", *options, f"DATA.augment={augment}"))
        assert len(plain) == 12
        for kind in KINDS:
            loaders = loaders_of(tmp_path / "v", *options, f"DATA.augment={augment}", f"DATA.cache={kind}")
            cached = all_inputs(loaders)
            assert list(plain) == list(cached)
            # STD's mean is 0.3; an augmentation stretches by a tenth
            assert all((plain[row] - cached[row]).abs().max() <= 1.2 / 65535 / 0.3 for row in plain)
    fitted, source = loaders.val.dataset.dataset_index.read(3), loaders.source.read(3)
    assert fitted.spacing_mm == VolumePreprocess((8, 16, 16), 1, [0.5], [0.5], (9, 8, 7)).fit(source).spacing_mm


def test_an_npz_is_kept_beside_it(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_images": rng.integers(0, 256, (9, 28, 28, 3), dtype=np.uint8) for split in ("train", "val", "test")
    }
    labels = {f"{split}_labels": rng.integers(0, 2, (9, 1)) for split in ("train", "val", "test")}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    plain = all_inputs(loaders_of(tmp_path / "x.npz", PLAIN))
    for kind in KINDS:
        cached = all_inputs(loaders_of(tmp_path / "x.npz", PLAIN, f"DATA.cache={kind}"))
        assert list(plain) == list(cached) and all(torch.equal(plain[row], cached[row]) for row in plain)
    assert len(cache_files(tmp_path)) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(9, 30), (30, 9, 3), (16, 12), (16, 12, 3)])
@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_a_fitted_image_is_left_as_it_is(dtype, shape, mode):
    numbers = np.random.default_rng(0).random(shape)
    image = numbers.astype(dtype) if dtype == np.float32 else (numbers * 255).astype(dtype)
    for channels in (1, 3):
        preprocess = Preprocess((16, 12), channels, [0.5], [0.25], mode)
        fitted = preprocess.fit(image)
        np.testing.assert_array_equal(preprocess.fit(fitted), fitted)
        np.testing.assert_array_equal(preprocess(fitted), preprocess(image))


def test_what_is_kept_of_an_image():
    """uint8 comes back as it is; floats within half of 1/65535, 0 and 1 exactly, and what lies outside is cut off."""
    rng, size = np.random.default_rng(1), (5, 4)
    grey, colour = (rng.integers(0, 256, (*size, c), dtype=np.uint8) for c in (1, 3))
    floats = rng.random((*size, 1)).astype(np.float32)
    floats[0, :, 0] = 0, 1, -1e-7, 1 + 1e-6
    encoder = Encoder(Preprocess(size, 3, [0.5], [0.5]))
    batch = encoder.collate([encode(encoder.preprocess.fit(image)) for image in (grey, floats, colour)])
    kinds, spacings, kept, _ = zip(*batch.split(size))
    assert kinds == (1, 3, 2) and not np.any(spacings) and max(map(len, kept)) <= encoder.most_bytes
    np.testing.assert_array_equal(kept[0].reshape(5, 4, 1), grey)
    np.testing.assert_array_equal(kept[2].reshape(5, 4, 3), colour)
    values = kept[1].view("<u2").reshape(5, 4, 1).astype(np.float64) / 65535
    assert np.abs(values - floats).max() <= 0.5 / 65535 + 1e-6
    assert values[0, :, 0].tolist() == [0, 1, 0, 1]


# ---- when it is made


def test_an_image_is_decoded_once(own, reads):
    loaders = loaders_of(own, "DATA.cache=disk")
    assert set(reads) == {own / "images" / f"{number:02d}.png" for number in range(COUNT)}
    reads.clear()
    for _ in range(3):
        all_inputs(loaders)
    again = loaders_of(own, "DATA.cache=disk", "TRAIN.seed=7", "DATA.mean=[0.1]", "DATA.std=[0.3]", PLAIN)
    all_inputs(again)
    assert not reads and len(cache_files(own)) == 1
    all_inputs(loaders_of(own, "DATA.cache=ram"))
    assert len(set(reads)) == COUNT and len(cache_files(own)) == 1


@pytest.mark.parametrize("change", ["content", "size"])
def test_a_changed_file_is_read_again(own, change, caplog):
    caplog.set_level(logging.INFO)
    loaders_of(own, "DATA.cache=disk")
    path = own / "images" / "03.png"
    before = path.stat()
    if change == "content":
        draw(path, 8)
    else:
        draw(path, 9)  # another length, the old time
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size != before.st_size
    cached = all_inputs(loaders_of(own, "DATA.cache=disk", PLAIN))
    assert same(all_inputs(loaders_of(own, PLAIN)), cached)
    assert f"the files of 1 of {COUNT} images have changed" in caplog.text and len(cache_files(own)) == 1


def test_other_settings_have_a_cache_of_their_own(own, reads):
    for options in ([], ["DATA.image_size=12"], ["DATA.resize=letterbox"], ["MODEL.in_channels=1"]):
        options += ["DATA.mean=[0.4]", "DATA.std=[0.2]", PLAIN]
        assert same(all_inputs(loaders_of(own, *options)), all_inputs(loaders_of(own, *options, "DATA.cache=disk")))
    assert len(cache_files(own)) == 4
    reads.clear()
    loaders_of(own, "DATA.cache=disk")
    assert not reads


def test_other_decoders_make_it_anew(own, monkeypatch, caplog, reads):
    caplog.set_level(logging.INFO)
    loaders_of(own, "DATA.cache=disk")
    reads.clear()
    monkeypatch.setattr(cache_reader.metadata, "version", lambda name: "99" if name == "pillow" else "1")
    loaders_of(own, "DATA.cache=disk")
    assert len(set(reads)) == COUNT and "→ 99" in caplog.text and len(cache_files(own)) == 1
    monkeypatch.undo()
    monkeypatch.setattr(cache_reader, "DECODING", cache_reader.DECODING + 1)
    loaders_of(own, "DATA.cache=disk")
    assert len(cache_files(own)) == 2


# ---- images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_images_are_remembered(own, kind, workers, caplog, reads):
    for number in (1, 17):
        path = own / "images" / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    options = ("DATA.max_bad_images=2", f"DATA.num_workers={workers}", PLAIN)
    plain = loaders_of(own, *options)
    expected, reasons = all_inputs(plain), dict(plain.train.bad.reasons)
    assert set(reasons) == {1, 17} and len(expected) == COUNT - 2
    for _ in range(2):
        reads.clear()
        caplog.clear()
        cached = loaders_of(own, *options, f"DATA.cache={kind}")
        assert same(expected, all_inputs(cached)) and cached.train.bad.reasons == reasons
        with pytest.raises(DataError) as error:
            cached.val.dataset.dataset_index.read(17)
        assert str(error.value) == reasons[17]
        assert caplog.text.count("image left out") == 2
    assert not reads or kind == "ram"
    if kind == "disk":  # one of them mended
        draw(own / "images" / "17.png", 17)
        assert same(all_inputs(loaders_of(own, *options)), all_inputs(loaders_of(own, *options, "DATA.cache=disk")))


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_unreadable_images_leave_no_cache(own, kind):
    (own / "images" / "05.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 images cannot be read.*\n.*05\.png"):
        loaders_of(own, f"DATA.cache={kind}")
    assert kind == "ram" or cache_files(own) == []


# ---- places and room


def test_the_folder_can_be_named(own, tmp_path):
    loaders_of(own, "DATA.cache=disk", f"DATA.cache_dir={tmp_path / 'a' / 'b'}")
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1 and not (own / ".hybridmednet_cache").exists()


def test_two_sources_share_a_folder(own, tmp_path):
    other = write_mixed(tmp_path / "other")
    draw(other / "images" / "00.png", 5)
    where = ("DATA.cache=disk", f"DATA.cache_dir={tmp_path / 'caches'}", PLAIN)
    for _ in range(2):
        for folder in (own, other):
            assert same(all_inputs(loaders_of(folder, PLAIN)), all_inputs(loaders_of(folder, *where)))
    assert len(list((tmp_path / "caches").iterdir())) == 2


def test_a_folder_that_cannot_be_written(own, tmp_path):
    (own / ".hybridmednet_cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot write into '.*hybridmednet_cache'.*set DATA.cache_dir"):
        loaders_of(own, "DATA.cache=disk")
    (own / ".hybridmednet_cache").unlink()
    (own / ".hybridmednet_cache").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match="link that leaves data_dir"):
        loaders_of(own, "DATA.cache=disk")
    assert not list(tmp_path.glob("*.cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_room_is_told_in_numbers(own, kind, monkeypatch):
    usage = shutil.disk_usage(own)._replace(free=5000)
    monkeypatch.setattr(cache_building.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(cache_building, "free_memory", lambda: 5000)
    with pytest.raises(ConfigError, match=rf"DATA.cache={kind} needs about 0.00 GB .*, 0.00 GB are free"):
        loaders_of(own, f"DATA.cache={kind}")
    assert kind == "ram" or cache_files(own) == []


def test_settings_that_contradict(own):
    with pytest.raises(ConfigError, match=r"DATA.cache_dir is for DATA.cache 'disk', not 'ram'"):
        loaders_of(own, "DATA.cache=ram", "DATA.cache_dir=x")
    with pytest.raises(ConfigError, match="cache"):
        loaders_of(own, "DATA.cache=tape")


def test_a_source_without_files_is_refused(own):
    from dataclasses import replace

    dataset_index = loaders_of(own).source
    with pytest.raises(
        ConfigError,
        match=r"the data source does not report the files of 'images/00.png', so changes cannot be detected",
    ):
        stamps(replace(dataset_index, read=lambda index: np.zeros((4, 4), np.uint8)))


# ---- processes


def _digest(reader: CachedReader, queue) -> None:
    queue.put([float(np.asarray(reader(row), np.float64).sum()) for row in range(COUNT)])


@pytest.mark.parametrize(
    ("kind", "start"),
    [("ram", "fork"), ("disk", "fork"), ("ram", "spawn"), pytest.param("disk", "spawn", marks=pytest.mark.slow)],
)
def test_other_processes_read_the_same_memory(own, kind, start):
    reader = loaders_of(own, f"DATA.cache={kind}").train.dataset.dataset_index.read
    here = [float(np.asarray(reader(row), np.float64).sum()) for row in range(COUNT)]
    context = torch.multiprocessing.get_context(start)
    queue = context.Queue()
    process = context.Process(target=_digest, args=(reader, queue))
    process.start()
    there = queue.get(timeout=LIMIT_S)
    process.join(LIMIT_S)
    assert here == there and process.exitcode == 0
    if kind == "ram":
        assert all(chunk.is_shared() for chunk in reader._kept._chunks) and len(reader._kept._chunks) == 1


def test_memory_is_shared_in_several_chunks(own, monkeypatch):
    monkeypatch.setattr(cache_building, "_LEAST_CHUNK", 1000)
    monkeypatch.setattr(cache_building, "_MOST_CHUNKS", 5)
    loaders = loaders_of(own, "DATA.cache=ram", PLAIN)
    assert 3 < len(loaders.val.dataset.dataset_index.read._kept._chunks) <= 10
    assert same(all_inputs(loaders_of(own, PLAIN)), all_inputs(loaders))
