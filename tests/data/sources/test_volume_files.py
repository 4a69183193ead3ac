"""Volumes from a labels CSV and from class folders, through the builder to batches."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from configs.default_config import Config
from configs.errors import DataError
from data.builder import build_loaders, open_data, split_data
from data.readers.volumes import Volume
from data.sources.formats import open_source, recognise
from data.transforms.volumes import VolumePreprocess

ROOT = Path(__file__).resolve().parents[3]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SPLITS = ["train"] * 7 + ["val"] * 3 + ["test"] * 2


def volume(path: Path, value: int = 0, shape=(9, 8, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(value).integers(-1000, 1000, shape).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.set_sform(image.affine, 1)
    image.to_filename(path)


def slices(folder: Path, source: Path) -> None:
    """A DICOM series: four copies of a single-frame file at four places."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True)
    for number in range(4):
        dataset = pydicom.dcmread(source)
        dataset.ImagePositionPatient = [0, 0, 5 * number]
        dataset.save_as(folder / f"{9 - number}")


@pytest.fixture(scope="module")
def one_slice(tmp_path_factory) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 4, 6, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    dataset.PixelData = np.arange(24, dtype="<u2").tobytes()
    path = tmp_path_factory.mktemp("dicom") / "slice.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("volumes")
    lines = ["image,labels,patient_id,split"]
    for index, split in enumerate(SPLITS):
        name = f"scans/{index:02d}.nii{'.gz' if index % 2 else ''}"
        volume(path / name, index, (9, 8, 7 + index % 3))
        lines.append(f"{name},{('a', 'b', 'a|b')[index % 3]},p{index},{split}")
    (path / "labels.csv").write_text("\n".join(lines))
    return path


def config_of(folder: Path | str, *overrides: str) -> Config:
    base = ["DATA.num_workers=0", "DATA.image_size=[6, 10, 12]", "TRAIN.batch_size=3", "DATA.window=[-500, 500]"]
    return Config.from_overrides([f"DATA.data_dir={folder}", *base, *overrides])


def loaders_of(config: Config):
    dataset_index = open_data(config)
    resolved = config.resolve(dataset_index.class_names, dataset_index.exclusive)
    return dataset_index, build_loaders(resolved, dataset_index, split_data(resolved, dataset_index), MEAN, STD)


# ---- CSV


def test_files_series_and_folders_of_a_csv(tmp_path, one_slice):
    volume(tmp_path / "scans" / "a.nii.gz", 1)
    slices(tmp_path / "images" / "series", one_slice)
    (tmp_path / "labels.csv").write_text("image,labels\nscans/a.nii.gz,Mass\nseries,Zebra\nseries/,Zebra\n")
    dataset_index = open_source(tmp_path, volumes=True)
    assert [study.name for study in dataset_index.studies] == ["scans/a.nii.gz", "images/series"]
    first, second = dataset_index.read(0), dataset_index.read(1)
    assert isinstance(first, Volume) and first.voxels.shape == (7, 8, 9)
    assert second.voxels.shape == (4, 4, 6) and second.spacing_mm == (5, 1, 1)


@pytest.mark.parametrize(
    "name", ["../out.nii.gz", "/etc/out.nii", "scans/../../out.nii", "C:\\out.nii", "..", "link.nii", "linked"]
)
def test_names_may_not_leave_data_dir(tmp_path, name):
    volume(tmp_path / "out.nii", 1)
    data = tmp_path / "data"
    (data / "scans").mkdir(parents=True)
    (data / "link.nii").symlink_to(tmp_path / "out.nii")
    (data / "linked").symlink_to(tmp_path)
    (data / "labels.csv").write_text(f"image,labels\n{name},Mass\n")
    with pytest.raises(DataError, match=r"line 2.*(leaves data_dir|absolute path|leads out of data_dir)"):
        open_source(data, volumes=True)


def test_missing_volumes_are_counted(tmp_path):
    volume(tmp_path / "a.nii", 1)
    (tmp_path / "labels.csv").write_text("image,labels\na.nii,Mass\nb.nii,Mass\n")
    with pytest.raises(DataError, match=r"1 of 2 .*missing: b\.nii"):
        open_source(tmp_path, volumes=True)
    assert len(open_source(tmp_path, volumes=True, allow_missing=True).studies) == 1


def test_images_for_volumes_and_the_reverse_say_what_to_set(folder, tmp_path):
    with pytest.raises(DataError, match=r"names volumes \(scans/00\.nii.*image_size=\[depth, height, width\]"):
        open_data(Config.from_overrides([f"DATA.data_dir={folder}"]))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,labels\na.png,Mass\n")
    with pytest.raises(DataError, match=r"names images \(a\.png\).*image_size=\[height, width\]"):
        open_data(config_of(tmp_path))
    (tmp_path / "series").mkdir()
    (tmp_path / "labels.csv").write_text("image,labels\nseries,Mass\n")
    with pytest.raises(DataError, match=r"Some are folders: .*image_size=\[depth, height, width\]"):
        open_data(Config.from_overrides([f"DATA.data_dir={tmp_path}"]))
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    for kind in ("medmnist", "nih"):
        with pytest.raises(DataError, match=rf"format {kind} holds images.*image_size=\[height, width\]"):
            open_data(config_of(tmp_path, f"DATA.format={kind}"))


# ---- folders


def test_class_folders_of_files_and_series(tmp_path, one_slice):
    for number, name in enumerate(("ill/a.nii.gz", "well/b.nii", "well/deeper/c.nii")):
        volume(tmp_path / name, number)
    slices(tmp_path / "ill" / "patient" / "series", one_slice)
    (tmp_path / "well" / "notes.txt").write_text("x")
    assert recognise(tmp_path) == "folders"
    dataset_index = open_source(tmp_path, volumes=True)
    names = ["ill/a.nii.gz", "ill/patient/series", "well/b.nii", "well/deeper/c.nii"]
    assert [study.name for study in dataset_index.studies] == names and dataset_index.exclusive
    assert [dataset_index.read(index).voxels.ndim for index in range(4)] == [3] * 4
    assert any("1 files are no volumes" in note and "notes.txt" in note for note in dataset_index.notes)
    (tmp_path / "ill" / "patient" / "series").rename(tmp_path.parent / f"{tmp_path.name}_series")
    with pytest.raises(DataError, match=r"names volumes .*image_size=\[depth, height, width\]"):
        open_source(tmp_path, format="folders", class_names=None)


# ---- batches


def test_batches_of_volumes(folder):
    dataset_index, loaders = loaders_of(config_of(folder, "MODEL.in_channels=1", "DATA.spacing_mm=[2, 2, 1]"))
    reference = VolumePreprocess((6, 10, 12), 1, MEAN, STD, (2, 2, 1), (-500, 500))
    assert loaders.preprocess.as_dict() == reference.as_dict()
    for loader, count in ((loaders.train, 7), (loaders.val, 3), (loaders.test, 2)):
        batches = [batch for _, batch in loader.epoch(0)]
        assert sum(len(batch) for batch in batches) == count
        for batch in batches:
            assert batch.inputs.image.shape[1:] == (1, 6, 10, 12) and batch.inputs.image.dtype == torch.float32
            for image, row in zip(batch.inputs.image.numpy(), batch.index.tolist()):
                plain = reference(dataset_index.read(row))
                assert (image == plain).all() is np.bool_(loader is not loaders.train)


def test_three_channels_repeat_the_volume(folder):
    _, loaders = loaders_of(config_of(folder, "DATA.augment=false"))
    image = next(loaders.train.epoch(0))[1].inputs.image * torch.tensor(STD).view(1, 3, 1, 1, 1)
    image = image + torch.tensor(MEAN).view(1, 3, 1, 1, 1)
    assert image.shape == (3, 3, 6, 10, 12)
    torch.testing.assert_close(image[:, 0], image[:, 2])


def test_batches_do_not_depend_on_workers_or_on_where_an_epoch_began(folder):
    def batches(workers: int, start: int = 0):
        loader = loaders_of(config_of(folder, f"DATA.num_workers={workers}", "DATA.horizontal_flip=0.5"))[1].train
        return [batch for _, batch in loader.epoch(2, start)]

    here, there, later = batches(0), batches(2), batches(0, 1)
    for one, other in (*zip(here, there), *zip(here[1:], later)):
        assert torch.equal(one.inputs.image, other.inputs.image) and torch.equal(one.index, other.index)


def test_mirror_images_only_where_asked_for(folder):
    for flip, nearer in ((0, False), (1, True)):
        dataset_index, loaders = loaders_of(config_of(folder, f"DATA.horizontal_flip={flip}"))
        votes = []
        for _, batch in loaders.train.epoch(0):
            for image, row in zip(batch.inputs.image.numpy(), batch.index.tolist()):
                plain = loaders.preprocess(dataset_index.read(row))
                kept, mirrored = (np.abs(image - p).mean() for p in (plain, plain[..., ::-1]))
                votes.append(mirrored < kept)
        assert sum(votes) >= 5 if nearer else sum(votes) <= 2


def test_a_damaged_volume_is_tolerated_as_far_as_allowed(tmp_path):
    for index in range(6):
        volume(tmp_path / f"{index}.nii", index)
    rows = "\n".join(f"{i}.nii,{'a' if i % 2 else 'b'},{'train' if i < 4 else 'val'}" for i in range(6))
    (tmp_path / "labels.csv").write_text("image,labels,split\n" + rows)
    (tmp_path / "1.nii").write_bytes((tmp_path / "1.nii").read_bytes()[:400])
    _, loaders = loaders_of(config_of(tmp_path, "DATA.max_bad_images=1"))
    assert sum(len(batch) for _, batch in loaders.train.epoch(0)) == 3
    _, loaders = loaders_of(config_of(tmp_path))
    with pytest.raises(DataError, match=r"1\.nii"):
        list(loaders.train.epoch(0))


# ---- the preset


def test_the_presets_data_are_drawn_and_load(tmp_path, monkeypatch):
    config = Config.from_yaml(ROOT / "configs" / "volume_swin3d.yaml", ["DATA.sample_count=24"])
    monkeypatch.chdir(tmp_path)
    dataset_index, loaders = loaders_of(config)
    assert (tmp_path / "data" / "sample_chest_ct" / "labels.csv").is_file() and len(dataset_index.studies) == 24
    _, batch = next(loaders.train.epoch(0))
    assert batch.inputs.image.shape == (8, 1, 32, 64, 64) and torch.isfinite(batch.inputs.image).all()
    for override in ("DATA.data_dir=null", "DATA.data_dir=./data/sample_chest_xray"):
        size = ["DATA.image_size=[32, 64, 64]", override]
        assert len(open_data(Config.from_overrides(size)).studies) == 24
    assert not (tmp_path / "data" / "sample_chest_xray").exists()
