"""Where regions are looked for, whose they are, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.errors import DataError
from data.readers.tables import TableSettings
from data.regions.annotations import open_regions
from data.regions.taught import open_taught_regions, read_region
from data.sources.labels_csv import open_csv
from data.sources.studies import StudySettings, with_studies
from utils.guidance import ANY_CLASS


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def box_mask(shape=(20, 30), top: int = 2, value: int = 255) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top : top + 6, 5:12] = value
    return mask


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = ["image,lesion,cyst,patient_id,study_id,mask"]
    for i in range(4):
        write(tmp_path / f"images/{i}.png", np.full((20, 30), 40 * i, np.uint8))
        mask = f"masks/{i}_mask.png" if i < 3 else ""
        rows.append(f"images/{i}.png,{i // 2},{i // 2},p{i // 2},s{i // 2},{mask}")
    for i in range(3):
        write(tmp_path / f"masks/{i}_mask.png", box_mask(top=i) if i != 1 else np.zeros((20, 30), np.uint8))
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    boxes = (
        "image,finding,x,y,w,h\nimages/1.png,lesion,5,2,7,6\nimages/3.png,lesion,0,0,3,3\nimages/3.png,cyst,9,9,4,4\n"
    )
    (tmp_path / "boxes.csv").write_text(boxes, encoding="utf-8")
    return tmp_path


def index_of(folder: Path):
    return open_csv(folder, folder / "labels.csv", ["lesion", "cyst"], settings=TableSettings(study_column="study_id"))


@pytest.mark.parametrize("where", ["mask", "masks"])
def test_masks_of_a_column_and_of_a_folder(folder, where):
    regions = open_taught_regions(index_of(folder), folder, None, where)
    assert list(regions.rows()) == [0, 1, 2]
    (found,) = regions.of(0)
    assert found.column == ANY_CLASS and np.array_equal(found.pixels, box_mask(top=0) > 0)
    assert regions.of(1) == () and regions.of(3) == ()
    assert np.array_equal(regions.united().of(2)[0].pixels, box_mask(top=2) > 0)


def test_a_folder_anywhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "images/2.jpg", box_mask())
    write(elsewhere / "others/2.png", box_mask(top=9))
    regions = open_taught_regions(index_of(folder), folder, None, str(elsewhere))
    assert list(regions.rows()) == [2]
    assert regions.of(2)[0].pixels[4, 7] and regions.of(2)[0].pixels.sum() == 42, "the one in a folder of that name"


def test_boxes_by_class_and_together(folder):
    regions = open_taught_regions(index_of(folder), folder, "boxes.csv", None)
    assert [region.column for region in regions.of(3)] == [0, 1]
    assert np.array_equal(regions.of(1)[0].pixels, box_mask(top=2) > 0)
    (both,) = regions.united().of(3)
    assert both.column == ANY_CLASS and both.pixels.sum() == 9 + 16
    assert regions.of(0) == ()


def test_an_image_of_a_study_has_its_own(folder):
    settings = StudySettings(study_column="study_id")
    studies = with_studies(index_of(folder), folder, settings)
    assert len(studies.studies) == 2
    regions = open_taught_regions(studies, folder, None, "mask")
    assert list(regions.rows()) == [0, 1, 2] and regions.of(2)[0].pixels[2, 5]
    boxes = open_taught_regions(studies, folder, "boxes.csv", None)
    assert [region.column for region in boxes.of(3)] == [0, 1]


def test_regions_of_explanations_are_of_images_too(folder):
    studies = with_studies(index_of(folder), folder, StudySettings(study_column="study_id"))
    regions = open_regions(studies, folder)
    assert regions.classes(1) == (0,) and regions.classes(3) == (0, 1) and regions.classes(0) == ()
    assert np.array_equal(regions.of(1, 0, (20, 30))[0], box_mask(top=2) > 0)


def test_nothing_named_is_nothing(folder):
    assert open_taught_regions(index_of(folder), folder, None, None) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [("maks", r"neither a column of the labels table .*nor a folder.*'masks?'"), ("empty", "no image has a mask")],
)
def test_names_that_lead_nowhere(folder, name, said):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=said):
        open_taught_regions(index_of(folder), folder, None, name)


def test_a_mask_that_is_named_and_not_there(folder):
    (folder / "masks/0_mask.png").unlink()
    with pytest.raises(DataError, match=r"column 'mask' names files that are not in .*0_mask.png"):
        open_taught_regions(index_of(folder), folder, None, "mask")


def test_a_mask_of_other_proportions(folder):
    write(folder / "masks/0_mask.png", box_mask((30, 20)))
    with pytest.raises(DataError, match=r"are 30 × 20 and 20 × 30 pixels"):
        open_taught_regions(index_of(folder), folder, None, "mask")
    write(folder / "masks/0_mask.png", box_mask((10, 15)))
    assert open_taught_regions(index_of(folder), folder, None, "mask").of(0)[0].pixels.shape == (10, 15)


def test_two_masks_that_may_be_of_one_image(folder):
    write(folder / "masks/0.png", box_mask())
    with pytest.raises(DataError, match=r"the mask of 'images/0.png' may be .*0.png.* and .*0_mask.png"):
        open_taught_regions(index_of(folder), folder, None, "masks")


@pytest.mark.parametrize(
    ("pixels", "inside"),
    [
        (box_mask(value=1), 42),
        (box_mask(), 42),
        (box_mask().astype(np.uint16) * 257, 42),
        (np.stack([box_mask()] * 3, axis=2), 42),
        (np.zeros((8, 8), np.uint8), 0),
        (np.full((8, 8), 255, np.uint8), 64),
    ],
)
def test_black_and_white_in_any_form(tmp_path, pixels, inside):
    write(tmp_path / "mask.png", pixels)
    assert read_region(tmp_path / "mask.png").sum() == inside


def test_compression_leaves_shades(tmp_path):
    mask = cv2.resize(box_mask(), (243, 162), interpolation=cv2.INTER_NEAREST)
    mask[:, ::40] = 255  # edges inside JPEG's blocks
    write(tmp_path / "mask.jpg", mask)
    found = read_region(tmp_path / "mask.jpg")
    assert len(np.unique(cv2.imread(str(tmp_path / "mask.jpg"), 0))) > 2
    assert (found != (mask > 0)).mean() < 0.005


@pytest.mark.parametrize("values", [[0, 1, 2, 3], [0, 60, 120, 250], [3, 7]])
def test_images_that_are_no_masks(tmp_path, values):
    write(tmp_path / "mask.png", np.array(values, np.uint8).repeat(25).reshape(10, -1))
    with pytest.raises(DataError, match="no black and white mask"):
        read_region(tmp_path / "mask.png")
