"""Images of the same content are told, in every format: what was put there is known, so what must be found is, too."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from configs.default_config import Config
from data.builder import open_data, split_data
from data.sources import identical_files
from data.sources.formats import open_source
from data.sources.identical_files import find_identical
from data.sources.image_files import FileReader
from data.study import IMAGE, DatasetIndex, Study
from tests.data.sources.writers import medmnist


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8), dtype=np.uint8)).save(path)


def about_identical(dataset_index: DatasetIndex) -> list[str]:
    return [note for note in dataset_index.notes if "identical" in note or "copies" in note]


def test_class_folders_with_splits(tmp_path):
    for split in ("train", "test"):
        for position, kind in enumerate(("covid", "normal")):
            for number in range(3):
                noise(tmp_path / split / kind / f"{number}.png", number + 10 * position + 100 * (split == "test"))
    noise(tmp_path / "test" / "covid" / "again.png", 1)  # of train/covid
    noise(tmp_path / "train" / "normal" / "other.png", 2)  # of train/covid
    noise(tmp_path / "train" / "normal" / "twice.png", 10)  # of train/normal
    assert about_identical(open_source(tmp_path)) == [
        "1 identical images stand in both train and test: scores on test are flattered "
        "(train/covid/1.png = test/covid/again.png)",
        "1 identical images have different labels, of which one at most is right: "
        "train/covid/2.png (covid) = train/normal/other.png (normal)",
        "1 images are copies of others with the same labels: train/normal/0.png = train/normal/twice.png",
    ]
    assert about_identical(open_source(tmp_path, check_duplicates=False)) == []


def test_a_table_with_patients(tmp_path):
    rows = ["image,patient_id,A,B"]
    for number, content in enumerate((0, 1, 2, 0, 1, 2, 6)):
        noise(tmp_path / f"{number}.png", content)
        patient = f"p{number}" if number != 4 else "p1"
        labels = {3: "1,0", 5: ",1"}.get(number, "0,1")  # of image 5 A is unknown, which contradicts nothing
        rows.append(f"{number}.png,{patient},{labels}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    assert about_identical(open_source(tmp_path)) == [
        "1 identical images have different labels, of which one at most is right: 0.png (B) = 3.png (A)",
        "2 identical images are said to be of different patients: 0.png (patient p0) = 3.png (patient p3), "
        "2.png (patient p2) = 5.png (patient p5)",
        "1 images are copies of others with the same labels: 1.png = 4.png",
    ]


def test_volumes_and_series(tmp_path):
    """A series is the same where its slices are, whatever they are called."""
    for kind in ("a", "b"):
        for number in range(2):
            (tmp_path / kind).mkdir(exist_ok=True)
            voxels = np.random.default_rng(number * (kind == "b") + number).normal(size=(4, 5, 6)).astype(np.float32)
            nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / kind / f"{number}.nii")
        for name in ("s1", "s2"):
            (tmp_path / kind / name).mkdir()
    for kind, name, contents in (("a", "s1", "xy"), ("b", "s1", "yx"), ("a", "s2", "xz"), ("b", "s2", "x")):
        for position, content in enumerate(contents):
            slice_content = bytes(128) + b"DICM" + content.encode() * 100
            (tmp_path / kind / name / f"{position}.dcm").write_bytes(slice_content)
    (note,) = about_identical(open_source(tmp_path, volumes=True))
    assert note.startswith("2 identical images have different labels") and "a/0.nii (a) = b/0.nii (b)" in note
    assert "a/s1 (a) = b/s1 (b)" in note


def test_an_npz_whose_labels_contradict(tmp_path):
    same = np.random.default_rng(5).integers(0, 256, (3, 6, 7), dtype=np.uint8)
    same[1] = same[0]
    notes = about_identical(open_source(medmnist(tmp_path / "a.npz", [[0], [1], [2]], train_images=same)))
    assert notes[-1].endswith("one at most is right: train[0] (class_0) = train[1] (class_1)")


def test_what_a_draw_tears_apart_is_warned_of(tmp_path, caplog):
    for kind in ("a", "b"):
        for number in range(20):
            noise(tmp_path / kind / f"{number:02d}.png", number % 10 + 10 * (kind == "b"))
    config = Config.from_overrides([f"DATA.data_dir={tmp_path}"])
    dataset_index = open_data(config)
    assert len(dataset_index.identical) == 20
    caplog.clear()
    assignment = split_data(config, dataset_index)
    torn = sum(len({assignment[row] for row in rows}) > 1 for rows in dataset_index.identical)
    lines = [
        record.getMessage() for record in caplog.records if "identical images stand in both" in record.getMessage()
    ]
    assert torn > 0 and sum(int(line.split()[0]) for line in lines) == torn
    caplog.clear()
    quiet = Config.from_overrides([f"DATA.data_dir={tmp_path}", "DATA.check_duplicates=false"])
    split_data(quiet, open_data(quiet))
    assert "identical" not in caplog.text


def index_of(folder: Path, names: list[str]) -> DatasetIndex:
    studies = tuple(Study(name, {IMAGE: name}, np.zeros(1, np.float32)) for name in names)
    return DatasetIndex(("a",), studies, FileReader(folder, tuple(names)))


def test_files_that_agree_in_size_and_at_their_ends(tmp_path):
    names = [f"{number}" for number in range(6)]
    for number, name in enumerate(names):
        content = bytearray(b"\7" * 50_000)
        content[25_000] = number // 2 if number < 4 else number
        (tmp_path / name).write_bytes(content)
    assert find_identical(index_of(tmp_path, names)) == ((0, 1), (2, 3))


def test_what_cannot_be_read_is_left_to_its_reader(tmp_path):
    for name in ("empty", "nothing", "a", "b"):
        (tmp_path / name).write_bytes(b"" if name in ("empty", "nothing") else b"same")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    names = ["empty", "nothing", "pipe", "missing", "folder", "a", "b"]
    assert find_identical(index_of(tmp_path, names)) == ((5, 6),)
    assert find_identical(replace(index_of(tmp_path, names), read=lambda index: np.zeros((2, 2)))) == ()


def test_the_answer_is_kept_while_no_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(identical_files, "KEPT_FROM", 3)
    searches = []
    search = identical_files._search
    monkeypatch.setattr(identical_files, "_search", lambda *a: searches.append(1) or search(*a))
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    for name in "abcd":
        (data / name).write_bytes(b"same" if name in "ab" else name.encode() * 4)
    for _ in range(2):
        assert find_identical(index_of(data, list("abcd")), cache) == ((0, 1),)
    assert len(searches) == 1
    before = (data / "c").stat()
    (data / "c").write_bytes(b"same")
    os.utime(data / "c", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_identical(index_of(data, list("abcd")), cache) == ((0, 1, 2),) and len(searches) == 2
    (kept,) = cache.iterdir()
    good = kept.read_text()
    for damaged in (
        "",
        "[]",
        "{}",
        good[:-3],
        good.replace("[[0, 1, 2]]", "[[0, 99]]"),
        good.replace("[[0, 1, 2]]", "[[0]]"),
    ):
        kept.write_text(damaged)
        assert find_identical(index_of(data, list("abcd")), cache) == ((0, 1, 2),)
    assert len(searches) == 8


def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(identical_files, "KEPT_FROM", 2)
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    assert find_identical(index_of(tmp_path, ["a", "b"]), tmp_path / "a" / "no folder") == ((0, 1),)


@pytest.mark.parametrize("given", [None, "/somewhere"])
def test_the_users_cache_folder(monkeypatch, given):
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    found = identical_files.user_cache_folder()
    assert found is not None and str(found).startswith(given or "/home/x/.cache")
