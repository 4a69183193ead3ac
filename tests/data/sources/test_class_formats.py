"""A class that its files' format would give away."""

import cv2
import numpy as np
import pytest
from PIL import Image

from configs.errors import DataError
from data.sources.class_formats import check_formats
from data.sources.folders import open_folders

A, B, C = ["a/0.png", "a/1.PNG"], ["b/0.tif", "b/1.tiff"], ["c/0.jpg", "c/1.jpeg"]


@pytest.mark.parametrize(
    ("classes", "word"),
    [
        ({"a": A, "b": B}, "TIFF"),
        ({"a": A, "b": B, "c": C}, "TIFF"),
        ({"a": B, "b": [*B, *A]}, None),  # both have TIFF
        ({"a": ["a/0.dcm", "a/IM0001"], "b": A}, "DICOM"),
        ({"a": ["a/0.dcm"], "b": ["b/IM0001"]}, None),
        ({"a": A, "b": ["b/0.png"]}, None),
        ({"a": A, "b": []}, None),
    ],
)
def test_grey_levels_that_are_made_in_another_way_are_refused(classes, word, tmp_path):
    if word is None:
        assert check_formats(tmp_path, classes, False) == []
        return
    with pytest.raises(DataError, match=rf"{word}.*the format alone.*DATA.class_names=\[a,b"):
        check_formats(tmp_path, classes, False)
    assert any(word in note for note in check_formats(tmp_path, classes, True))


def test_formats_of_one_kind_are_told(tmp_path):
    first, second = check_formats(tmp_path, {"a": A, "c": C}, False)
    assert "the class 'a' are PNG, those of other classes JPEG" in first and "class 'c' are JPEG" in second


def test_folders(tmp_path):
    for name, suffix in (("a", "png"), ("b", "tif"), ("c", "png")):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.full((8, 8), 40 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.{suffix}")
    with pytest.raises(DataError, match="class 'b' are TIFF, those of other classes PNG"):
        open_folders(tmp_path)
    index = open_folders(tmp_path, ["a", "b", "c"])
    assert index.class_names == ("a", "b", "c") and any("TIFF" in note for note in index.notes)
    cv2.imwrite(str(tmp_path / "b" / "3.png"), np.zeros((8, 8), np.uint8))
    assert len(open_folders(tmp_path).studies) == 10
