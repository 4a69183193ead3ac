"""A labels CSV: how it is read, and what is refused with which words."""

import gzip

import numpy as np
import pytest

from configs.errors import DataError
from data.sources.formats import open_csv, open_source
from tests.data.sources.writers import images, opened, table

NAN = np.nan


def test_joined_labels(three):
    dataset_index = opened(three, "image,labels\na.png,Mass|Zebra\nb.png,No Finding\nc.png,\n")
    assert dataset_index.class_names == ("Mass", "Zebra")
    np.testing.assert_array_equal(dataset_index.label_matrix(), [[1, 1], [0, 0], [0, 0]])
    assert dataset_index.label_matrix().dtype == np.float32
    assert not dataset_index.exclusive
    for index in range(3):
        assert (dataset_index.read(index) == index).all()


@pytest.mark.parametrize(
    "cells, classes",
    [
        ("Hernia Mass -", ("Mass", "Hernia")),
        ("Pneumonia No_Finding -", ("Pneumonia",)),
        ("Covid No_Finding Mass", ("Covid", "Mass")),
    ],
)
def test_classes_are_what_the_cells_name(three, cells, classes):
    """Names that NIH has too bring no further classes, only their order."""
    rows = [f"{name}.png,{cell.replace('_', ' ').strip('-')}\n" for name, cell in zip("abc", cells.split())]
    dataset_index = opened(three, "image,labels\n" + "".join(rows))
    assert dataset_index.class_names == classes
    assert dataset_index.label_matrix().sum() == len(classes)


def test_no_finding_may_be_a_class(three):
    text = "image,labels\na.png,No Finding\nb.png,Mass\nc.png,\n"
    dataset_index = opened(three, text, class_names=["No Finding", "Mass"])
    np.testing.assert_array_equal(dataset_index.label_matrix(), [[1, 0], [0, 1], [0, 0]])


def test_one_column_a_class(three):
    text = (
        "image,Mass,age,Edema,site,patient_id,remark\na.png,1,50,,1,p,x\nb.png,-1.0,61,0.0,2,q,\nc.png,nan,3,1,1,q,y\n"
    )
    dataset_index = opened(three, text)
    assert dataset_index.class_names == ("Mass", "Edema")
    np.testing.assert_array_equal(dataset_index.label_matrix(), [[1, NAN], [-1, 0], [NAN, 1]])
    assert dataset_index.studies[0].table == {"age": "50", "site": "1", "remark": "x"}
    assert any("Mass, Edema; not as classes: site, remark" in note for note in dataset_index.notes)
    chosen = opened(three, text, class_names=["Edema"])
    assert chosen.class_names == ("Edema",)
    assert any("look like classes but are not in class_names: Mass" in note for note in chosen.notes)


def test_a_label_column_of_codes_is_a_class(three):
    dataset_index = opened(three, "image,label\na.png,1\nb.png,0\nc.png,\n")
    assert dataset_index.class_names == ("label",)
    np.testing.assert_array_equal(dataset_index.label_matrix(), [[1], [0], [NAN]])


@pytest.mark.parametrize("alias", ["Image Index", "path", "filename", "file", "IMAGE"])
def test_aliases_and_fields(three, alias):
    text = (
        f"{alias},Finding Labels,Patient ID,View Position,Patient Gender,Split,site\n"
        "a.png,Mass,1,PA,F,Train,x\nb.png,,2,AP,M,validation,y\nc.png,,2,AP,M,valid,y\n"
    )
    dataset_index = opened(three, text)
    study = dataset_index.studies[0]
    assert (study.name, study.patient_id, study.split) == ("a.png", "1", "train")
    assert study.table == {"view": "PA", "sex": "F", "site": "x"}
    assert [study.split for study in dataset_index.studies] == ["train", "val", "val"]
    assert not dataset_index.notes


def test_image_counts_before_path(three):
    dataset_index = opened(three, "path,image,labels\nx,a.png,Mass\ny,b.png,\nz,c.png,\n")
    assert dataset_index.studies[0].name == "a.png" and dataset_index.studies[0].table == {"path": "x"}


def test_bom_crlf_quotes_and_blank_lines(three):
    raw = '\ufeffimage,labels,remark\r\n"a.png","Mass","x, ""y"""\r\n\r\nb.png,,\r\n'
    (three / "labels.csv").write_bytes(raw.encode())
    dataset_index = open_csv(three, three / "labels.csv")
    assert [study.name for study in dataset_index.studies] == ["a.png", "b.png"]
    assert dataset_index.studies[0].table["remark"] == 'x, "y"'


def test_gz_and_pandas_index(three):
    with gzip.open(three / "labels.csv.gz", "wt") as file:
        file.write(",image,labels\n0,a.png,Mass\n1,b.png,\n")
    dataset_index = open_source(three)
    assert len(dataset_index.studies) == 2 and not dataset_index.studies[0].table


def test_where_images_are_found(tmp_path):
    images(tmp_path, "a.png images/b.png lists/c.png images/sub/d.png")
    (tmp_path / "lists").mkdir(exist_ok=True)
    path = table(tmp_path / "lists", "image,labels\na.png,M\nb.png,\n./c.png,\nsub/d.png,\n")
    dataset_index = open_csv(tmp_path, path)
    assert [study.name for study in dataset_index.studies] == [
        "a.png",
        "images/b.png",
        "lists/c.png",
        "images/sub/d.png",
    ]
    assert dataset_index.read(3).shape == (4, 5)


def test_patients_that_are_not_named_are_counted(three):
    dataset_index = opened(three, "image,labels,patient_id\na.png,Mass,p\nb.png,,\nc.png,,\n")
    assert any(note.startswith("2 of 3 images name no patient") for note in dataset_index.notes)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "is empty"),
        ("image,labels\n", "holds a header and no rows"),
        ("scan,labels\na.png,Mass\n", "no column 'image'"),
        ("image,remark\na.png,hello\n", "neither a column 'labels' nor one per class"),
        ("image,labels\na.png,Mass,extra\n", "line 2 has 3 cells, the header has 2"),
        ("image,labels,labels\na.png,Mass,x\n", "'labels' more than once"),
        ("image,labels,Image\na.png,Mass,a.png\n", "two columns that mean 'image'"),
        ("image；labels\na.png；Mass\n", "not separated by commas"),
        ('image,labels\na.png,"Mass\n', "line 2"),
        ("image,Mass\na.png,1\nb.png,0\nc.png,maybe\n", r"line 4, column 'Mass': 'maybe' is not 1, 0, -1 or empty"),
        ("image,labels,split\na.png,Mass,trian\n", "line 2, column 'split': 'trian'"),
        ("image,labels\na.png,Mass|No Finding\n", "line 2: 'Mass|No Finding'"),
        ("image,labels\na.png,\nb.png,No Finding\n", "names no finding"),
        ("image,labels\na.png,Mass\na.png,Edema\n", r"lines 2 and 3 name 'a.png'"),
        ("image,labels\na.png,Mass\n,Edema\n", "line 3, image '': it is not a file name"),
        ("image,labels\na\0.png,Mass\n", "line 2"),
        ("image,labels\n../../etc/passwd,Mass\n", r"line 2, image '../../etc/passwd'.*'\.\.'"),
        ("image,labels\n/etc/passwd,Mass\n", r"line 2, image '/etc/passwd'.*absolute"),
        ("image,labels\nC:\\gone.png,Mass\n", "absolute"),
        ("image,labels\n..\\a.png,Mass\n", r"line 2.*'\.\.'"),
        ("image,labels\nsub/../../a.png,Mass\n", r"'\.\.'"),
    ],
)
def test_tables_that_are_refused(three, text, says):
    with pytest.raises(DataError, match=f"(?s){says}"):
        opened(three, text)


def test_malformed_cells_of_named_classes(three):
    with pytest.raises(DataError, match="line 3, column 'Mass': '2'"):
        opened(three, "image,Mass\na.png,1\nb.png,2\nc.png,3\n", class_names=["Mass"])


def test_not_utf8_and_damaged_gz(three):
    (three / "labels.csv").write_bytes("image,labels\na.png,Œdème\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 20 is 0x8c\).*cp1252 \('a\.png,Œdème'\).*DATA\.encoding"):
        open_csv(three, three / "labels.csv")
    (three / "labels.csv.gz").write_bytes(gzip.compress(b"image,labels\n" * 100)[:-20])
    with pytest.raises(DataError, match="cannot read"):
        open_csv(three, three / "labels.csv.gz")


def test_names_the_class_list_lacks(three):
    text = "image,labels\na.png,Mass|Efusion\nb.png,Efusion\nc.png,Xyz\n"
    with pytest.raises(DataError) as error:
        opened(three, text, class_names=["Mass", "Effusion"])
    assert "'Efusion' (2 rows): did you mean 'Effusion'?" in str(error.value)
    assert "'Xyz' (1 rows)" in str(error.value)
    with pytest.raises(DataError, match="none for 'Mas': did you mean 'Mass'"):
        opened(three, "image,Mass\na.png,1\n", class_names=["Mas"])


def test_repeated_rows_are_counted(three):
    dataset_index = opened(three, "image,Mass,Edema\na.png,1,\n./a.png,1,\nb.png,0,1\n")
    assert len(dataset_index.studies) == 2
    assert "1 rows repeat another row and are left out" in dataset_index.notes
    with pytest.raises(DataError, match="different labels, patient or split"):
        opened(three, "image,labels,patient_id\na.png,Mass,1\na.png,Mass,2\n")


def test_missing_files(three):
    text = "image,labels\na.png,Mass\nx.png,\ny.png,Mass\n"
    with pytest.raises(DataError, match=r"(?s)2 of 3 images.*x\.png, y\.png.*allow_missing_images"):
        opened(three, text)
    dataset_index = opened(three, text, allow_missing=True)
    assert [study.name for study in dataset_index.studies] == ["a.png"]
    assert any(note.startswith("2 of 3 listed images are missing") for note in dataset_index.notes)
    with pytest.raises(DataError, match="2 of 2 images"):
        opened(three, "image,labels\nx.png,Mass\ny.png,\n", allow_missing=True)


def test_links_that_leave_data_dir(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    images(outside, "secret.png")
    images(inside, "a.png")
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside)
    (inside / "own.png").symlink_to(inside / "a.png")
    for name in ("link.png", "folder/secret.png"):
        with pytest.raises(DataError, match=r"line 2, image '.*': its symbolic link leads out of data_dir"):
            opened(inside, f"image,labels\n{name},Mass\n")
    assert opened(inside, "image,labels\nown.png,Mass\n").read(0).shape == (4, 5)
    (tmp_path / "alias").symlink_to(inside)
    assert open_csv(tmp_path / "alias", inside / "labels.csv").studies[0].name == "own.png"


def test_labels_file_beside_but_outside(tmp_path):
    """A CSV outside data_dir is fine; images beside it are not data_dir's."""
    images(tmp_path, "data/a.png b.png")
    assert open_csv(tmp_path / "data", table(tmp_path, "image,labels\na.png,Mass\n")).studies[0].name == "a.png"
    with pytest.raises(DataError, match="missing"):
        open_csv(tmp_path / "data", table(tmp_path, "image,labels\nb.png,Mass\n"))


def test_undecodable_image_is_named_when_read(three):
    (three / "b.png").write_bytes(b"broken")
    dataset_index = opened(three, "image,labels\na.png,Mass\nb.png,\n")
    with pytest.raises(DataError, match=r"b\.png"):
        dataset_index.read(1)
