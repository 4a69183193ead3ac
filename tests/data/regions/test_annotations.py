"""Boxes and masks belong to the image they name, with its folder."""

import unicodedata

import numpy as np
import pytest

from configs.errors import DataError
from data.regions.annotations import Regions, open_regions
from data.regions.boxes import read_boxes
from data.study import IMAGE, DatasetIndex, Study

HEADER = "image,finding,x,y,w,h\n"


def index_of(*names: str) -> DatasetIndex:
    studies = tuple(Study(name, {IMAGE: name}, np.ones(1, np.float32)) for name in names)
    return DatasetIndex(("Mass",), studies, lambda index: np.zeros((20, 20), np.uint8))


def boxes_of(folder, rows: str):
    path = folder / "boxes.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    return path


def lefts(regions: Regions) -> list[list[float]]:
    """x of the boxes of each image."""
    return [[box.x for box in regions.of(row, 0, (20, 20))[1]] for row in range(len(regions.dataset_index.studies))]


def test_two_files_of_one_name_in_two_folders_are_two_images(tmp_path):
    boxes_of(tmp_path, "x/a.png,Mass,1,1,2,2\ny/a.png,Mass,5,5,2,2\n")
    regions = open_regions(index_of("x/a.png", "y/a.png", "z/a.png"), tmp_path)
    assert lefts(regions) == [[1], [5], []] and [regions.classes(row) for row in range(3)] == [(0,), (0,), ()]


def test_a_name_without_its_folder_is_ambiguous_where_two_have_it(tmp_path):
    boxes_of(tmp_path, "a.png,Mass,1,1,2,2\n")
    assert lefts(open_regions(index_of("x/a.png", "y/b.png"), tmp_path)) == [[1], []]
    with pytest.raises(DataError, match=r"names 'a\.png', which may be 'x/a\.png' and 'y/a\.png'"):
        open_regions(index_of("x/a.png", "y/a.png"), tmp_path)


def test_a_finding_that_is_another_spelling_of_a_class_is_told(tmp_path):
    boxes_of(tmp_path, "a.png,mass,1,1,2,2\nb.png,Nodule,1,1,2,2\n")
    with pytest.raises(DataError, match=r"'mass' and 'Mass' \(they differ: in upper and lower case only\)"):
        open_regions(index_of("a.png"), tmp_path)


@pytest.mark.parametrize(
    ("listed", "image"),
    [
        ("a.png", "images/a.jpg"),
        ("images/a.png", "a.dcm"),
        ("x/a.png", "images/x/a.png"),
        ("x\\a.png", "x/a.png"),
        ("./a.png", "a.png"),
        (unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")),
    ],
)
def test_another_folder_above_or_suffix_is_the_same_image(tmp_path, listed, image):
    boxes_of(tmp_path, f"{listed},Mass,1,1,2,2\n")
    assert lefts(open_regions(index_of(image, "x/other.png"), tmp_path)) == [[1], []]


def test_the_very_name_counts_before_one_of_another_suffix(tmp_path):
    table = read_boxes(boxes_of(tmp_path, "a.png,Mass,1,1,2,2\na.jpg,Mass,5,5,2,2\n"))
    assert [table.of(name, "Mass", (9, 9))[0].x for name in ("a.png", "a.jpg")] == [1, 5]
    with pytest.raises(DataError, match=r"names 'a\.png' and 'a\.jpg', and the image 'a\.dcm' may be either"):
        table.of("a.dcm", "Mass", (9, 9))


def test_masks_lie_in_the_folders_of_their_images(tmp_path):
    for name in ("x/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    regions = Regions(index_of("x/a.png", "y/a.png", "images/b.png"), None, tmp_path)
    assert [regions.classes(row) for row in range(3)] == [(0,), (), (0,)]
    (tmp_path / "a.png").touch()
    assert regions.classes(0) == (0,)
    with pytest.raises(DataError, match=r"a\.png' may be of 'x/a\.png' and 'y/a\.png'"):
        regions.classes(1)
