"""Formats: NIH, class folders, how a format is recognised, and the real data sets where they are available."""

import gzip
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from configs.errors import DataError
from data.labels import NIH_FINDINGS
from data.sources.formats import open_folders, open_nih, open_source, recognise
from tests.data.sources.writers import image, images, medmnist, opened, table

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data here")


# ---- NIH

NIH_2017 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)


def nih_folder(folder: Path, header: str = NIH_2017, name: str = "Data_Entry_2017.csv") -> Path:
    end = ",\n" if header.endswith(",\n") else "\n"
    rows = ["1_000.png,Mass|Hernia,0,1,058Y,M,PA,2682,2749,0.143,0.143", "2_000.png,No Finding,0,2,60,F,AP,1,2,0.1,0.2"]
    table(folder, header + "".join(row + end for row in rows), name)
    images(folder, "images_001/images/1_000.png images_012/images/2_000.png")
    return folder


def test_nih_in_several_folders(tmp_path):
    dataset_index = open_source(nih_folder(tmp_path))
    assert dataset_index.class_names == ("Mass", "Hernia")
    assert any("2 of NIH's 14 findings are classes" in note for note in dataset_index.notes)
    dataset_index = open_source(tmp_path, class_names=NIH_FINDINGS)
    assert dataset_index.class_names == NIH_FINDINGS
    assert [study.name for study in dataset_index.studies] == [
        "images_001/images/1_000.png",
        "images_012/images/2_000.png",
    ]
    study = dataset_index.studies[0]
    assert study.patient_id == "1" and study.split is None
    assert study.table["width"] == "2682" and study.table["spacing_y"] == "0.143" and study.table["view"] == "PA"
    assert {NIH_FINDINGS[index] for index in np.flatnonzero(study.labels)} == {"Mass", "Hernia"}
    assert any("no official lists" in note for note in dataset_index.notes)
    assert (dataset_index.read(1) == 1).all()


@pytest.mark.parametrize("where", ["", "images/", "images/images/", "images_003/"])
def test_nih_other_folders(tmp_path, where):
    nih_folder(tmp_path, NIH_2017.replace(",\n", "\n"), "Data_Entry_2017_v2020.csv")
    for index in ("1", "2"):
        (tmp_path / "images_001/images").joinpath(f"{index}_000.png").unlink(missing_ok=True)
        (tmp_path / "images_012/images").joinpath(f"{index}_000.png").unlink(missing_ok=True)
        image(tmp_path / f"{where}{index}_000.png")
    assert open_nih(tmp_path).studies[1].name == f"{where}2_000.png"


def test_nih_official_lists(tmp_path):
    nih_folder(tmp_path)
    (tmp_path / "test_list.txt").write_text("2_000.png\n")
    with pytest.raises(DataError, match="stands alone"):
        open_nih(tmp_path)
    (tmp_path / "train_val_list.txt.gz").write_bytes(gzip.compress(b"1_000.png\n"))
    studies = open_nih(tmp_path).studies
    assert [study.split for study in studies] == [None, "test"]
    assert [study.table["official_list"] for study in studies] == ["train_val", "test"]
    (tmp_path / "train_val_list.txt.gz").write_bytes(gzip.compress(b"3_000.png\n"))
    assert any("1 images stand on neither" in note for note in open_nih(tmp_path).notes)
    (tmp_path / "train_val_list.txt.gz").write_bytes(gzip.compress(b"2_000.png\n"))
    with pytest.raises(DataError, match=r"both official lists: 2_000\.png"):
        open_nih(tmp_path)


def test_nih_refuses(tmp_path):
    with pytest.raises(DataError, match="no NIH table"):
        open_nih(tmp_path)
    table(tmp_path, "image,labels\na.png,Mass\n", "Data_Entry_2017.csv")
    with pytest.raises(DataError, match="no column for 'patient_id'"):
        open_nih(tmp_path)


# ---- folders


def test_folders(tmp_path):
    images(tmp_path, "healthy/a.png ill/b.png ill/deep/c.png .hidden/x.png")
    (tmp_path / "ill" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "ill" / ".DS_Store").write_bytes(b"x")
    dataset_index = open_source(tmp_path)
    assert dataset_index.exclusive and dataset_index.class_names == ("healthy", "ill")
    assert [study.name for study in dataset_index.studies] == ["healthy/a.png", "ill/b.png", "ill/deep/c.png"]
    np.testing.assert_array_equal(dataset_index.label_matrix(), [[1, 0], [0, 1], [0, 1]])
    assert any("1 files are no images" in note and "Thumbs.db" in note for note in dataset_index.notes)
    assert {study.split for study in dataset_index.studies} == {None}
    assert open_folders(tmp_path, ["ill", "healthy"]).class_names == ("ill", "healthy")


def test_folders_with_splits(tmp_path):
    images(tmp_path, "Train/x/1.png Train/y/2.png valid/x/3.png valid/y/4.png test/x/5.png test/y/6.png")
    dataset_index = open_source(tmp_path)
    assert Counter(study.split for study in dataset_index.studies) == {"train": 2, "val": 2, "test": 2}
    assert all(study.patient_id == "" for study in dataset_index.studies)
    (tmp_path / "test" / "y" / "6.png").unlink()
    assert "class folder 'test/y' is empty" in open_folders(tmp_path).notes
    (tmp_path / "test" / "y").rmdir()
    assert "test has no folder of class 'y'" in open_folders(tmp_path).notes
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="beside them, other"):
        open_folders(tmp_path)


def test_folders_refuse(tmp_path):
    images(tmp_path, "in/x/a.png out/b.png")
    with pytest.raises(DataError, match="1 class folders"):
        open_folders(tmp_path / "in")
    (tmp_path / "in" / "y").mkdir()
    with pytest.raises(DataError, match=r"DATA\.class_names are x, z"):
        open_folders(tmp_path / "in", ["x", "z"])
    (tmp_path / "in" / "y" / "b.png").symlink_to(tmp_path / "out" / "b.png")
    with pytest.raises(DataError, match="leaves data_dir"):
        open_folders(tmp_path / "in")
    (tmp_path / "in" / "y" / "b.png").unlink()
    (tmp_path / "in" / "x" / "a.png").unlink()
    with pytest.raises(DataError, match="hold no images"):
        open_folders(tmp_path / "in")


# ---- recognition


def test_recognise(tmp_path):
    images(tmp_path, "folders/x/a.png folders/y/b.png csv/a.png images_only/images/a.png")
    table(tmp_path / "csv", "image,labels\na.png,Mass\n")
    (tmp_path / "nih").mkdir()
    table(tmp_path / "nih", "x\n", "Data_Entry_2017_v2020.csv")
    (tmp_path / "med").mkdir()
    medmnist(tmp_path / "med" / "m.npz", [[0], [1], [1]])
    for folder, kind in (("folders", "folders"), ("csv", "csv"), ("nih", "nih"), ("med", "medmnist")):
        assert recognise(tmp_path / folder) == kind
    assert recognise(tmp_path / "med" / "m.npz") == "medmnist"
    assert recognise(tmp_path / "csv", "labels.csv") == recognise(str(tmp_path / "csv"), "labels.csv") == "csv"
    assert recognise(tmp_path / "nih", "Data_Entry_2017_v2020.csv") == "nih"
    with pytest.raises(DataError, match=r"looked for labels\.csv.*no CSV file"):
        recognise(tmp_path / "images_only")
    with pytest.raises(DataError, match="is a file"):
        recognise(tmp_path / "csv" / "labels.csv")


def test_mistyped_places(tmp_path):
    images(tmp_path, "images/x/a.png images/y/b.png")
    table(tmp_path / "images", "image,labels\na.png,Mass\n", "train.csv")
    with pytest.raises(DataError, match=r"did you mean '.*images'"):
        open_source(tmp_path / "imagse")
    with pytest.raises(DataError, match=r"did you mean '.*images'"):
        open_source(tmp_path / "imagse" / "deeper")
    # class folders are there, and yet a labels file that was asked for and is not there must stop the run
    with pytest.raises(DataError, match=r"(?s)looked for.*trian\.csv.*train\.csv.*did you mean 'train\.csv'"):
        open_source(tmp_path / "images", "trian.csv")
    with pytest.raises(DataError, match=r"no labels file.*train\.csv"):
        open_source(tmp_path / "images", format="csv")


def test_open_source_options(three):
    table(three, "image,Mass\na.png,1\nx.png,0\n")
    with pytest.raises(DataError, match="missing"):
        open_source(three)
    assert len(open_source(three, format="csv", allow_missing=True, class_names=["Mass"]).studies) == 1
    assert len(open_source(three, three / "labels.csv", allow_missing=True).studies) == 1
    with pytest.raises(DataError, match="did you mean 'medmnist'"):
        open_source(three, format="medmist")
    with pytest.raises(DataError, match="each once"):
        open_source(three, class_names=["Mass", "Mass"])
    with pytest.raises(DataError, match="is a file"):
        open_source(three / "a.png", format="folders")
    with pytest.raises(DataError, match=r"one \.npz"):
        open_source(three, format="medmnist")


def test_dataset_indexs_can_be_pickled(three):
    dataset_index = pickle.loads(pickle.dumps(opened(three, "image,labels\na.png,Mass\nb.png,\n")))
    assert (dataset_index.read(1) == 1).all()


# ---- the real ones


@needs_data
def test_nih_sample():
    dataset_index = open_source(SHARED / "nih_sample")
    assert len(dataset_index.studies) == 1364 and dataset_index.class_names == NIH_FINDINGS
    assert dataset_index.notes == (  # NIH published one image under two numbers
        "1 images are copies of others with the same labels: images/00002658_001.jpg = images/00002658_002.jpg",
    )
    assert Counter(study.split for study in dataset_index.studies) == {"train": 1099, "val": 265}
    val = np.array([study.split == "val" for study in dataset_index.studies])
    assert dataset_index.label_matrix()[val, NIH_FINDINGS.index("Hernia")].sum() == 5
    assert dataset_index.read(0).shape == (320, 320) and dataset_index.read(0).dtype == np.uint8
    assert dataset_index.studies[0].table == {"view": "PA", "age": "57", "sex": "M"}


@needs_data
def test_pneumoniamnist():
    dataset_index = open_source(SHARED / "medmnist")
    assert Counter(study.split for study in dataset_index.studies) == {"train": 4708, "val": 524, "test": 624}
    assert dataset_index.class_names == ("positive",)
    assert any(note.startswith("8 identical images stand in both train and val") for note in dataset_index.notes)
    assert dataset_index.read(5000).shape == (28, 28)


@needs_data
def test_nih_tables_without_images():
    with pytest.raises(DataError, match="112120 of 112120 images"):
        open_source(SHARED / "nih_tables")


def test_a_folder_without_labels_is_told_what_labels_are(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(DataError, match=r"write labels.csv there, .* with the columns image .* patient_id"):
        recognise(tmp_path)
    (tmp_path / "病例.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"There is the table '病例.xlsx': set DATA.labels_file=病例.xlsx"):
        recognise(tmp_path)


def test_a_title_above_the_header_is_told(tmp_path):
    rows = (("2024年病例汇总",), ("图片", "诊断"), ("a.png", "肺炎"))
    (tmp_path / "labels.csv").write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="if the first row is a title, delete the rows above"):
        open_source(tmp_path)
    (tmp_path / "labels.csv").unlink()
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "labels.xlsx")
    with pytest.raises(DataError, match="looks like a title: the first row must have the names of the columns"):
        open_source(tmp_path)
