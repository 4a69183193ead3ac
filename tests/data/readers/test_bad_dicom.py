"""Damaged DICOM files, series and NIfTI files: only a DataError or a finite image, with bounded memory.

Neither DICOM nor NIfTI has checksums: a bit flipped among stored values cannot be noticed; in a .nii.gz it is.
"""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from configs.errors import DataError
from data.readers.images import read_image
from data.sources.volume_files import read_volume
from tests.data.readers.bad_dicom import BAD_SLICES, damaged, random_damage, series, structured
from tests.data.readers.bad_images import Case, zeros
from tests.faults import ROOT, in_child, outside

SHARED = ROOT.parent / "shared" / "data" / "dicom"
ALLOWED_MB = 200
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def walk(task: dict[str, Any]) -> dict[str, str]:
    """In the child: read all, save what was read, return the DataError of each other; any other exception ends it."""
    errors = {}
    for name in task["names"]:
        try:
            got = read_image(Path(task["folder"], name)) if task["images"] else read_volume(Path(task["folder"], name))
            np.save(f"{task['out']}/{name}.npy", got if isinstance(got, np.ndarray) else got.voxels)
        except DataError as error:
            errors[name] = str(error)
    return errors


def walked(folder: Path, out: Path, names: list[str], warm: list[str], images: bool) -> dict[str, Any]:
    task = {"folder": str(folder), "out": str(out), "images": images}
    out.mkdir()
    return in_child(__name__, "walk", {**task, "names": warm}, {**task, "names": names})


def check(answer: dict[str, Any], cases: list[Case], out: Path, *folders: Path) -> Counter[str]:
    """Counts of how the cases ended, after asserting that each ended as it must."""
    faults = {case.name: fault for case in cases if (fault := fault_of(case, answer["result"].get(case.name), out))}
    print(f"peak memory grew by {answer['grown_mb']:.0f} MB, {ALLOWED_MB} are allowed")
    assert not faults, "\n".join(f"{name}: {fault}" for name, fault in faults.items())
    assert answer["grown_mb"] < ALLOWED_MB and answer["forbidden"] == []
    assert outside(answer["opened"], out, *folders) == []
    return Counter("refused" if case.name in answer["result"] else "read" for case in cases)


def fault_of(case: Case, error: str | None, out: Path) -> str | None:
    if error is not None:
        return None if case.name in error and case.must != "read" else f"refused: {error}"
    got = np.load(out / f"{case.name}.npy")
    if case.must == "refuse":
        return f"read as {got.dtype} {got.shape}, {got.min()} to {got.max()}"
    if not np.isfinite(got).all() or not got.size:
        return "not finite"
    if case.pixels is None:
        return None
    same = got.shape == case.pixels.shape and got.dtype == case.pixels.dtype
    return None if same and np.allclose(got, case.pixels, rtol=0, atol=1e-6) else "other values"


@pytest.mark.parametrize("real", [False, True])
def test_dicom_images(tmp_path, real):
    if real and not SHARED.is_dir():
        pytest.skip("no ../shared/data/dicom here")
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    cases = [*random_damage(SHARED, 9)] if real else [*structured(), *random_damage(tmp_path, 30)]
    for case in cases:
        (folder / case.name).write_bytes(case.content)
    sound = [case.name for case in cases if case.must == "read"] or [cases[0].name]
    answer = walked(folder, out, [case.name for case in cases], sound, images=True)
    counts = check(answer, cases, out, folder)
    kinds = Counter(case.must for case in cases)
    print(f"{len(cases)} damaged DICOM files{' from real ones' if real else ''} ({dict(kinds)}): {dict(counts)}")
    assert len(cases) >= (100 if real else 200) and min(counts.values()) > 10


def test_dicom_series(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    sound = np.stack([read_back(content, tmp_path) for content in series()])
    cases = [Case("sound", b"", "read", sound)]
    folders = {"sound": series()}
    for name, attributes in BAD_SLICES.items():
        cases.append(Case(name, b"", "refuse"))
        folders[name] = series(**attributes)
    for number in range(30):
        slices, rng = series(), np.random.default_rng(number)
        slices[number % 5] = damaged(slices[number % 5], rng)
        cases.append(Case(f"damaged_{number}", b"", "survive"))
        folders[f"damaged_{number}"] = slices
    for name, slices in folders.items():
        (folder / name).mkdir(parents=True)
        for number, content in enumerate(slices):
            (folder / name / f"{number}.dcm").write_bytes(content)
    counts = check(walked(folder, out, list(folders), ["sound"], images=False), cases, out, folder)
    print(f"{len(cases)} series of five slices, one of them damaged: {dict(counts)}")
    assert min(counts.values()) > 5


def read_back(content: bytes, folder: Path) -> np.ndarray:
    import pydicom

    (folder / "one.dcm").write_bytes(content)
    return pydicom.dcmread(folder / "one.dcm").pixel_array.astype(np.float32)


# ---- NIfTI


def nifti(version: int = 1, **fields: Any) -> bytes:
    """A sound file; fields: of its header, as they are written over it afterwards."""
    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)(VOXELS, np.diag([-2.0, -2.0, 3.0, 1.0]))
    content = bytearray(image.to_bytes())
    header = type(image.header)(bytes(content[: 348 if version == 1 else 540]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[: len(header.binaryblock)] = header.binaryblock
    return bytes(content)


def extended(size: int) -> bytes:
    """A header with an extension that says it has `size` bytes, and the start of it."""
    content = nifti(vox_offset=2**25)
    return content[:348] + b"\1\0\0\0" + size.to_bytes(4, "little", signed=True) + b"\6\0\0\0"


def packed_bomb(start: bytes, gigabytes: int) -> bytes:
    """A .nii.gz of two members: this, and gigabytes of zeros (gzip stores the length modulo 2**32)."""
    import zlib

    crc = 0
    for _ in range(gigabytes * 2**6):
        crc = zlib.crc32(bytes(2**24), crc)
    member = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros(gigabytes * 2**30, raw=True)
    return gzip.compress(start) + member + crc.to_bytes(4, "little") + (gigabytes * 2**30 % 2**32).to_bytes(4, "little")


def nifti_cases() -> list[Case]:
    header = nifti()[:352]
    refused = {
        "dims.nii": nifti(2, dim=[3, 10**5, 10**5, 10**5, 1, 1, 1, 1]),
        "dims.nii.gz": gzip.compress(nifti(2, dim=[3, 10**5, 10**5, 10**5, 1, 1, 1, 1])),
        "dims_overflow.nii": nifti(2, dim=[3, 2**62, 4, 4, 1, 1, 1, 1]),
        "dims_negative.nii": nifti(2, dim=[3, -5, 6, 7, 1, 1, 1, 1]),
        "more_than_there.nii.gz": gzip.compress(nifti(dim=[3, 800, 800, 800, 1, 1, 1, 1])),
        "bomb_behind.nii.gz": packed_bomb(nifti(), 1),
        "bomb_true.nii.gz": packed_bomb(nifti(dim=[3, 800, 800, 800, 1, 1, 1, 1])[:352], 1),
        "bomb_extension.nii.gz": packed_bomb(extended(2**30 - 16), 1),
        "bomb_extension_negative.nii.gz": packed_bomb(extended(-16), 1),
        "offset_nan.nii": nifti(vox_offset=np.nan),
        "offset_inf.nii.gz": gzip.compress(nifti(vox_offset=np.inf)),
        "offset_far.nii.gz": gzip.compress(nifti(vox_offset=1e12)),
        "offset_negative.nii": nifti(vox_offset=-9),
        "slope_inf.nii": nifti(scl_slope=np.inf, scl_inter=0),
        "slope_huge.nii": nifti(scl_slope=1e38, scl_inter=0),
        "datatype_0.nii": nifti(datatype=0),
        "datatype_rgb.nii": nifti(datatype=128, bitpix=24),
        "datatype_complex.nii.gz": gzip.compress(nifti(datatype=32, bitpix=64)),
        "datatype_999.nii": nifti(datatype=999),
        "affine_nan.nii": nifti(srow_x=[np.nan, 0, 0, 0]),
        "affine_flat.nii": nifti(srow_x=[0, 0, 0, 0]),
        "header_only.nii": header,
        "pair.nii": nifti(magic=b"ni1"),
    }
    cases = [Case(name, content, "refuse") for name, content in refused.items()]
    sound = VOXELS.T.astype(np.float32)
    cases += [
        Case(f"sound.nii{end}", data, "read", sound) for end, data in (("", nifti()), (".gz", gzip.compress(nifti())))
    ]
    for number in range(40):
        rng = np.random.default_rng(number)
        packed = bytearray(gzip.compress(nifti()))
        packed[int(rng.integers(10, len(packed)))] ^= 1 << int(rng.integers(8))
        cases.append(Case(f"flipped_{number}.nii.gz", bytes(packed), "notice", sound))
        plain = bytearray(nifti())
        plain[int(rng.integers(0, 352))] ^= 1 << int(rng.integers(8))
        cases.append(Case(f"flipped_{number}.nii", bytes(plain), "survive"))
    return cases


def test_nifti(tmp_path):
    folder, out, cases = tmp_path / "in", tmp_path / "out", nifti_cases()
    folder.mkdir()
    for case in cases:
        (folder / case.name).write_bytes(case.content)
    answer = walked(folder, out, [case.name for case in cases], ["sound.nii", "sound.nii.gz"], images=False)
    counts = check(answer, cases, out, folder)
    print(f"{len(cases)} damaged NIfTI files: {dict(counts)}")
    assert min(counts.values()) > 10
