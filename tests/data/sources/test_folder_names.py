"""Folders and files as they come out of zips, network drives and other systems: what is a class, what a name means."""

import unicodedata
from collections import Counter

import pytest

from configs.errors import DataError
from data.sources.formats import open_folders, open_source, recognise
from data.sources.image_files import ImageFiles
from data.sources.unlabelled import open_unlabelled
from tests.data.sources.writers import image, images, opened

# Written by: the Mac's Finder into zips, Jupyter, Synology, QNAP, Windows, ext4, git, Python.
SYSTEM = [
    "__MACOSX",
    ".ipynb_checkpoints",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
]
SYSTEM += ["lost+found", ".git", "__pycache__", ".Trash-1000"]


@pytest.mark.parametrize("name", SYSTEM)
def test_a_folder_that_a_system_writes_is_no_class(tmp_path, name):
    images(tmp_path, "a/1.png b/2.png b/3.png")
    image(tmp_path / name / "a" / "1.png")  # thumbnails and copies are images
    image(tmp_path / "a" / name / "1.png")
    index = open_source(tmp_path)
    assert index.class_names == ("a", "b") and len(index.studies) == 3
    assert any(f"left aside: {name}" in note or f", {name}" in note for note in index.notes)
    assert [item.name for item in open_unlabelled([tmp_path], False)[1]] == ["a/1.png", "b/2.png", "b/3.png"]
    assert any(name in note for note in open_unlabelled([tmp_path], False)[0].notes)


def test_hidden_files_are_told(tmp_path):
    images(tmp_path, "a/1.png b/2.png")
    (tmp_path / "a" / "._1.png").write_bytes(b"\0\5\x16\7")  # AppleDouble
    index = open_source(tmp_path)
    assert len(index.studies) == 2 and any("hidden" in note and "a/._1.png" in note for note in index.notes)


def test_an_empty_folder_is_no_class(tmp_path):
    images(tmp_path, "a/1.png b/2.png")
    (tmp_path / "c" / "deep").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "d" / "desktop.ini").write_bytes(b"x")
    index = open_source(tmp_path)
    assert index.class_names == ("a", "b")
    assert {f"class folder '{name}' is empty, and no class" for name in "cd"} <= set(index.notes)
    assert open_source(tmp_path, class_names=["c", "b", "a"]).class_names == ("c", "b", "a")
    (tmp_path / "b" / "2.png").unlink()
    with pytest.raises(DataError, match="1 class folders with images"):
        open_folders(tmp_path)


@pytest.mark.parametrize("folder", ["c", "train/c"])
def test_a_class_whose_files_are_of_another_format_is_not_lost(tmp_path, folder):
    prefix = folder.rpartition("/")[0]
    images(tmp_path, " ".join(f"{prefix}/{name}".lstrip("/") for name in ("a/1.png", "b/2.png")))
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "1.bmp").write_bytes(b"BM")
    with pytest.raises(DataError, match=rf"'{folder}'.*1 files and no images.*1\.bmp.*Convert them, or move"):
        open_folders(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("Mass", "mass", "case"),
        ("Mass", "Mass ", "only the second ends with a blank"),
        ("big_mass", "big mass", "LOW LINE"),
        (unicodedata.normalize("NFC", "né"), unicodedata.normalize("NFD", "né"), "Unicode form"),
        ("Mass", "Ｍass", "FULLWIDTH"),
        ("Mass", "Ma\u200bss", "ZERO WIDTH"),
    ],
)
def test_two_spellings_of_a_class_are_told_apart(tmp_path, one, other, words):
    images(tmp_path, "x/0.png")
    for number, name in enumerate((one, other)):
        image(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError, match=words):
        open_source(tmp_path)


def test_names_that_differ_in_more_are_two_classes(tmp_path):
    images(tmp_path, "ER+/1.png ER-/2.png ER/3.png O/4.png 0/5.png")
    assert open_source(tmp_path).class_names == ("0", "ER", "ER+", "ER-", "O")


@pytest.mark.parametrize(
    "names",
    [
        "train val test",
        "TRAIN Valid Testing",
        "Training validation TEST",
        "train_set dev test-set",
        "Train Development Test",
        "训练集 验证集 测试集",
    ],
)
def test_split_folders_by_whatever_name(tmp_path, names):
    for number, split in enumerate(names.split()):
        images(tmp_path / split, f"x/{number}a.png y/{number}b.png")
    index = open_source(tmp_path)
    assert index.class_names == ("x", "y")
    assert Counter(study.split for study in index.studies) == {"train": 2, "val": 2, "test": 2}


def test_split_folders_without_train_are_no_classes(tmp_path):
    images(tmp_path, "val/x/1.png val/y/2.png test/x/3.png test/y/4.png")
    index = open_source(tmp_path)
    assert index.class_names == ("x", "y") and {study.split for study in index.studies} == {"val", "test"}


def test_two_folders_of_one_split_are_told_apart(tmp_path):
    images(tmp_path, "train/x/1.png train/y/2.png Train/x/3.png")
    with pytest.raises(DataError, match=r"one split \(train\).*in upper and lower case"):
        open_source(tmp_path)


def test_classes_that_differ_between_splits(tmp_path):
    images(tmp_path, "train/x/1.png train/y/2.png test/x/3.png")
    index = open_source(tmp_path)
    assert index.class_names == ("x", "y") and "test has no folder of class 'y'" in index.notes
    images(tmp_path, "test/z/4.png")
    with pytest.raises(DataError, match="train lacks z"):
        open_source(tmp_path)
    (tmp_path / "test" / "z").rename(tmp_path / "test" / "Y")
    with pytest.raises(DataError, match=r"'Y' and 'y' \(they differ: in upper and lower case only\)"):
        open_source(tmp_path)


def test_splits_below_the_classes(tmp_path):
    images(tmp_path, "x/train/1.png x/test/2.png y/Train/3.png y/val/4.png")
    index = open_source(tmp_path)
    assert index.class_names == ("x", "y")
    assert [study.split for study in index.studies] == ["test", "train", "train", "val"]
    image(tmp_path / "x" / "5.png")
    assert {study.split for study in open_source(tmp_path).studies} == {None}


def test_masks_beside_the_images_of_a_class_are_none_of_them(tmp_path):
    """As the COVID-19 Radiography Database comes: <class>/images and <class>/masks."""
    images(tmp_path, "x/images/1.png x/masks/1.png y/images/2.png y/masks/2.png")
    index = open_source(tmp_path)
    assert [study.name for study in index.studies] == ["x/images/1.png", "y/images/2.png"]
    assert any("x/masks" in note for note in index.notes)


def test_the_data_one_folder_deeper_are_named(tmp_path):
    images(tmp_path, "study/a/1.png study/b/2.png")
    (tmp_path / "__MACOSX" / "study").mkdir(parents=True)
    with pytest.raises(DataError, match=r"'.*study' looks like data"):
        recognise(tmp_path)


def test_names_with_ideographic_blanks_are_names(tmp_path):
    image(tmp_path / "肺炎" / "胸片\u30001.png")
    image(tmp_path / "正常" / "2\u00a0.png")
    assert open_source(tmp_path).class_names == ("正常", "肺炎")


# ---- from a name in a table to a file


def test_two_files_of_one_name_are_not_mixed_up(tmp_path):
    """In data_dir and its images/: the first was taken without a word."""
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "images" / "a.png").write_bytes(b"2")
    with pytest.raises(ValueError, match=r"'a\.png' and 'images/a\.png', which differ"):
        ImageFiles(tmp_path, ("", "images")).find("a.png")
    (tmp_path / "images" / "a.png").write_bytes(b"1")
    assert ImageFiles(tmp_path, ("", "images")).find("a.png") == "a.png"


def test_the_nearest_name_there_is_told(tmp_path):
    image(tmp_path / "chest_0001.png")
    with pytest.raises(DataError, match=r"There is 'chest_0001\.png', not 'chest_001\.png'"):
        opened(tmp_path, "image,labels\nchest_001.png,Mass\n")
