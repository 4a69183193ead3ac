"""The one convention: every order and direction of axes gives the same array, spacing and positions."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest

from configs.errors import DataError
from data.readers.volumes import MAX_VOXELS, check_size, finite, to_convention

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORIENTATIONS = [(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]


def volume_and_affine(turn: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(voxels [4, 5, 6] in the convention, affine of (x, y, z)) with spacing 2.5, 1.5, 0.5 mm (z, y, x)."""
    voxels = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if isinstance(turn, float) else turn) * [0.5, 1.5, 2.5]
    affine[:3, 3] = -7.0, 11.0, -300.0
    return voxels, affine


def stored(voxels: np.ndarray, affine: np.ndarray, axes, flips) -> tuple[np.ndarray, np.ndarray]:
    """The same object in another order of axes, by nibabel's own orientation transforms."""
    ornt = np.empty((3, 2))
    for position, (axis, flip) in enumerate(zip(axes, flips)):
        ornt[axis] = position, -1 if flip else 1
    turned = nibabel.orientations.apply_orientation(voxels.T, ornt)
    return turned, affine @ nibabel.orientations.inv_ornt_aff(ornt, voxels.T.shape)


def turn(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("axes, flips", ORIENTATIONS)
def test_every_orientation_gives_the_same_volume(axes, flips, degrees):
    voxels, affine = volume_and_affine(turn(degrees))
    volume = to_convention(*stored(voxels, affine, axes, flips))
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-9)
    np.testing.assert_allclose(volume.spacing_mm, (2.5, 1.5, 0.5))
    assert volume.voxels.dtype == np.float32 and volume.voxels.flags.c_contiguous and volume.voxels.flags.writeable


def rotations(count: int) -> list[np.ndarray]:
    """Random ones in which each axis is nearest to a direction of its own; else nibabel's choice is another."""
    found, rng = [], np.random.default_rng(5)
    while len(found) < count:
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        if len(set(np.abs(rotation).argmax(axis=0))) == len(set(np.abs(rotation).argmax(axis=1))) == 3:
            found.append(rotation)
    return found


@pytest.mark.parametrize("seed, rotation", list(enumerate(rotations(20))))
def test_against_nibabels_closest_canonical(seed, rotation):
    """nibabel's array is R, A, S: ours with x and y reversed and the axes backwards."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * rng.uniform(0.5, 3, 3), rng.normal(size=3) * 100
    voxels = rng.normal(size=(3, 4, 5)).astype(np.float32)
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, RAS_FROM_LPS @ affine))
    ours = to_convention(voxels, affine)
    np.testing.assert_array_equal(ours.voxels, theirs.get_fdata(dtype=np.float32)[::-1, ::-1].T)
    np.testing.assert_allclose(ours.spacing_mm, theirs.header.get_zooms()[::-1], rtol=1e-5)


def test_axis_codes_are_those_that_the_docstring_names():
    voxels, affine = volume_and_affine()
    volume = to_convention(*stored(voxels, affine, (2, 0, 1), (True, False, True)))
    assert nibabel.aff2axcodes(RAS_FROM_LPS @ volume.affine) == ("L", "P", "S")


@pytest.mark.parametrize("degrees", [0, 33])
def test_a_marked_voxel_keeps_its_place_in_the_patient(degrees):
    voxels, affine = volume_and_affine(turn(degrees))
    voxels[1, 3, 4] = 1000
    position = affine @ (4, 3, 1, 1)
    for axes, flips in ORIENTATIONS[::5]:
        volume = to_convention(*stored(voxels, affine, axes, flips))
        z, y, x = np.unravel_index(volume.voxels.argmax(), volume.voxels.shape)
        np.testing.assert_allclose(volume.affine @ (x, y, z, 1), position, atol=1e-9)


def test_an_axial_slice_has_the_front_above_and_the_patients_right_on_the_left():
    affine = np.eye(4)
    voxels = np.zeros((3, 3, 3), np.float32)
    voxels[0, 0, 2] = 1  # smallest x and y in DICOM's coordinates: right, front; largest z: head
    assert to_convention(voxels, affine).voxels[2, 0, 0] == 1


@pytest.mark.parametrize(
    "linear",
    [np.zeros((3, 3)), np.diag([1.0, 1.0, 0.0]), np.full((3, 3), np.nan), np.ones((3, 3)), np.diag([1, 1, np.inf])],
    ids=["zero", "flat", "nan", "parallel", "infinite"],
)
def test_unusable_positions_are_refused(linear):
    affine = np.eye(4)
    affine[:3, :3] = linear
    with pytest.raises(DataError, match="position of its voxels"):
        to_convention(np.zeros((2, 2, 2)), affine)


def test_voxels_that_are_no_numbers():
    voxels = np.array([[[1.0, np.nan], [-3.0, np.inf]]], np.float32)
    np.testing.assert_array_equal(finite(voxels), [[[1, -3], [-3, -3]]])
    with pytest.raises(DataError, match="not one"):
        finite(np.full((1, 1, 2), np.nan))


@pytest.mark.parametrize("shape", [(0, 2, 2), (-1, 2, 2), (30000, 30000, 30000), (2**62, 4, 1), (MAX_VOXELS + 1, 1, 1)])
def test_sizes_that_are_not_believed(shape):
    with pytest.raises(DataError, match=str(shape[0])):
        check_size(shape)


def test_the_largest_size_is_allowed():
    check_size((MAX_VOXELS // 2**18, 512, 512))
