"""Built-in sample volumes: synthetic chest CT with six drawn findings, as NIfTI files of every orientation.

No patients: ellipsoids, tubes and fluid levels in millimetres, in Hounsfield units. What makes a finding is in three
dimensions and in the file's geometry: fluid lies at the back and free air in front, a nodule is a ball where a vessel
is a tube, the heart points left or, rarely in life and often here, right. Each file has its own order and direction
of axes, spacing, byte order and scaling, so that a program which ignored the header would learn little. Numbers
measured on these volumes say nothing about real scans.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from data.phantom.series import series, write_whole_folder
from data.phantom.thorax import FINDINGS, Thorax, draw_thorax
from data.readers.volumes import Volume

# Chance of each finding in a patient; about one patient in six has none.
CHANCE = dict(zip(FINDINGS, (0.25, 0.25, 0.22, 0.28, 0.28, 0.25), strict=True))
REMAINS = 0.9  # chance that a patient's finding is there in one of the scans

README = """\
Synthetic chest CT, drawn by data/phantom/volumes.py: no patients, no real scans.

labels.csv: image (path from this folder), labels (joined by '|', or 'No Finding'),
    patient_id, age (years), sex (M or F).
volumes/: NIfTI, Hounsfield units; orientation, spacing, byte order and type differ from file to file.
masks/: NIfTI uint8 on the grid of each volume with findings; bit k is set where finding k lies:
"""


@dataclass(frozen=True)
class PhantomVolume:
    """One scan with all that is known about it.

    volume: in HU, in the convention of data/readers/volumes.py, rounded to whole numbers.
    masks: finding: bool [D, H, W], where it was drawn. labels: the findings, in the order of FINDINGS.
    axes: which axis (0 x, 1 y, 2 z) is the file's first, second, third; flips: whether each of these runs backwards.
    storage: 'int16', 'big' (endian int16), 'scaled' (uint16 with slope and intercept) or 'float32'.
    """

    volume: Volume
    masks: dict[str, np.ndarray]
    labels: tuple[str, ...]
    patient_id: str
    age: int
    sex: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    storage: str


def draw_volumes(count: int, size: int = 64, seed: int = 0) -> Iterator[PhantomVolume]:
    """Yields `count` volumes, 1 to 3 a patient, a patient's ones in a row.

    size: columns; a volume has three quarters to all of it in rows, about half of it in slices. 64 to 512.
    seed: of the series; same arguments, same volumes, and volume i does not depend on count.
    Raises ValueError for a size out of range, or a negative count or seed.
    """
    return series(_patient_volumes, count, size, seed)


def write_phantom_volumes(folder: Path, count: int = 240, size: int = 64, seed: int = 0) -> None:
    """Writes `count` volumes with labels and masks into the new `folder`, which appears only when it is complete.

    count, size, seed: as for `draw_volumes`. README.txt, written with them, describes the files.
    Raises FileExistsError if `folder` exists, ValueError as `draw_volumes`.
    """
    volumes = draw_volumes(count, size, seed)
    write_whole_folder(Path(folder), lambda partial: _fill_folder(partial, volumes))


def write_volume(path: Path, volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...], storage: str) -> None:
    """Writes a volume as NIfTI with its axes in another order; see PhantomVolume for the arguments."""
    import nibabel

    voxels = volume.voxels.T.transpose(axes)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [*axes, 3]]
    for axis in np.flatnonzero(flips).tolist():
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1.0
        voxels = np.flip(voxels, axis)
    dtype, slope, shift = {
        "int16": ("<i2", 1.0, 0.0),
        "big": (">i2", 1.0, 0.0),
        "scaled": ("<u2", 0.5, -1100.0),
        "float32": ("<f4", 1.0, 0.0),
        "mask": ("u1", 1.0, 0.0),
    }[storage]
    header = nibabel.Nifti1Header(endianness=">" if storage == "big" else "<")
    image = nibabel.Nifti1Image(((voxels - shift) / slope).astype(dtype), affine, header, dtype=np.dtype(dtype))
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_slope_inter(slope, shift)  # nibabel writes the values as they are, with these beside
    image.to_filename(path)


def _patient_volumes(seed: int, number: int, size: int) -> Iterator[PhantomVolume]:
    """All scans of patient `number` of the series `seed`; depends on nothing else."""
    rng = Generator(PCG64(SeedSequence((seed, number))))
    sex, age = ("M" if rng.random() < 0.53 else "F"), int(np.clip(rng.normal(58, 15), 18, 92))
    found = [name for name in FINDINGS if rng.random() < CHANCE[name]]
    thorax = Thorax.sample(rng, sex)
    for visit in range(int(rng.integers(1, 4))):
        own = Generator(PCG64(SeedSequence((seed, number, visit + 1))))
        # The side of the heart does not change from one scan to the next.
        present = tuple(name for name in found if own.random() < REMAINS or name == "Dextrocardia")
        affine, shape = _sample_grid(own, size)
        voxels, masks = draw_thorax(thorax, present, affine, shape, own)
        yield PhantomVolume(
            Volume(voxels, affine),
            masks,
            tuple(masks),
            f"v{number:05d}",
            age,
            sex,
            tuple(own.permutation(3).tolist()),
            tuple((own.random(3) < 0.5).tolist()),
            str(own.choice(("int16", "big", "scaled", "float32"))),
        )


def _sample_grid(rng: Generator, size: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """(affine to mm, (slices, rows, columns)) of one scan about the middle of the chest, a third of them oblique."""
    columns, rows = size, int(rng.integers(3 * size // 4, size + 1))
    slices = int(rng.integers(7 * size // 16, 10 * size // 16 + 1))
    width, height = rng.uniform(370, 460), rng.uniform(290, 370)
    spacing = np.array([width / columns, max(width / columns, 300 / rows), height / slices])
    turn = _rotation(rng.uniform(-6, 6, 3) if rng.random() < 1 / 3 else np.zeros(3))
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    middle = (np.array([columns, rows, slices]) - 1) / 2
    affine[:3, 3] = rng.uniform(-12, 12, 3) - affine[:3, :3] @ middle
    return affine, (slices, rows, columns)


def _rotation(degrees: np.ndarray) -> np.ndarray:
    """[3, 3]: turns about x, y and z, one after the other."""
    out = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        out = turn @ out
    return out


def _fill_folder(folder: Path, volumes: Iterator[PhantomVolume]) -> None:
    for name in ("volumes", "masks"):
        (folder / name).mkdir()
    (folder / "README.txt").write_text(README + "    " + ", ".join(FINDINGS) + "\n", "utf-8")
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "labels", "patient_id", "age", "sex"))
        for number, item in enumerate(volumes):
            name = f"{number:05d}_{item.patient_id}.nii.gz"
            write_volume(folder / "volumes" / name, item.volume, item.axes, item.flips, item.storage)
            if item.masks:
                write_volume(folder / "masks" / name, _mask_bits(item), item.axes, item.flips, "mask")
            rows.writerow(
                (f"volumes/{name}", "|".join(item.labels) or "No Finding", item.patient_id, item.age, item.sex)
            )


def _mask_bits(item: PhantomVolume) -> Volume:
    """The masks in one volume: bit k is FINDINGS[k]."""
    bits = np.zeros(item.volume.voxels.shape, np.float32)
    for name, mask in item.masks.items():
        bits += mask.astype(np.float32) * 2 ** FINDINGS.index(name)
    return Volume(bits, item.volume.affine)
