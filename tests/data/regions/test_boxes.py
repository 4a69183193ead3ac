"""Boxes and masks: NIH's own list, the sample data's, and what is wrong with others."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.labels import NIH_FINDINGS
from data.phantom.radiographs import FINDINGS, boxes, draw_images, write_phantom
from data.regions.boxes import Box, find_boxes, read_boxes, read_mask, stem
from data.sources.formats import open_source

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
HEADER = "image,finding,x,y,w,h\n"


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"no ../shared/data/{name} here")
    return SHARED / name


def test_nihs_list():
    table = read_boxes(shared("nih_tables/BBox_List_2017.csv.gz"), NIH_FINDINGS)
    rows = [box for findings in table.by_image.values() for found in findings.values() for box in found]
    assert len(rows) == 984 and len(table.by_image) == 880 and table.side == 1024
    counts = {
        name: sum(len(findings.get(name, ())) for findings in table.by_image.values()) for name in NIH_FINDINGS[:8]
    }
    assert list(counts.values()) == [180, 146, 153, 123, 85, 79, 120, 98]
    (box,) = table.of("images/00013118_008.jpg", "Atelectasis", (512, 256))
    expected = (225.084745762712 / 4, 547.019216763771 / 2, 86.7796610169491 / 4, 79.1864406779661 / 2)
    np.testing.assert_allclose(box, expected)
    assert table.of("images/00013118_008.jpg", "Mass", (512, 256)) == () and table.of("other", "Mass", (9, 9)) == ()
    assert all(b.x + b.width <= 1025 and b.y + b.height <= 1025 for b in rows)


def test_which_of_the_sample_images_have_boxes():
    """Each boxed finding is a label of its image."""
    dataset_index = open_source(shared("nih_sample"), class_names=NIH_FINDINGS)
    table = read_boxes(shared("nih_tables/BBox_List_2017.csv.gz"))
    boxed = [study for study in dataset_index.studies if table.findings(study.name)]
    pairs = [(study, name) for study in boxed for name in table.findings(study.name)]
    print(f"{len(boxed)} of {len(dataset_index.studies)} images have boxes, of {len(pairs)} findings")
    assert len(boxed) > 0
    labelled = [study.labels[NIH_FINDINGS.index(name)] == 1 for study, name in pairs]
    print(f"{sum(labelled)} of {len(labelled)} boxed findings are labels of their image")
    assert np.mean(labelled) > 0.95


def test_the_sample_datas_boxes_and_masks(tmp_path):
    folder = tmp_path / "phantom"
    write_phantom(folder, 12, 64)
    table = read_boxes(find_boxes(folder), FINDINGS)
    seen = 0
    for study, image in zip(open_source(folder).studies, draw_images(12, 64)):
        assert set(table.findings(study.name)) == set(image.masks)
        for name, mask in image.masks.items():
            assert [tuple(map(int, box)) for box in table.of(study.name, name, (64, 64))] == boxes(mask)
            assert np.array_equal(read_mask(folder / "masks" / Path(study.name).name, name), mask)
            seen += 1
        absent = next(name for name in FINDINGS if name not in image.masks)
        if image.masks:
            assert read_mask(folder / "masks" / Path(study.name).name, absent) is None
    assert seen > 10
    with pytest.raises(DataError, match="not a mask of the sample data"):
        read_mask(folder / study.name, "Mass")
    with pytest.raises(DataError, match="no finding 'Fracture'"):
        read_mask(folder / "masks" / f"{stem(next(iter(table.by_image)))}.png", "Fracture")


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,finding,x,y,w\na.png,Mass,1,2,3\n", "no column h"),
        (HEADER + "a.png,Mass,1,2,three,4\n", "line 2: 1, 2, three, 4 are not four numbers"),
        (HEADER + "a.png,Mass,1,2,3,4\na.png,Mass,1,2,0,4\n", "line 3: x and y must be 0 or more"),
        (HEADER + "a.png,Mass,nan,2,3,4\n", "line 2"),
        (HEADER + "a.png,,1,2,3,4\n", "line 2: no finding"),
        (HEADER + "a.png,Mass,1,2,3\n", "line 2 has 5 cells"),
        (HEADER + "a.png,Maas,1,2,3,4\n", "did you mean 'Mass'"),
        (HEADER, "no rows"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_boxes(path, FINDINGS)
    assert str(path) in str(caught.value)


def test_several_boxes_of_one_finding(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(HEADER + "a.png,Mass,1,2,3,4\na.png,Nodule,5,5,1,1\na.png,Mass,6,7,8,9\n")
    table = read_boxes(path)
    assert table.of("a.png", "Mass", (20, 20)) == (Box(1, 2, 3, 4), Box(6, 7, 8, 9))
    assert table.findings("x/a.jpg") == ("Mass", "Nodule") and table.side is None
    assert find_boxes(tmp_path) == path and find_boxes(tmp_path / "none") is None
