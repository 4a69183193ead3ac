"""Files, folders and tables that a model is asked about: which there are, in which order, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import DataError
from data.phantom.volumes import write_phantom_volumes
from data.readers.volumes import Volume
from data.sources.unlabelled import dicom_view, open_unlabelled
from tests.data.readers.bad_images import dicom
from tests.data.readers.test_dicom_series import save, slices_of

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def png(path: Path, pixels: np.ndarray = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with everything in it."""
    folder = tmp_path / "images"
    for name in ("b.png", "a.jpg", "deep/er/c.PNG", ".hidden/x.png", ".y.png"):
        png(folder / name)
    (folder / "d.dcm").write_bytes(dicom(GREY))
    (folder / "IM_1.2.3").write_bytes(dicom(GREY))
    (folder / "noname").write_bytes(dicom(GREY))
    (folder / "DICOMDIR").write_bytes(dicom(GREY))
    (folder / "notes.txt").write_text("text")
    os.mkfifo(folder / "pipe.png")
    return folder


def names(inputs, volumes: bool = False) -> list[str]:
    return [item.name for item in open_unlabelled(inputs, volumes)[1]]


def test_a_folder_is_read_in_the_order_of_its_paths(images):
    dataset_index, items = open_unlabelled([images], volumes=False)
    found = [item.name for item in items]
    assert found == ["IM_1.2.3", "a.jpg", "b.png", "d.dcm", "deep/er/c.PNG", "noname"]
    assert [study.name for study in dataset_index.studies] == found and dataset_index.class_names == ()
    assert all(dataset_index.read(index).shape == (6, 8) for index in range(6))
    assert (
        len(dataset_index.notes) == 1 and "3 files" in dataset_index.notes[0] and "pipe.png" in dataset_index.notes[0]
    )


def test_files_and_several_inputs(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    assert names(["images/b.png"]) == ["b.png"]
    assert names(["images/b.png", "images/deep"]) == ["images/b.png", "images/deep/er/c.PNG"]
    # Whoever names a file has it read, whatever it is called.
    dataset_index, items = open_unlabelled(["images/notes.txt", "images/pipe.png"], volumes=False)
    assert len(items) == 2
    with pytest.raises(DataError, match="neither PNG, JPEG, WebP, TIFF nor DICOM"):
        dataset_index.read(0)
    with pytest.raises(DataError, match="a pipe"):
        dataset_index.read(1)


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no file or folder"):
        open_unlabelled([tmp_path / "none.png"], volumes=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no images \(\.png"):
        open_unlabelled([tmp_path / "empty"], volumes=False)
    with pytest.raises(DataError, match=r"holds no volumes \("):
        open_unlabelled([tmp_path / "empty"], volumes=True)


def test_a_link_out_of_a_folder_is_an_error_of_its_own(images, tmp_path):
    secret = png(tmp_path / "secret" / "s.png")
    (images / "out.png").symlink_to(secret)
    (images / "in.png").symlink_to(images / "b.png")
    (images / "away").symlink_to(secret.parent)  # a linked folder is not entered
    dataset_index, items = open_unlabelled([images], volumes=False)
    found = {item.name: index for index, item in enumerate(items)}
    assert "away/s.png" not in found and dataset_index.read(found["in.png"]).shape == (6, 8)
    with pytest.raises(DataError, match=r"'out.png' is a link that leaves the folder"):
        dataset_index.read(found["out.png"])


def test_a_name_that_is_no_text(tmp_path):
    png(tmp_path / "f" / "ok.png")
    with open(os.fsencode(tmp_path / "f") + b"/\xff.png", "wb") as file:  # noqa: PTH123  # a name of bytes
        file.write((tmp_path / "f" / "ok.png").read_bytes())
    dataset_index, items = open_unlabelled([tmp_path / "f"], volumes=False)
    assert [item.name for item in items] == ["ok.png", "\\udcff.png"]
    with pytest.raises(DataError, match="not valid Unicode"):
        dataset_index.read(1)


# ---- tables


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def test_a_table_brings_its_columns(images):
    png(images / "images" / "e.png")
    rows = [
        "Image Index,Patient ID,View Position,note",
        "b.png,7,PA,x",
        "e.png,8,lateral,",
        "b.png,7,PA,again",
        "gone.png,9,,",
    ]
    dataset_index, items = open_unlabelled([table(images / "list.csv", *rows)], volumes=False)
    assert [item.name for item in items] == ["b.png", "images/e.png", "b.png", "gone.png"]
    assert [item.view for item in items] == ["PA", "lateral", "PA", ""]
    assert items[1].columns == {"Patient ID": "8", "View Position": "lateral", "note": ""}
    assert dataset_index.read(1).shape == (6, 8)
    with pytest.raises(DataError, match=r"line 5 of .* names 'gone.png': there is no such file"):
        dataset_index.read(3)


@pytest.mark.parametrize(
    "name", ["../secret/s.png", "/etc/passwd", "C:\\x.png", "link.png", "linked/s.png", "..\\s.png", ""]
)
def test_a_table_that_names_files_outside_is_refused(images, tmp_path, name):
    secret = png(tmp_path / "secret" / "s.png")
    (images / "link.png").symlink_to(secret)
    (images / "linked").symlink_to(secret.parent)
    with pytest.raises(DataError, match="line 3"):
        open_unlabelled([table(images / "list.csv", "image,x", "b.png,1", f"{name},2")], volumes=False)


def test_a_table_without_images(images):
    with pytest.raises(DataError, match="no column 'image'"):
        open_unlabelled([table(images / "list.csv", "name,x", "b.png,1")], volumes=False)


# ---- volumes


def test_volumes_of_every_kind(tmp_path):
    write_phantom_volumes(tmp_path / "drawn", 2, 64)
    folder = tmp_path / "scans"
    nifti = sorted((tmp_path / "drawn").rglob("*.nii.gz"))[0]
    folder.mkdir()
    nifti.rename(folder / "a.nii.gz")
    save(folder / "patient" / "ct", slices_of())
    png(folder / "scout.png")
    dataset_index, items = open_unlabelled([folder], volumes=True)
    assert [item.name for item in items] == ["a.nii.gz", "patient/ct"]
    assert all(isinstance(dataset_index.read(index), Volume) for index in (0, 1))
    assert "scout.png" in dataset_index.notes[0]
    assert names([folder / "patient" / "ct"], volumes=True) == ["ct"]
    assert names([folder / "a.nii.gz"], volumes=True) == ["a.nii.gz"]
    listed = table(folder / "list.csv", "image,age", "patient/ct,60", "a.nii.gz,70")
    dataset_index, items = open_unlabelled([listed], volumes=True)
    assert [item.columns["age"] for item in items] == ["60", "70"] and isinstance(dataset_index.read(0), Volume)


def test_a_dicom_file_that_is_alone_is_no_series(tmp_path):
    folder = save(tmp_path / "ct", slices_of())
    first, *others = sorted(folder.iterdir())
    for path in others:
        path.unlink()
    dataset_index, items = open_unlabelled([tmp_path], volumes=True)
    assert [item.name for item in items] == [f"ct/{first.name}"]
    with pytest.raises(DataError, match="one slice"):
        dataset_index.read(0)


# ---- views


def test_the_view_of_a_dicom_file(tmp_path):
    import pydicom

    (tmp_path / "a.dcm").write_bytes(dicom(GREY))
    assert dicom_view(tmp_path / "a.dcm") == ""
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.ViewPosition = "LL"
    dataset.save_as(tmp_path / "b.dcm")
    assert dicom_view(tmp_path / "b.dcm") == "LL"
    png(tmp_path / "c.png")
    assert dicom_view(tmp_path / "c.png") == "" == dicom_view(tmp_path / "none") == dicom_view(tmp_path)
