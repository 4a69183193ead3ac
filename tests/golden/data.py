"""Small data sets for the golden runs, drawn from fixed seeds with nothing of this project: they never change."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import nibabel
import numpy as np

COUNT, SIDE = 44, 40
FINDINGS = ("Disc", "Bar", "Ring")


def write_images(folder: Path) -> None:
    """Grey PNGs with a disc, a bar or a ring, several to an image; every fifth label is unknown, patients have two."""
    rng = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(COUNT):
        image = rng.normal(90, 18, (SIDE, SIDE))
        present = rng.random(3) < 0.45
        for finding in np.flatnonzero(present):
            _draw(image, int(finding), rng)
        name = f"case_{number:03d}.png"
        cv2.imwrite(str(folder / "images" / name), image.clip(0, 255).astype(np.uint8))
        labels = ["" if rng.random() < 0.2 else str(int(value)) for value in present]
        split = "test" if number % 22 >= 18 else "val" if number % 22 >= 14 else "train"
        rows.append([name, *labels, f"p{number // 2:03d}", split, 30 + number % 40])
    _write_csv(folder / "labels.csv", ["image", *FINDINGS, "patient_id", "split", "age"], rows)


def write_classes(folder: Path) -> None:
    """Folders of images, one per class: 16 discs and 16 bars."""
    rng = np.random.default_rng(8)
    for finding, name in enumerate(FINDINGS[:2]):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            image = rng.normal(90, 18, (SIDE, SIDE))
            _draw(image, finding, rng)
            cv2.imwrite(str(folder / name / f"{number:02d}.png"), image.clip(0, 255).astype(np.uint8))


def write_volumes(folder: Path) -> None:
    """NIfTI volumes [x, y, z] of 24 × 24 × 12 voxels of 2 × 2 × 4 mm, half of them with a bright ball."""
    rng = np.random.default_rng(9)
    folder.mkdir(parents=True)
    x, y, z = np.mgrid[:24, :24, :12]
    rows = []
    for number in range(18):
        voxels = rng.normal(-200, 80, (24, 24, 12))
        present = number % 2
        if present:
            centre = rng.integers(6, 18, 2)
            voxels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (2 * (z - 6)) ** 2 < 25] = 250
        image = nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))
        name = f"scan_{number:02d}.nii.gz"
        nibabel.save(image, folder / name)
        split = ("train", "train", "train", "val", "train", "test")[number // 2 % 6]
        rows.append([name, present, 1 - present, f"p{number:02d}", split])
    _write_csv(folder / "labels.csv", ["image", "Ball", "Nothing", "patient_id", "split"], rows)


def _draw(image: np.ndarray, finding: int, rng: np.random.Generator) -> None:
    centre = tuple(int(value) for value in rng.integers(10, SIDE - 10, 2))
    if finding == 1:
        cv2.rectangle(image, centre, (centre[0] + 4, centre[1] + 14), 210, -1)
    else:
        cv2.circle(image, centre, 6, 200, -1 if finding == 0 else 2)


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
