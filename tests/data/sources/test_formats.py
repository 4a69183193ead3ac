"""Formats: what each opens to, what is refused with which words, and the real data sets where they are at hand."""

import gzip
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import DataError
from data.labels import NIH_FINDINGS
from data.sources.formats import open_csv, open_folders, open_medmnist, open_nih, open_source, recognise

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data here")
NAN = np.nan


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)


def images(folder: Path, names: str) -> None:
    for value, name in enumerate(names.split()):
        image(folder / name, value)


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def opened(folder: Path, text: str, **options):
    return open_csv(folder, table(folder, text), **options)


@pytest.fixture
def three(tmp_path):
    """A folder with a.png, b.png and c.png of grey 0, 1 and 2."""
    images(tmp_path, "a.png b.png c.png")
    return tmp_path


# ---- CSV


def test_joined_labels(three):
    dataset_index = opened(three, "image,labels\na.png,Mass|Zebra\nb.png,No Finding\nc.png,\n")
    assert dataset_index.class_names == ("Mass", "Zebra")
    np.testing.assert_array_equal(dataset_index.label_matrix(), [[1, 1], [0, 0], [0, 0]])
    assert dataset_index.label_matrix().dtype == np.float32
    assert not dataset_index.exclusive
    for index in range(3):
        assert (dataset_index.read(index) == index).all()


def test_nih_names_bring_all_fourteen(three):
    dataset_index = opened(three, "image,labels\na.png,Hernia\nb.png,Mass\nc.png,\n")
    assert dataset_index.class_names == NIH_FINDINGS
    assert dataset_index.label_matrix().sum() == 2


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
        ("image;labels\na.png;Mass\n", "not separated by commas"),
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
        ("image,labels\nC:\\a.png,Mass\n", "absolute"),
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
    (three / "labels.csv").write_bytes("image,labels\na.png,Ödem\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
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
    with pytest.raises(DataError, match="test lacks y"):
        open_folders(tmp_path)
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


# ---- MedMNIST


def medmnist(path: Path, labels, images=None, **changes) -> Path:
    """An .npz of 3 images per split, with the same labels in each."""
    arrays = {}
    for number, split in enumerate(("train", "val", "test")):
        default = np.random.default_rng(number).integers(0, 256, (3, 6, 7), dtype=np.uint8)
        arrays[f"{split}_images"] = default if images is None else images
        arrays[f"{split}_labels"] = np.asarray(labels)
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_medmnist_binary(tmp_path):
    path = medmnist(tmp_path / "a.npz", np.array([[0], [1], [1]], np.uint8))
    for source in (open_medmnist(path), open_source(tmp_path), open_source(path), open_source(tmp_path, "a.npz")):
        assert source.class_names == ("positive",) and not source.exclusive
        np.testing.assert_array_equal(source.label_matrix()[:, 0], [0, 1, 1] * 3)
    assert open_medmnist(path, ["pneumonia"]).class_names == ("pneumonia",)
    with pytest.raises(DataError, match="name the one that 1 means"):
        open_medmnist(path, ["normal", "pneumonia"])


def test_medmnist_multi_class_and_multi_label(tmp_path):
    dataset_index = open_medmnist(medmnist(tmp_path / "a.npz", [[0], [3], [1]]))
    assert dataset_index.exclusive and len(dataset_index.class_names) == 4
    np.testing.assert_array_equal(dataset_index.label_matrix()[:3], np.eye(4)[[0, 3, 1]])
    dataset_index = open_medmnist(medmnist(tmp_path / "b.npz", [[0, 1], [1, 1], [0, 0]]), ["p", "q"])
    assert not dataset_index.exclusive and dataset_index.class_names == ("p", "q")
    np.testing.assert_array_equal(dataset_index.label_matrix()[:3], [[0, 1], [1, 1], [0, 0]])


def test_medmnist_reads_the_right_image_also_after_pickling(tmp_path):
    path = medmnist(tmp_path / "a.npz", [[0], [1], [1]])
    dataset_index = open_medmnist(path)
    again = pickle.loads(pickle.dumps(dataset_index))
    assert len(pickle.dumps(dataset_index.read)) < 1000
    for index, study in enumerate(dataset_index.studies):
        split, number = study.name.rstrip("]").split("[")
        want = np.load(path)[f"{split}_images"][int(number)]
        np.testing.assert_array_equal(dataset_index.read(index), want)
        np.testing.assert_array_equal(again.read(index), want)
    with pytest.raises(IndexError):
        dataset_index.read(9)


def test_medmnist_counts_repeated_images(tmp_path):
    same = np.random.default_rng(5).integers(0, 256, (3, 6, 7), dtype=np.uint8)
    notes = open_medmnist(medmnist(tmp_path / "a.npz", [[0], [1], [1]], train_images=same, test_images=same)).notes
    assert [note for note in notes if "identical" in note] == [
        "3 identical images stand in both train and test: scores on test are flattered"
    ]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"val_labels": None}, "lacks val_labels"),
        ({"images": np.zeros((3, 8, 8, 8), np.uint8)}, "volumes"),
        ({"images": np.zeros((3, 8, 8, 8, 3), np.uint8)}, "volumes"),
        ({"images": np.zeros((3, 8, 8))}, "not uint8 images"),
        ({"images": np.zeros((3, 8), np.uint8)}, "not uint8 images"),
        ({"labels": [[0], [1]]}, "do not go with labels"),
        ({"labels": [[0.0], [1.0], [0.5]]}, "do not go with labels"),
        ({"labels": [[0], [-1], [1]]}, "labels run from -1"),
        ({"labels": [[0, 1], [2, 1], [0, 0]]}, "labels run from 0 to 2"),
        ({"test_labels": np.zeros((3, 2), int)}, "label columns"),
        ({"train_images": np.array([{"evil": 1}, None, 2], object)}, "allow_pickle"),
        ({"train_labels": np.array([[print]] * 3, object)}, "allow_pickle"),
    ],
)
def test_medmnist_refuses(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        open_medmnist(medmnist(tmp_path / "a.npz", **{"labels": [[0], [1], [1]], **change}))


def test_medmnist_damaged(tmp_path):
    path = medmnist(tmp_path / "a.npz", [[0], [1], [1]])
    content = bytearray(path.read_bytes())
    for damaged in (content[:-200], content[:100], b"", b"no zip at all", content[:300] + b"\xff" + content[301:]):
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match="cannot read"):
            open_medmnist(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"not an \.npz"):
        open_medmnist(tmp_path / "b.npy")
    with pytest.raises(DataError, match="cannot read"):
        open_medmnist(tmp_path / "none.npz")


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
    assert len(dataset_index.studies) == 1364 and dataset_index.class_names == NIH_FINDINGS and not dataset_index.notes
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
