"""A table beside class folders: patients, splits, age and sex; the folders stay the classes."""

import pytest

from configs.errors import DataError
from data.readers.tables import TableSettings
from data.sources.formats import open_source, recognise
from tests.data.sources.writers import images, table

TABLE = "image,patient_id,split,sex,ward\nhealthy/a.png,1,train,F,x\nb.png,1,train,F,y\nill\\c.png,2,val,M,\n"


@pytest.fixture
def sorted_images(tmp_path):
    images(tmp_path, "healthy/a.png healthy/b.png ill/c.png ill/deep/d.png")
    return tmp_path


@pytest.mark.parametrize("name", ["metadata.csv", "labels.csv", "anything.tsv"])
def test_it_adds_what_it_says(sorted_images, name):
    text = TABLE.replace(",", "\t") if name.endswith("tsv") else TABLE
    table(sorted_images, text + "d.png\t\tval\tM\t\n".replace("\t", "\t" if name.endswith("tsv") else ","), name)
    assert recognise(sorted_images) == "folders"
    found = open_source(sorted_images)
    assert found.class_names == ("healthy", "ill") and found.exclusive
    assert found.label_matrix().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert [study.patient_id for study in found.studies] == ["1", "1", "2", ""]
    assert [study.split for study in found.studies] == ["train", "train", "val", "val"]
    assert found.studies[0].table == {"sex": "F", "ward": "x"}
    assert any(f"'{name}' gives patient_id, split, sex of 4 images" in note for note in found.notes)
    assert any("1 of 4 images name no patient" in note for note in found.notes)
    assert not any("folders name no patients" in note for note in found.notes)


def test_rows_and_images_without_fellows_are_told(sorted_images):
    table(sorted_images, "image,patient_id\na.png,1\ngone.png,2\n", "list.csv")
    notes = open_source(sorted_images).notes
    assert any("1 of its rows name no image of the class folders: gone.png" in note for note in notes)
    assert any("3 images have no row in it" in note for note in notes)


def test_it_is_chosen_by_name_where_there_are_several(sorted_images):
    table(sorted_images, TABLE, "one.csv")
    table(sorted_images, TABLE, "two.csv")
    table(sorted_images, "finding,x\na,b\n", "three.csv")
    with pytest.raises(DataError, match=r"one\.csv, two\.csv.*DATA\.labels_file"):
        open_source(sorted_images)
    assert open_source(sorted_images, "two.csv").studies[0].patient_id == "1"
    with pytest.raises(DataError, match=r"no column 'image'.*DATA\.columns"):
        open_source(sorted_images, "three.csv", format="folders")


def test_contradictions_are_refused(sorted_images):
    images(sorted_images, "ill/a.png")
    table(sorted_images, "image,patient_id\na.png,1\n", "list.csv")
    with pytest.raises(
        DataError, match=r"line 2, image 'a\.png': several images have this name: healthy/a\.png, ill/a"
    ):
        open_source(sorted_images)
    table(sorted_images, "image,patient_id\nhealthy/a.png,1\nhealthy/a.png,2\n", "list.csv")
    with pytest.raises(DataError, match=r"lines 2 and 3 name 'healthy/a\.png' with different"):
        open_source(sorted_images)


def test_the_folders_split_counts(tmp_path):
    images(tmp_path, "train/x/a.png train/y/b.png val/x/c.png val/y/d.png")
    table(tmp_path, "image,patient_id\na.png,1\nval/x/c.png,1\n", "list.csv")
    found = open_source(tmp_path)
    assert [(s.name, s.split, s.patient_id) for s in found.studies if s.patient_id] == [
        ("train/x/a.png", "train", "1"),
        ("val/x/c.png", "val", "1"),
    ]
    table(tmp_path, "image,split\na.png,val\n", "list.csv")
    with pytest.raises(DataError, match=r"'train/x/a\.png' is in val, its folder says train"):
        open_source(tmp_path)


def test_a_table_of_labels_is_a_source_of_its_own(sorted_images):
    table(sorted_images, "image,labels\nhealthy/a.png,Mass\nill/c.png,\n")
    assert recognise(sorted_images) == "csv" and open_source(sorted_images).class_names == ("Mass",)
    table(sorted_images, "image,Mass\nhealthy/a.png,1\nill/c.png,0\n")
    assert recognise(sorted_images) == "csv" and open_source(sorted_images).class_names == ("Mass",)
    (sorted_images / "labels.csv").unlink()
    table(sorted_images, "image,labels,patient_id\nhealthy/a.png,Mass,7\n", "other.csv")
    found = open_source(sorted_images)
    assert found.class_names == ("healthy", "ill") and found.studies[0].patient_id == "7"
    assert any("its column 'labels' is not read, the folders are the classes" in note for note in found.notes)


def test_other_tables_are_left_alone(sorted_images):
    table(sorted_images, "image,finding,x,y,w,h\na.png,ill,1,1,1,1\n", "boxes.csv")
    table(sorted_images, 'image,who\na.png,"1\n', "broken.csv")
    assert {study.patient_id for study in open_source(sorted_images).studies} == {""}
    table(sorted_images, "bild,wer\na.png,5\n", "list.csv")
    settings = TableSettings(columns={"image": "bild", "patient_id": "wer"})
    assert open_source(sorted_images, settings=settings).studies[0].patient_id == "5"
