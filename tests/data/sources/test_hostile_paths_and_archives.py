"""Data folders made to do harm: nothing outside data_dir is opened, nothing runs, nothing hangs, memory is bounded.

A child process opens each folder and reads each of its images, with an audit hook that notes every file it opens.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import DataError
from data.sources.formats import open_source
from data.splits.assignment import read_split
from tests.data.readers.bad_dicom import series
from tests.data.readers.bad_images import GREY, noise, png, zeros
from tests.faults import in_child, outside

PNG = png(noise(np.random.default_rng(0)), GREY)
SLICES = series()
ALLOWED_MB = 350
NAMES = (
    "../canary.png",
    "../../etc/passwd",
    "images/../../canary.png",
    "./../canary.png",
    "/etc/passwd",
    "//etc/passwd",
    "{outside}/canary.png",
    "C:\\canary.png",
    "C:canary.png",
    "\\\\server\\share\\canary.png",
    "//server/share/canary.png",
    "..\\canary.png",
    "images\\..\\..\\canary.png",
    "a.png\0",
    "\0",
    "../canary.png\0.png",
    ".",
    "..",
    "./",
    "/",
    "~/canary.png",
    "$HOME/canary.png",
    "file:///etc/passwd",
    "http://127.0.0.1:9/a.png",
    "link.png",
    "chain.png",
    "folder/canary.png",
    "folder",
    "zero.png",
    "random.png",
    "pipe.png",
    "loop.png",
    "broken.png",
    "fd.png",
    "x" * 5000 + "/a.png",
    "x" * 5000,
    "a.png/a.png",
)


def attempt(tasks: list[dict[str, Any]]) -> dict[str, list[str]]:
    """In the child: open each source and read all its images; the DataErrors, [] where there was none."""
    return {task["name"]: errors_of(task) for task in tasks}


def errors_of(task: dict[str, Any]) -> list[str]:
    errors = []
    try:
        options = {"volumes": task.get("volumes", False), "format": task.get("format", "auto")}
        dataset_index = open_source(task["folder"], task.get("labels"), **options)
    except DataError as error:
        return [str(error)]
    for index in range(len(dataset_index.studies)):
        try:
            dataset_index.read(index)
        except DataError as error:
            errors.append(str(error))
    return errors


def make(path: Path, content: bytes | str = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(*names: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["image", "labels"], *([name, "Mass"] for name in names)])
    return text.getvalue()


@pytest.fixture
def around(tmp_path) -> Path:
    """A folder with a canary of each kind, beside which the data folders are made."""
    folder = tmp_path / "outside"
    make(folder / "canary.png")
    make(tmp_path / "canary.png")
    make(folder / "labels.csv", table("a.png"))
    make(folder / "list.txt", "a.png\n")
    for number, content in enumerate(SLICES):
        make(folder / "series" / str(number), content)
    np.savez(folder / "data.npz", train_images=np.zeros((2, 3, 3), np.uint8))
    return folder


def traps(folder: Path, around: Path) -> None:
    """Links, pipes and devices among the images."""
    links = {"link.png": around / "canary.png", "chain.png": folder / "link.png", "folder": around}
    links |= {"zero.png": Path("/dev/zero"), "random.png": Path("/dev/urandom"), "fd.png": Path("/proc/self/fd/0")}
    links |= {"loop.png": folder / "loop.png", "broken.png": folder / "nowhere"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")


def names_in_a_csv(root: Path, around: Path) -> list[dict[str, Any]]:
    """Each bad name beside a good one; as images, and as volumes."""
    folder, tasks = root / "csv", []
    make(folder / "a.png")
    traps(folder, around)
    for number, name in enumerate(NAMES):
        for volumes in (False, True):
            labels = f"{number}{volumes}.csv"
            make(folder / labels, table(name.format(outside=around)))
            tasks.append({"name": labels, "folder": folder, "labels": labels, "volumes": volumes})
    return tasks


def links_in_folders(root: Path, around: Path) -> list[dict[str, Any]]:
    """Class folders in which something leads out, or is no file; made from a function each."""
    tasks = []
    for name, trap in TRAPS.items():
        folder = root / name
        for kind in ("cat", "dog"):
            make(folder / kind / "a.png")
            for number, content in enumerate(SLICES):
                make(folder / kind / "series" / str(number), content)
        trap(folder, around)
        tasks += [{"name": f"{name}{v}", "folder": folder, "volumes": v} for v in (False, True)]
    return tasks


TRAPS = {
    "class_out": lambda folder, around: (folder / "eel").symlink_to(around),
    "file_out": lambda folder, around: (folder / "dog" / "b.png").symlink_to(around / "canary.png"),
    "plain_out": lambda folder, around: (folder / "dog" / "plain").symlink_to(around / "canary.png"),
    "slice_out": lambda folder, around: (folder / "dog" / "series" / "9").symlink_to(around / "series" / "1"),
    "zero": lambda folder, around: (folder / "dog" / "zero").symlink_to("/dev/zero"),
    "labels_out": lambda folder, around: (folder / "labels.csv").symlink_to(around / "labels.csv"),
    "nih_out": lambda folder, around: (folder / "Data_Entry_2017.csv").symlink_to(around / "labels.csv"),
    "npz_out": lambda folder, around: (folder / "data.npz").symlink_to(around / "data.npz"),
}
HARMLESS = {
    "folder_out": lambda folder, around: (folder / "dog" / "more").symlink_to(around),
    "hidden_out": lambda folder, around: (folder / "dog" / ".b.png").symlink_to(around / "canary.png"),
    "pipe_without_suffix": lambda folder, around: os.mkfifo(folder / "dog" / "pipe"),
    "labels_pipe": lambda folder, around: os.mkfifo(folder / "labels.csv"),
}
PIPES = {
    "pipe": lambda folder, around: os.mkfifo(folder / "dog" / "pipe.png"),
    "pipe_npz": lambda folder, around: os.mkfifo(folder / "data.npz"),
}


def nih_folders(root: Path, around: Path) -> list[dict[str, Any]]:
    tasks = []
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    for name in ("../canary.png", "link.png", "/etc/passwd", "list"):
        folder = root / f"nih_{len(tasks)}"
        make(folder / "images" / "a.png")
        (folder / "images" / "link.png").symlink_to(around / "canary.png")
        (folder / "images_001").symlink_to(around)
        make(folder / "Data_Entry_2017.csv", f"{header}{'a.png' if name == 'list' else name},Mass,0,1,50,M,PA\n")
        make(folder / "test_list.txt", f"{name}\n/etc/passwd\n")
        (folder / "train_val_list.txt").symlink_to(around / "list.txt")
        tasks.append({"name": folder.name, "folder": folder})
    return tasks


def test_nothing_outside_data_dir_is_opened(tmp_path, around):
    root = tmp_path / "data"
    bad = [*names_in_a_csv(root, around), *links_in_folders(root, around), *nih_folders(root, around)]
    good = {"name": "good", "folder": root / "good"}
    for kind in ("cat", "dog"):
        make(root / "good" / kind / "a.png")
    harmless = []
    for name, trap in (HARMLESS | PIPES).items():
        for kind in ("cat", "dog"):
            make(root / name / kind / "a.png")
        trap(root / name, around)
        harmless.append({"name": name, "folder": root / name})
    tasks = [{**task, "folder": str(task["folder"])} for task in (good, *bad, *harmless)]
    answer = in_child(__name__, "attempt", [tasks[0]], tasks)
    strays = outside(answer["opened"], root)
    print(f"{len(tasks)} sources, {len(answer['opened'])} files and folders opened, outside data_dir {len(strays)}")
    print(f"memory grew by {answer['grown_mb']:.0f} MB; started, unpickled or connected: {len(answer['forbidden'])}")
    assert strays == [] and answer["forbidden"] == [] and answer["grown_mb"] < 100
    result = answer["result"]
    assert [task["name"] for task in bad if not result[task["name"]]] == []
    assert [name for name in ("good", *HARMLESS) if result[name]] == []
    assert all("a pipe" in result[name][0] for name in PIPES)


def test_a_split_file_names_no_file_that_is_opened(tmp_path, around):
    for kind in ("cat", "dog"):
        make(tmp_path / "in" / kind / "a.png")
    dataset_index = open_source(tmp_path / "in")
    for name in ("../outside/canary.png", "/etc/passwd", "cat/../../outside/canary.png"):
        content = f"image,patient_id,split\n{name},,train\n"
        digest = hashlib.sha256(content.encode()).hexdigest()
        make(tmp_path / "split.csv", f"{content}# sha256: {digest}\n")
        with pytest.raises(DataError, match="is the split of other images"):
            read_split(tmp_path / "split.csv", dataset_index)
    (tmp_path / "split.csv").unlink()
    os.mkfifo(tmp_path / "split.csv")
    with pytest.raises(DataError, match="a pipe"):
        read_split(tmp_path / "split.csv", dataset_index)


# ---- archives and tables


class Harm:
    """What a pickle may do when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def array_file(shape: tuple[int, ...], data: bytes, kind: str = "|u1") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data


def npz(path: Path, images: bytes, labels: bytes | None = None, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """MedMNIST's six arrays, these images in the training split."""
    small, one = array_file((2, 3, 3), bytes(range(18))), array_file((2, 1), b"\0\1")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for split in ("train", "val", "test"):
            archive.writestr(f"{split}_images.npy", images if split == "train" else small)
            archive.writestr(f"{split}_labels.npy", labels if labels and split == "train" else one)
    return path


def edited(path: Path, position: bytes, offset: int, value: bytes) -> None:
    """Other bytes in every header of an archive: after each place where `place` stands."""
    content, start = bytearray(path.read_bytes()), 0
    while (start := content.find(position, start)) >= 0:
        content[start + offset : start + offset + len(value)] = value
        start += 4
    path.write_bytes(content)


def archives(folder: Path, canary: Path) -> dict[str, Path]:
    """Name → file; each must be refused."""
    pickled = pickle.dumps(Harm(canary))
    big = array_file((300_000, 28, 28), b"")
    archives = {
        "object": npz(folder / "object.npz", array_file((2,), pickled, "|O")),
        "raw_pickle": npz(folder / "pickle.npz", pickled),
        "elements_1e12": npz(folder / "1e12.npz", array_file((10**6, 1000, 1000), bytes(99))),
        "elements_1e10": npz(folder / "1e10.npz", array_file((10**4, 1000, 1000), bytes(99))),
        "elements_overflow": npz(folder / "overflow.npz", array_file((2**62, 8, 8), bytes(99))),
        "negative": npz(folder / "negative.npz", array_file((-2, 3, 3), bytes(18))),
        "labels_1e10": npz(folder / "labels.npz", array_file((2, 3, 3), bytes(18)), array_file((2, 10**10), b"\0\1")),
        "not_an_array": npz(folder / "text.npz", b"no array at all"),
        "truthful_bomb": npz(folder / "bomb.npz", big + bytes(300_000 * 784)),
        "encrypted": npz(folder / "encrypted.npz", array_file((2, 3, 3), bytes(18))),
        "unknown_packing": npz(folder / "packing.npz", array_file((2, 3, 3), bytes(18))),
        "damaged": npz(folder / "damaged.npz", array_file((2, 3, 3), bytes(range(18))), compression=zipfile.ZIP_STORED),
    }
    for mark, flags, method in ((b"PK\1\2", 8, 10), (b"PK\3\4", 6, 8)):
        edited(archives["encrypted"], mark, flags, b"\1\0")
        edited(archives["unknown_packing"], mark, method, b"\x63\0")
    edited(archives["damaged"], bytes(range(18)), 5, b"\xff")
    archives["lone_npy"] = make(folder / "lone.npz", array_file((10**12,), b""))
    return {**archives, **tables(folder)}


def tables(folder: Path) -> dict[str, Path]:
    bomb = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros(4 * 2**30, raw=True) + bytes(8)
    rows = gzip.compress(b"image,labels\n" + b"a.png,Mass\n" * 2**20)
    wide = ",".join(f"c{index}" for index in range(100_000))
    findings = "".join(f"a{index}.png,finding {index}\n" for index in range(20_000))
    return {
        "gz_bomb": make(folder / "bomb.csv.gz", bomb),
        "gz_bomb_of_rows": make(folder / "rows.csv.gz", rows * 8),
        "one_cell_of_1e8": make(folder / "cell.csv", b"image,labels\na.png," + b"x" * 10**8 + b"\n"),
        "wide": make(folder / "wide.csv", f"{wide},c0\n{wide},1\n"),
        "many_findings": make(folder / "findings.csv", "image,labels\n" + findings),
        "nul": make(folder / "nul.csv", b"image,labels\n\0.png,Mass\n"),
        "nul_everywhere": make(folder / "nuls.csv", b"image\0,labels\0\n\0a.png\0,\0Mass\n"),
        "utf16": make(folder / "utf16.csv", "image,labels\na.png,Mass\n".encode("utf-16")),
        "pickle": make(folder / "pickle.csv", pickle.dumps(Harm(folder / "ran"))),
    }


def test_archives_and_tables(tmp_path):
    folder, canary = tmp_path / "in", tmp_path / "canary"
    folder.mkdir()
    found = archives(folder, canary)
    good = npz(folder / "good.npz", array_file((2, 3, 3), bytes(18)))
    tasks = [{"name": name, "folder": str(folder), "labels": path.name} for name, path in found.items()]
    warm = {"name": "good", "folder": str(folder), "labels": good.name}
    answer = in_child(__name__, "attempt", [warm], [warm, *tasks])
    result = answer["result"]
    print(f"{len(tasks)} archives and tables made to do harm: memory grew by {answer['grown_mb']:.0f} MB")
    print("\n".join(f"  {name}: {errors[0].rpartition('/')[2][:110]}" for name, errors in result.items() if errors))
    assert result.pop("good") == []
    assert [name for name, errors in result.items() if len(errors) != 1] == []
    assert all(found[name].name in errors[0] for name, errors in result.items())
    assert answer["grown_mb"] < ALLOWED_MB
    assert answer["forbidden"] == [] and not canary.exists() and not (folder / "ran").exists()
    assert outside(answer["opened"], folder) == []


def test_a_pickle_would_do_harm(tmp_path):
    """The canary is a good one: unpickled, it does touch its file."""
    pickle.loads(pickle.dumps(Harm(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
