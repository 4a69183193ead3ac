"""The drawn volumes: reproducible, really three-dimensional, and stored so that the header has to be read."""

import csv
from collections import Counter

import nibabel
import numpy as np
import pytest

from data.phantom.thorax import FINDINGS
from data.phantom.volumes import draw_volumes, write_phantom_volumes
from data.sources.formats import open_source
from data.sources.volume_files import read_volume


@pytest.fixture(scope="module")
def drawn():
    return list(draw_volumes(60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "data" / "sample"
    write_phantom_volumes(path, 30)
    return path


def alone(drawn, finding):
    """Volumes with this finding, or with none of them; there are some."""
    found = [item for item in drawn if (finding in item.labels if finding else not item.labels)]
    assert found, f"no volume was drawn with {finding or 'no finding'}"
    return found


def test_the_same_arguments_draw_the_same_volumes(drawn):
    for one, other in zip(drawn[:6], draw_volumes(6), strict=True):
        np.testing.assert_array_equal(one.volume.voxels, other.volume.voxels)
        np.testing.assert_array_equal(one.volume.affine, other.volume.affine)
        assert (one.labels, one.patient_id, one.axes, one.flips, one.storage) == (
            (other.labels, other.patient_id, other.axes, other.flips, other.storage)
        )
    assert not np.array_equal(next(draw_volumes(1, seed=1)).volume.voxels, drawn[0].volume.voxels)


def test_patients_findings_and_files_vary(drawn):
    patients = Counter(item.patient_id for item in drawn)
    assert set(patients.values()) == {1, 2, 3}
    names = Counter(name for item in drawn for name in item.labels)
    assert set(names) == set(FINDINGS) and min(names.values()) >= 5 and len(alone(drawn, None)) >= 5
    assert len({item.axes for item in drawn}) == 6 and len({item.flips for item in drawn}) == 8
    assert {item.storage for item in drawn} == {"int16", "big", "scaled", "float32"}
    spacings = np.array([item.volume.spacing_mm for item in drawn])
    assert (spacings.max(0) / spacings.min(0) > 1.2).all() and (spacings[:, 0] > spacings[:, 1]).all()
    shapes = np.array([item.volume.voxels.shape for item in drawn])
    assert (shapes.min(0) >= (28, 48, 64)).all() and (shapes.max(0) <= (40, 64, 64)).all()


def test_values_are_hounsfield_units_in_whole_numbers(drawn):
    for item in drawn[:10]:
        voxels = item.volume.voxels
        assert voxels.dtype == np.float32 and (voxels == np.rint(voxels)).all()
        assert -1024 <= voxels.min() < -950 and 250 < voxels.max() <= 3000


def positions(item, mask):
    """Positions in mm (x to the left, y to the back, z to the head) of a mask's voxels, [N, 3]."""
    z, y, x = np.nonzero(mask)
    return (item.volume.affine @ np.stack([x, y, z, np.ones_like(x)]))[:3].T


def test_masks_are_where_the_findings_belong(drawn):
    for item in drawn:
        assert tuple(item.masks) == item.labels
        for name, mask in item.masks.items():
            assert mask.shape == item.volume.voxels.shape and mask.any()
            slices = np.unique(np.nonzero(mask)[0]).size
            assert slices >= (1 if name == "Nodule" else 3), "a finding on one slice only is not three-dimensional"
    for name, axis, sign in (("Effusion", 1, 1), ("Pneumothorax", 1, -1)):
        for item in alone(drawn, name):
            middle = positions(item, item.masks[name]).mean(0)
            assert sign * middle[axis] > 15, f"{name} lies on the wrong side of gravity"
    for item in alone(drawn, "Dextrocardia"):
        assert positions(item, item.masks["Dextrocardia"])[:, 0].mean() < -5


def test_findings_have_their_densities(drawn):
    values = {name: [i.volume.voxels[i.masks[name]].mean() for i in alone(drawn, name)] for name in FINDINGS}
    assert max(values["Pneumothorax"]) < -700 < -650 < min(np.median(values[name]) for name in ("Effusion", "Nodule"))
    assert all(-150 < value < 60 for value in values["Effusion"])


def test_hearts_are_larger_where_they_should_be(drawn):
    def size(item):
        mask = item.masks["Cardiomegaly"]
        return mask.sum() * np.prod(item.volume.spacing_mm)

    large = [size(item) for item in alone(drawn, "Cardiomegaly")]
    assert min(large) > 300_000  # cubic millimetres, with what lies between the lungs


def test_a_folder_reads_back_exactly_what_was_drawn(folder, drawn):
    dataset_index = open_source(folder, volumes=True)
    assert len(dataset_index.studies) == 30 and dataset_index.notes == ()
    for index, item in enumerate(drawn[:30]):
        volume, study = dataset_index.read(index), dataset_index.studies[index]
        np.testing.assert_array_equal(volume.voxels, item.volume.voxels)
        np.testing.assert_allclose(volume.affine, item.volume.affine, atol=1e-3)
        assert study.patient_id == item.patient_id and study.table == {"age": str(item.age), "sex": item.sex}
        labels = {name for name, code in zip(dataset_index.class_names, study.labels) if code}
        assert labels == set(item.labels)
    assert set(dataset_index.class_names) == {name for item in drawn[:30] for name in item.labels}


def test_masks_lie_on_the_grids_of_their_volumes(folder, drawn):
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        names = [row["image"].removeprefix("volumes/") for row in csv.DictReader(file)]
    for name, item in zip(names[:12], drawn):
        path = folder / "masks" / name
        assert path.exists() == bool(item.masks)
        if item.masks:
            bits, image = read_volume(path), nibabel.load(folder / "volumes" / name)
            np.testing.assert_allclose(nibabel.load(path).affine, image.affine)
            for number, finding in enumerate(FINDINGS):
                want = item.masks.get(finding, np.zeros(bits.voxels.shape, bool))
                np.testing.assert_array_equal(bits.voxels.astype(int) >> number & 1, want)


def test_who_ignores_the_header_sees_something_else(folder, drawn):
    """The stored array, taken as it is, has the spine behind in few files only."""
    right = 0
    for path, item in zip(sorted((folder / "volumes").iterdir()), drawn):
        stored = nibabel.load(path).get_fdata().T
        right += stored.shape == item.volume.voxels.shape and np.array_equal(stored, item.volume.voxels)
    assert right <= 3


def test_the_folder_appears_when_it_is_complete(tmp_path, monkeypatch):
    def broken(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.phantom.volumes.write_volume", broken)
    with pytest.raises(KeyboardInterrupt):
        write_phantom_volumes(tmp_path / "a", 2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError, match="exists"):
        write_phantom_volumes(tmp_path / "b", 1)


@pytest.mark.parametrize("arguments", [(1, 63), (1, 513), (-1, 64), (1, 64, -1)])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"may be negative|64 to 512"):
        draw_volumes(*arguments)
