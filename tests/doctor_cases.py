"""Set-ups, sound and broken, that doctor.py and train.py must agree about: name → what makes one, and its exit code."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data.phantom.volumes import write_phantom_volumes
from tests.study_runs import STUDIES, write_studies
from tests.training_runs import arguments, write_class_folders, write_npz

Make = Callable[[Path], list[str]]
CASES: dict[str, tuple[Make, int]] = {}
NAMES = [f"影像{number:02d}.png" for number in range(24)]
VOLUME = {
    "MODEL__backbone": "convnext3d_tiny",
    "DATA__image_size": "[16,32,32]",
    "TRAIN__batch_size": 2,
    "TRAIN__channels_last": "false",
}


def case(code: int) -> Callable[[Make], Make]:
    """Add a set-up whose run ends with this exit code."""

    def add(make: Make) -> Make:
        CASES[make.__name__] = make, code
        return make

    return add


def call(tmp: Path, data: Path, **others) -> list[str]:
    """Arguments for both programs; others: SECTION__key=value."""
    return arguments(data, tmp / "runs", "run", **{"TRAIN__epochs": 1, **others})


def write_table(root: Path, encoding: str = "utf-8", lines: list[str] | None = None, header: str = "") -> Path:
    """24 images of 12 patients with Chinese names, and labels.csv."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        ok, packed = cv2.imencode(".png", rng.integers(0, 255, (40, 40), np.uint8))
        assert ok
        (root / name).write_bytes(packed.tobytes())
    own = [f"{name},{'肺炎' if number % 2 else '正常'},p{number // 2}" for number, name in enumerate(NAMES)]
    text = "\n".join([header or "图像,标签,patient_id", *(own if lines is None else lines)]) + "\n"
    (root / "labels.csv").write_bytes(text.encode(encoding))
    return root


def with_splits(root: Path, shared: bool) -> Path:
    """The same with a column of splits, that has a patient on two sides or not."""
    lines = []
    for number, name in enumerate(NAMES):
        split = "val" if number >= (17 if shared else 16) else "train"
        lines.append(f"{name},{'肺炎' if number % 2 else '正常'},p{number // 2},{split}")
    return write_table(root, lines=lines, header="图像,标签,patient_id,split")


def write_dicom(path: Path, seed: int, **attributes: object) -> None:
    """16 bits of noise in Explicit VR Little Endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    pixels = np.random.default_rng(seed).integers(0, 4096, (40, 40)).astype(np.uint16)
    found.Rows, found.Columns = pixels.shape
    found.SamplesPerPixel, found.PhotometricInterpretation, found.PixelRepresentation = 1, "MONOCHROME2", 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
    found.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(found, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, found, enforce_file_format=True)


# ---- sound


@case(0)
def class_folders(tmp: Path) -> list[str]:
    return call(tmp, write_class_folders(tmp / "data"))


@case(0)
def an_npz(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"))


@case(0)
def a_gb18030_table(tmp: Path) -> list[str]:
    return call(tmp, write_table(tmp / "数据", "gb18030"), DATA__encoding="gb18030")


@case(0)
def dicom_folders(tmp: Path) -> list[str]:
    for number in range(12):
        write_dicom(tmp / "data" / ("正常", "肺炎")[number % 2] / f"{number}", number)
    return call(tmp, tmp / "data")


@case(0)
def studies(tmp: Path) -> list[str]:
    args = call(tmp, write_studies(tmp / "data"))
    return [*args, "--set", *STUDIES]


@case(0)
def volumes(tmp: Path) -> list[str]:
    write_phantom_volumes(tmp / "data", 10, 64)
    return call(tmp, tmp / "data", **VOLUME)


@case(0)
def hierarchical_with_an_average(tmp: Path) -> list[str]:
    return call(
        tmp, write_npz(tmp / "data"), MODEL__hierarchical="true", MODEL__task="multi_label", TRAIN__ema_decay=0.9
    )


@case(0)
def splits_that_are_given(tmp: Path) -> list[str]:
    return call(tmp, with_splits(tmp / "data", shared=False))


# ---- sound, with something to be said


@case(0)
def an_unreadable_image_that_is_allowed(tmp: Path) -> list[str]:
    return call(tmp, _truncated(write_table(tmp / "data"), 1), DATA__max_bad_images=1)


@case(0)
def a_missing_image_that_is_allowed(tmp: Path) -> list[str]:
    (write_table(tmp / "data") / NAMES[3]).unlink()
    return call(tmp, tmp / "data", DATA__allow_missing_images="true")


@case(0)
def a_patient_on_two_sides_that_is_allowed(tmp: Path) -> list[str]:
    return call(tmp, with_splits(tmp / "data", shared=True), DATA__allow_patient_overlap="true")


@case(0)
def copies_of_one_image(tmp: Path) -> list[str]:
    root = write_table(tmp / "data")
    for name in NAMES[1:5]:
        shutil.copy(root / NAMES[0], root / name)
    return call(tmp, root)


@case(0)
def more_workers_than_cores(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), DATA__num_workers=(os.cpu_count() or 1) + 1)


# ---- broken settings


@case(2)
def an_unknown_setting(tmp: Path) -> list[str]:
    return call(tmp, tmp, TRAIN__batchsize=3)


@case(2)
def broken_yaml(tmp: Path) -> list[str]:
    (tmp / "配置.yaml").write_text("TRAIN: {epochs: [1\nDATA", encoding="utf-8")
    return ["--config", str(tmp / "配置.yaml")]


@case(2)
def a_config_that_is_no_file(tmp: Path) -> list[str]:
    return ["--config", str(tmp)]


@case(2)
def an_unknown_backbone(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), MODEL__backbone="resnet-18")


@case(2)
def a_device_that_is_not_there(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), TRAIN__device="cuda:17")


@case(2)
def a_precision_that_is_not_there(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), TRAIN__mixed_precision="fp16")


@case(2)
def weights_of_a_class_too_many(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), LOSS__pos_weight="[1,2,3]")


@case(2)
def a_map_to_teach_where_there_is_none(tmp: Path) -> list[str]:
    root = write_class_folders(tmp / "data")
    return call(tmp, root, MODEL__attention="none", LOSS__attention="{method: mask, masks: nowhere}")


@case(2)
def a_memory_budget_that_cannot_be_met(tmp: Path) -> list[str]:
    budget = "{enabled: true, memory_budget_gb: 0.0000001}"
    return call(tmp, write_npz(tmp / "data"), MODEL__gradient_checkpointing=budget)


@case(2)
def a_best_epoch_by_a_class_that_validation_lacks(tmp: Path) -> list[str]:
    lines = []
    for number, name in enumerate(NAMES):
        split, of_train = ("val", "正常") if number >= 16 else ("train", ("正常", "肺炎", "结核")[number % 3])
        lines.append(f"{name},{of_train if number != 17 else '肺炎'},p{number // 2},{split}")
    root = write_table(tmp / "data", lines=lines, header="图像,标签,patient_id,split")
    return call(tmp, root, CHECKPOINT__best_by="结核")


# ---- broken weights


@case(2)
def pretrained_weights_that_are_not_there(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), MODEL__pretrained=tmp / "w.pth")


@case(2)
def published_weights_without_a_network(tmp: Path) -> list[str]:
    """HF_HUB_OFFLINE is set by the test."""
    return call(tmp, write_npz(tmp / "data"), MODEL__pretrained="true")


@case(2)
def weights_that_are_none(tmp: Path) -> list[str]:
    (tmp / "w.pth").write_bytes(b"no weights at all")
    return call(tmp, write_npz(tmp / "data"), MODEL__init_from=tmp / "w.pth")


@case(2)
def a_teacher_that_is_not_there(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), LOSS__teacher=tmp / "t.pth")


# ---- broken data


@case(2)
def data_that_are_not_there(tmp: Path) -> list[str]:
    return call(tmp, tmp / "nowhere")


@case(2)
def a_folder_of_dicom_without_labels(tmp: Path) -> list[str]:
    for number in range(4):
        write_dicom(tmp / "data" / f"{number}.dcm", number)
    return call(tmp, tmp / "data")


@case(2)
def an_unreadable_image(tmp: Path) -> list[str]:
    return call(tmp, _truncated(write_table(tmp / "data"), 1))


@case(2)
def an_empty_file_and_a_text(tmp: Path) -> list[str]:
    root = write_table(tmp / "data")
    (root / NAMES[0]).write_bytes(b"")
    (root / NAMES[1]).write_text("no image")
    return call(tmp, root, DATA__max_bad_images=1)


@case(2)
def a_missing_image(tmp: Path) -> list[str]:
    (write_table(tmp / "data") / NAMES[3]).unlink()
    return call(tmp, tmp / "data")


@case(2)
def a_patient_on_two_sides(tmp: Path) -> list[str]:
    return call(tmp, with_splits(tmp / "data", shared=True))


@case(2)
def one_patient_alone(tmp: Path) -> list[str]:
    lines = [f"{name},{'肺炎' if number % 2 else '正常'},p1" for number, name in enumerate(NAMES)]
    return call(tmp, write_table(tmp / "data", lines=lines))


@case(2)
def a_table_that_is_no_table(tmp: Path) -> list[str]:
    root = write_table(tmp / "data")
    (root / "labels.csv").unlink()
    (root / "labels.xlsx").write_bytes(b"PK\x03\x04" + bytes(200))
    return call(tmp, root)


@case(2)
def a_table_in_another_encoding(tmp: Path) -> list[str]:
    return call(tmp, write_table(tmp / "data", "gb18030"), DATA__encoding="utf-8")


@case(2)
def an_empty_table(tmp: Path) -> list[str]:
    return call(tmp, write_table(tmp / "data", lines=[]))


@case(2)
def a_class_that_no_column_has(tmp: Path) -> list[str]:
    return call(tmp, write_table(tmp / "data"), DATA__class_names="[肺炎,结核]", DATA__labels_file="others.csv")


@case(2)
def a_column_that_says_nothing(tmp: Path) -> list[str]:
    root = write_studies(tmp / "data")
    (root / "clinical.csv").write_text(
        "study_id,age,sex\n" + "".join(f"s{number},50,{'FM'[number % 2]}\n" for number in range(40))
    )
    return [*call(tmp, root), "--set", *STUDIES]


# ---- broken places


@case(2)
def runs_where_a_file_is(tmp: Path) -> list[str]:
    (tmp / "runs").write_text("")
    return call(tmp, write_npz(tmp / "data"), LOGGING__log_dir=tmp / "logs")


@case(2)
def runs_that_cannot_be_written(tmp: Path) -> list[str]:
    return call(tmp, write_npz(tmp / "data"), CHECKPOINT__save_dir="/proc/runs", LOGGING__log_dir=tmp / "logs")


@case(2)
def logs_where_a_file_is(tmp: Path) -> list[str]:
    (tmp / "logs").write_text("")
    return call(tmp, write_npz(tmp / "data"), LOGGING__log_dir=tmp / "logs")


@case(2)
def a_cache_where_a_file_is(tmp: Path) -> list[str]:
    (tmp / "cache").write_text("")
    return call(tmp, write_class_folders(tmp / "data"), DATA__cache="disk", DATA__cache_dir=tmp / "cache")


@case(2)
def a_name_that_is_taken(tmp: Path) -> list[str]:
    (tmp / "runs" / "run").mkdir(parents=True)
    (tmp / "runs" / "run" / "config.yaml").write_text("")
    return call(tmp, write_npz(tmp / "data"))


def _truncated(root: Path, count: int) -> Path:
    for name in NAMES[:count]:
        (root / name).write_bytes((root / name).read_bytes()[:200])
    return root
