"""NIfTI files: orders, scalings, units, damage; nibabel's own reading is the reference."""

import gzip
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from configs.errors import DataError
from data.sources.volume_files import VolumeReader, read_volume

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data" / "nifti"
needs_nifti = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data/nifti here")
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 5)).astype(np.int16)
AFFINE = np.array([[-1.5, 0, 0, 40], [0, -2.0, 0, 60], [0, 0, 3.0, -20], [0, 0, 0, 1]])  # L, P, S


def save(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = AFFINE, kind=nibabel.Nifti1Image, **edit):
    """edit: header fields set before writing, 'endian' and 'unit'."""
    header = kind.header_class(endianness=edit.pop("endian", "<"))
    header.set_data_dtype(voxels.dtype)
    image = kind(voxels, affine, header)
    image.header.set_xyzt_units(edit.pop("unit", "mm"))
    image.set_sform(affine, 1)
    for name, value in edit.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def changed(path: Path, offset: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_file_in_the_conventions_own_order_comes_back(tmp_path, suffix, kind):
    volume = read_volume(save(tmp_path / f"a{suffix}", kind=kind))
    np.testing.assert_array_equal(volume.voxels, VOXELS.T)
    np.testing.assert_allclose(volume.spacing_mm, (3, 2, 1.5))
    np.testing.assert_allclose(
        volume.affine, np.diag([1.5, 2, 3, 1]) + np.array([[0, 0, 0, v] for v in (-40, -60, -20, 0)])
    )


@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_all_orders_of_axes_read_alike(tmp_path, flips):
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, 1)
    for axes in permutations(range(3)):
        image.as_reoriented(np.column_stack([axes, flips])).to_filename(tmp_path / "a.nii")
        volume = read_volume(tmp_path / "a.nii")
        np.testing.assert_array_equal(volume.voxels, VOXELS.T)
        np.testing.assert_allclose(volume.spacing_mm, (3, 2, 1.5))
        np.testing.assert_allclose(volume.affine[:3, 3], (-40, -60, -20))


def test_byte_order_scaling_and_trailing_axes(tmp_path):
    for name, options, want in (
        ("big", {"endian": ">"}, VOXELS),
        ("scaled", {"scl_slope": 0.5, "scl_inter": -1024.0}, VOXELS * 0.5 - 1024),
        ("slope0", {"scl_slope": 0.0, "scl_inter": 7.0}, VOXELS),
    ):
        path = save(tmp_path / f"{name}.nii", **options)
        np.testing.assert_allclose(read_volume(path).voxels, want.T, err_msg=name)
        np.testing.assert_allclose(read_volume(path).voxels, nibabel.load(path).get_fdata().T, err_msg=name)
    np.testing.assert_array_equal(read_volume(save(tmp_path / "4.nii", VOXELS[..., None, None])).voxels, VOXELS.T)


@pytest.mark.parametrize("unit, factor", [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_lengths_become_millimetres(tmp_path, unit, factor):
    volume = read_volume(save(tmp_path / "a.nii", unit=unit))
    np.testing.assert_allclose(volume.spacing_mm, np.array([3, 2, 1.5]) * factor)


def test_sform_wins_over_qform_and_pixdim(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(np.diag([9.0, 9, 9, 1]), 1)
    image.set_sform(AFFINE, 2)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").spacing_mm, (3, 2, 1.5))
    image.set_sform(AFFINE, 0)
    image.to_filename(tmp_path / "b.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii").spacing_mm, (9, 9, 9))


def test_a_masked_background_becomes_the_smallest_value(tmp_path):
    voxels = VOXELS.astype(np.float32)
    voxels[0] = np.nan
    got = read_volume(save(tmp_path / "a.nii", voxels)).voxels
    assert np.isfinite(got).all() and (got[:, :, 0] == np.nanmin(voxels)).all()


def refused(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        read_volume(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_single_volume_is_refused(tmp_path):
    refused(save(tmp_path / "4d.nii", np.zeros((3, 4, 5, 2), np.int16)), r"\[3, 4, 5, 2\].*one of its volumes")
    refused(save(tmp_path / "2d.nii", np.zeros((3, 4), np.int16)), r"\[3, 4\].*no volume")
    refused(save(tmp_path / "c.nii", np.zeros((3, 4, 5), np.complex64)), "complex")
    colour = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save(tmp_path / "rgb.nii", colour), "colours")


def test_a_file_that_does_not_say_left_from_right_is_refused(tmp_path):
    """qform_code at byte 252, sform_code at 254."""
    refused(
        changed(save(tmp_path / "a.nii"), 252, bytes(4)), "neither sform_code nor qform_code.*left and right.*set_sform"
    )


def test_damaged_files_name_themselves(tmp_path):
    plain, packed = save(tmp_path / "a.nii"), save(tmp_path / "a.nii.gz")
    content, zipped = plain.read_bytes(), packed.read_bytes()
    for index, (name, data) in enumerate(
        [
            ("cut.nii", content[:-7]),
            ("head.nii", content[:100]),
            ("cut.nii.gz", zipped[:-30]),
            ("few.nii.gz", zipped[:20]),
            ("flip.nii.gz", zipped[:200] + bytes([zipped[200] ^ 255]) + zipped[201:]),
            ("text.nii", b"no volume at all"),
            ("text.nii.gz", gzip.compress(b"no volume at all")),
            ("png.nii", b"\x89PNG\r\n\x1a\n" + bytes(400)),
            ("empty.nii", b""),
        ]
    ):
        (tmp_path / f"{index}_{name}").write_bytes(data)
        refused(tmp_path / f"{index}_{name}", "cannot read volume")
    refused(tmp_path / "missing.nii.gz", "no such file")
    (tmp_path / "a.xyz").write_bytes(content)
    refused(tmp_path / "a.xyz", r"volumes are \.nii or \.nii\.gz files, folders")


def test_a_header_that_lies_is_not_believed(tmp_path):
    """dim at byte 40, vox_offset at 108, the first row of the sform at 280."""
    huge = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    refused(changed(save(tmp_path / "huge.nii"), 40, huge), "30000 x 30000 x 30000.*can be read")
    large = np.array([3, 600, 600, 600], "<i2").tobytes()
    refused(changed(save(tmp_path / "large.nii"), 40, large), "cannot read volume")
    negative = np.array([3, -4, 6, 5], "<i2").tobytes()
    refused(changed(save(tmp_path / "negative.nii"), 40, negative), "cannot read volume")
    refused(changed(save(tmp_path / "offset.nii"), 108, np.array([1e9], "<f4").tobytes()), "cannot read volume")
    flat = np.zeros(4, "<f4").tobytes()
    refused(changed(save(tmp_path / "flat.nii"), 280, flat), "position of its voxels")
    packed = tmp_path / "huge.nii.gz"
    packed.write_bytes(gzip.compress((tmp_path / "huge.nii").read_bytes()))
    refused(packed, "30000")


def test_the_reader_of_a_dataset_index(tmp_path):
    save(tmp_path / "a.nii")
    np.testing.assert_array_equal(VolumeReader(tmp_path, ("b.nii", "a.nii"))(1).voxels, VOXELS.T)


def test_nibabel_is_imported_only_for_nifti():
    code = (
        "import sys, data.builder, data.sources.volume_files; "
        "sys.exit('nibabel' in sys.modules or 'pydicom' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ---- real files


@needs_nifti
@pytest.mark.parametrize(
    "name, shape, spacing",
    [
        ("mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", (189, 233, 197), (1, 1, 1)),
        ("anatomical.nii", (25, 41, 33), (2, 2, 2)),
    ],
)
def test_real_files_against_nibabel(name, shape, spacing):
    image = nibabel.load(SHARED / name)
    volume = read_volume(SHARED / name)
    assert volume.voxels.shape == shape
    np.testing.assert_allclose(volume.spacing_mm, spacing, rtol=1e-6)
    canonical = nibabel.as_closest_canonical(image)
    np.testing.assert_allclose(volume.voxels, canonical.get_fdata(dtype=np.float32)[::-1, ::-1].T)
    corner = np.diag([-1, -1, 1, 1]) @ canonical.affine @ (shape[2] - 1, shape[1] - 1, 0, 1)
    np.testing.assert_allclose(volume.affine[:, 3], corner, atol=1e-4)


@needs_nifti
def test_a_real_four_dimensional_file_is_refused():
    refused(SHARED / "example4d.nii.gz", r"\[128, 96, 24, 2\]")
