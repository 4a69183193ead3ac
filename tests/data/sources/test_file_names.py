"""Names of files that tables write otherwise than the disk: found where one file fits, and told."""

import pytest

from configs.errors import DataError
from data.sources.formats import open_csv
from data.sources.image_files import ImageFiles
from tests.data.sources.writers import images, opened, table


@pytest.mark.parametrize(
    "name, file",
    [
        ("a", "lungs/a.png"),
        ("A.PNG", "lungs/a.png"),
        ("lungs\\a.png", "lungs/a.png"),
        ("LUNGS\\a", "lungs/a.png"),
        ("Lungs/A", "lungs/a.png"),
        ("\u00e9.png", "lungs/e\u0301.png"),
        ("É", "lungs/e\u0301.png"),
        ("b\u200b.png", "lungs/b.png"),
        ("scan.1", "lungs/scan.1.dcm"),
        ("twice.png", "lungs/twice.png"),
    ],
)
def test_one_file_fits(tmp_path, name, file):
    images(tmp_path, "lungs/a.png lungs/e\u0301.png lungs/b.png lungs/twice.png lungs/twice.jpg")
    (tmp_path / "lungs" / "scan.1.dcm").write_bytes(b"x")
    files = ImageFiles(tmp_path, ("", "lungs"))
    assert files.find(name) == file
    assert files.rewritten == ({} if name == "twice.png" else {name: file})


@pytest.mark.parametrize(
    "name, files", [("a", "a.png a.jpg"), ("A.png", "a.png a.PNG"), ("x/a.png", "X/a.png x_/a.png")]
)
def test_several_files_fit_or_none(tmp_path, name, files):
    images(tmp_path, files)
    found = ImageFiles(tmp_path)
    if name == "x/a.png":
        assert found.find(name) == "X/a.png" and found.find("y/a.png") is None
        return
    with pytest.raises(ValueError, match="no file has exactly this name, and several fit it: a"):
        found.find(name)


def test_what_was_found_otherwise_is_told(three):
    found = opened(three, "image,labels\nA.png,Mass\nb,\nc.png,\n")
    assert [study.name for study in found.studies] == ["a.png", "b.png", "c.png"]
    assert (
        "2 images were found under names that are written otherwise: 'A.png' as 'a.png', 'b' as 'b.png'" in found.notes
    )


def test_two_rows_that_become_one_file(three):
    with pytest.raises(DataError, match=r"lines 2 and 3 name 'a\.png' with different labels"):
        opened(three, "image,labels\na.png,Mass\nA.PNG,Edema\n")


WINDOWS = "image,labels\nC:\\study\\siteA\\a.png,Mass\nC:\\study\\siteB\\a.png,\n"


@pytest.mark.parametrize("root", ["", "study/"])
def test_absolute_windows_paths(tmp_path, root):
    """Two files of one name in two folders stay two images: what all paths share is data_dir, and no more."""
    images(tmp_path, f"{root}siteA/a.png {root}siteB/a.png")
    found = opened(tmp_path, WINDOWS)
    assert [study.name for study in found.studies] == [f"{root}siteA/a.png", f"{root}siteB/a.png"]
    shared = "C:\\" if root else "C:\\study"
    assert any(f"2 images are named by absolute paths: '{shared}' was read as data_dir" in note for note in found.notes)


@pytest.mark.parametrize("files", ["a.png", "siteA/a.png study/siteA/a.png study/siteB/a.png siteB/a.png", "x/a.png"])
def test_absolute_windows_paths_that_fit_none_or_several(tmp_path, files):
    images(tmp_path, files)
    with pytest.raises(DataError, match=r"line 2, image 'C:.*absolute path"):
        opened(tmp_path, WINDOWS)


def test_shares_and_drives_that_differ(tmp_path):
    images(tmp_path, "a.png b.png")
    path = table(tmp_path, "image,labels\n\\\\server\\share\\a.png,Mass\n\\\\server\\share\\b.png,\n")
    assert [study.name for study in open_csv(tmp_path, path).studies] == ["a.png", "b.png"]
    with pytest.raises(DataError, match="absolute"):
        opened(tmp_path, "image,labels\nC:\\a.png,Mass\nD:\\b.png,\n")
    with pytest.raises(DataError, match="'\\.\\.'"):
        opened(tmp_path, "image,labels\nC:\\x\\..\\..\\a.png,Mass\nC:\\x\\b.png,\n")
