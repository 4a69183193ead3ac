"""DICOM series and multi-frame files: sorted by position alone, checked for gaps, in the one convention."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from configs.errors import DataError
from data.sources.volume_files import read_volume

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "dicom"
HU = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)  # [z, y, x] in the convention
SPACING = np.array([2.5, 0.8, 0.6])  # z, y, x
ORIGIN = np.array([-20.0, 30.0, -100.0])  # of voxel (0, 0, 0), as (x, y, z)
# which axis of (x, y, z) the row direction, the column direction and the order of slices follow
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


def dataset_of(pixels: np.ndarray, photometric: str = "MONOCHROME2") -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset


def slices_of(plane: str = "axial", signs=(1, 1, 1), turn: np.ndarray | None = None) -> list[Dataset]:
    """HU cut into slices of a plane; signs: direction of rows, of columns and of the slices' numbers."""
    axes = PLANES[plane]
    array = HU.T.transpose(axes)  # (row direction, column direction, slice)
    first = ORIGIN.copy()
    for position, (axis, sign) in enumerate(zip(axes, signs)):
        if sign < 0:
            array = np.flip(array, position)
            first[axis] += SPACING[2 - axis] * (array.shape[position] - 1)
    turn = np.eye(3) if turn is None else turn
    directions = [sign * turn[:, axis] for axis, sign in zip(axes, signs)]
    found = []
    for number in range(array.shape[2]):
        dataset = dataset_of(array[:, :, number].T)
        corner = turn @ first + directions[2] * SPACING[2 - axes[2]] * number
        dataset.ImagePositionPatient = [f"{value:.8g}" for value in corner]
        dataset.ImageOrientationPatient = [f"{value:.8g}" for value in np.concatenate(directions[:2])]
        dataset.PixelSpacing = [SPACING[2 - axes[1]], SPACING[2 - axes[0]]]
        dataset.SliceThickness = 99.0
        dataset.InstanceNumber = 1000 - number * 7 % 5
        found.append(dataset)
    return found


def save(folder: Path, slices: list[Dataset], names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(1).permutation(len(slices))
    for number, dataset in enumerate(slices):
        name = names[number] if names else f"IM{order[number]:03d}.dcm"
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder


def is_the_volume(volume) -> None:
    np.testing.assert_array_equal(volume.voxels, HU)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], ORIGIN, atol=1e-5)


@pytest.mark.parametrize("plane", PLANES)
def test_planes_directions_and_names_do_not_matter(tmp_path, plane):
    for number, signs in enumerate(product((1, -1), repeat=3)):
        is_the_volume(read_volume(save(tmp_path / str(number), slices_of(plane, signs))))


def test_against_a_slow_sort_of_an_oblique_series(tmp_path):
    """The slices one after the other by their distance along the normal, reckoned without NumPy's sorting."""
    cos, sin = np.cos(0.3), np.sin(0.3)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    slices = slices_of("axial", (1, 1, -1), turn)
    volume = read_volume(save(tmp_path / "a", slices))
    rest, order = list(slices), []
    while rest:
        lowest = rest[0]
        for item in rest[1:]:
            row, column = (np.array(item.ImageOrientationPatient, float)[k : k + 3] for k in (0, 3))
            normal = np.cross(row, column)
            if np.dot(np.array(item.ImagePositionPatient, float), normal) < np.dot(
                np.array(lowest.ImagePositionPatient, float), normal
            ):
                lowest = item
        order.append(lowest)
        rest = [item for item in rest if item is not lowest]
    want = np.stack([np.frombuffer(item.PixelData, "<i2").reshape(6, 7) for item in order])
    np.testing.assert_array_equal(volume.voxels, want)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    corner = volume.affine @ (3, 2, 4, 1)
    np.testing.assert_allclose(corner[:3], turn @ (ORIGIN + np.array([3, 2, 4]) * SPACING[::-1]), atol=1e-4)


def test_names_without_suffix_and_other_files(tmp_path):
    folder = save(tmp_path / "a", slices_of(), [f"IM_{k}.{k}" if k % 2 else f"slice{k}" for k in range(5)])
    (folder / "notes.txt").write_text("not a slice")
    (folder / ".hidden.dcm").write_bytes(b"x")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "deeper").mkdir()
    is_the_volume(read_volume(folder))


def test_every_slice_has_its_own_rescale_and_padding_is_no_value(tmp_path):
    slices, want = slices_of(), HU.astype(np.float32)
    for number, dataset in enumerate(slices):
        dataset.RescaleSlope, dataset.RescaleIntercept = number + 1, -100 * number
        want[number] = want[number] * (number + 1) - 100 * number
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a", slices)).voxels, want)
    value = int(HU[2, 1, 1])
    for dataset in slices:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -5000
        dataset.add_new("PixelPaddingValue", "SS", value)
    got, padded = read_volume(save(tmp_path / "b", slices)).voxels, value == HU
    np.testing.assert_array_equal(got[~padded], HU[~padded] - 5000.0)
    assert padded.any() and (got[padded] == HU[~padded].min() - 5000.0).all()


def refused(folder: Path, words: str) -> str:
    with pytest.raises(DataError, match=words) as error:
        read_volume(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_slice_and_a_double_one_are_named(tmp_path):
    names = [f"{k}.dcm" for k in range(5)]
    folder = save(tmp_path / "a", slices_of(), names)
    (folder / "2.dcm").unlink()
    refused(folder, r"'1\.dcm' and '3\.dcm' are 5 mm apart, others .* mm: about 1 slices are missing")
    folder = save(tmp_path / "b", slices_of(), names)
    (folder / "copy.dcm").write_bytes((folder / "3.dcm").read_bytes())
    refused(folder, r"'3\.dcm' and 'copy\.dcm' lie at the same place")
    slices = slices_of()
    slices[2].ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + 2 * SPACING[0] + 0.9]
    refused(save(tmp_path / "c", slices, names), "apart, others")
    slices = slices_of()
    slices[2].ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + 2 * SPACING[0] + 0.05]
    read_volume(save(tmp_path / "d", slices, names))


DIFFERENCES = {
    "series": (lambda d: setattr(d, "SeriesInstanceUID", "9.9"), r"2 series.*1\.2\.3 \(4 files\), 9\.9 \(1 files\)"),
    "orientation": (lambda d: setattr(d, "ImageOrientationPatient", [0, 1, 0, 0, 0, 1]), "ImageOrientationPatient"),
    "spacing": (lambda d: setattr(d, "PixelSpacing", [0.8, 0.7]), r"PixelSpacing: \[0\.8, 0\.6\] and \[0\.8, 0\.7\]"),
    "no place": (lambda d: delattr(d, "ImagePositionPatient"), "lacks ImagePositionPatient"),
    "two numbers": (lambda d: setattr(d, "ImagePositionPatient", [1, 2]), "3 finite numbers"),
    "zero spacing": (lambda d: setattr(d, "PixelSpacing", [0, 0]), r"PixelSpacing \[0\.0, 0\.0\] must be positive"),
    "no directions": (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "right angles"),
    "inverted": (lambda d: setattr(d, "PhotometricInterpretation", "MONOCHROME1"), "MONOCHROME1: .*MONOCHROME2"),
    "short": (lambda d: setattr(d, "PixelData", d.PixelData[:-20]), r"'4\.dcm'"),
    "no pixels": (lambda d: delattr(d, "PixelData"), r"'4\.dcm'"),
    "size lies": (lambda d: setattr(d, "Rows", 60000), "Rows"),
}


@pytest.mark.parametrize("change, words", DIFFERENCES.values(), ids=DIFFERENCES)
def test_what_does_not_belong_together_is_refused(tmp_path, change, words):
    slices = slices_of()
    change(slices[4])
    refused(save(tmp_path / "a", slices, [f"{k}.dcm" for k in range(5)]), words)


def test_sizes_a_tilted_gantry_and_single_slices(tmp_path):
    slices = slices_of()
    for number, dataset in enumerate(slices):
        dataset.ImagePositionPatient = (ORIGIN + np.array([0, 0.5, 2.5]) * number).tolist()
    refused(save(tmp_path / "tilt", slices), "sheared by 11.3 degrees")
    smaller = slices_of()
    smaller[1].Rows, smaller[1].PixelData = 5, smaller[1].PixelData[:-14]
    refused(save(tmp_path / "size", smaller), r"Rows and Columns: \[.*\] and")
    refused(save(tmp_path / "one", slices_of()[:1]), "one slice; a volume needs two")
    (tmp_path / "none" / "series").mkdir(parents=True)
    refused(tmp_path / "none", "no DICOM file lies right in it; its folders are series")
    (tmp_path / "one" / "broken.dcm").write_bytes(b"hello")
    refused(tmp_path / "one", r"'broken\.dcm' is not DICOM")


def test_a_truncated_slice_is_named(tmp_path):
    folder = save(tmp_path / "a", slices_of(), [f"{k}.dcm" for k in range(5)])
    (folder / "3.dcm").write_bytes((folder / "3.dcm").read_bytes()[:-40])
    refused(folder, r"'3\.dcm'")


def test_links_may_not_leave_the_data(tmp_path):
    outside, inside = save(tmp_path / "outside", slices_of()), tmp_path / "data" / "series"
    inside.mkdir(parents=True)
    for path in outside.iterdir():
        (inside / path.name).symlink_to(path)
    with pytest.raises(DataError, match="symbolic links lead out of data_dir"):
        read_volume(inside, tmp_path / "data")
    is_the_volume(read_volume(inside, tmp_path))


# ---- multi-frame


def enhanced(signs=(1, 1, 1)) -> Dataset:
    """The slices as one Enhanced CT file, position and rescale a frame, the rest shared."""
    slices = slices_of("axial", signs)
    dataset = dataset_of(np.stack([np.frombuffer(item.PixelData, "<i2").reshape(6, 7) for item in slices]))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(slices)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, 99
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence, frames = [shared], []
    for number, item in enumerate(slices):
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = item.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = 2, number
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


@pytest.mark.parametrize("down", [False, True])
def test_an_enhanced_file_is_a_volume(tmp_path, down):
    enhanced((1, 1, -1 if down else 1)).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path / "a.dcm")
    order = np.arange(5)[:, None, None]
    np.testing.assert_array_equal(volume.voxels, HU * 2.0 + (4 - order if down else order))
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], ORIGIN, atol=1e-5)


def test_multi_frame_files_that_do_not_say_where_their_frames_lie(tmp_path):
    dataset = enhanced()
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(tmp_path / "a.dcm", "5 frames, but PerFrameFunctionalGroupsSequence places 0")
    dataset = enhanced()
    del dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    refused(tmp_path / "b.dcm", "'frame 4': it lacks ImagePositionPatient")
    slices_of()[0].save_as(tmp_path / "c.dcm", enforce_file_format=True)
    refused(tmp_path / "c.dcm", "one slice; name the folder")
    folder = tmp_path / "series"
    folder.mkdir()
    enhanced().save_as(folder / "a.dcm", enforce_file_format=True)
    refused(folder, "several frames: name this file itself")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data/dicom here")
def test_a_real_folder_of_unrelated_files_is_refused():
    refused(SHARED, "cannot read volume")
    refused(SHARED / "pydicom_CT_small.dcm", "one slice; name the folder")
