"""Built-in sample data: synthetic chest radiographs with 14 drawn findings.

Every image is geometry, no patient: lungs, heart, ribs and vessels are drawn as layers,
the findings change those layers (`data.phantom.findings`), and the sum is exposed like a
radiograph (bright is dense, MONOCHROME2). Made for trying the application out and for tests;
numbers measured on it say nothing about real radiographs.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from data.phantom.anatomy import draw_frontal, draw_lateral
from data.phantom.drawing import Array, Mask, noise
from data.phantom.findings import PAINTERS, Spot, bend
from data.phantom.layers import Radiograph, Shape
from data.phantom.series import series, write_whole_folder

FINDINGS: tuple[str, ...] = tuple(PAINTERS)

# Chance that a sick patient has a finding of itself, and its rise for 20 years above 55.
ONSET = {
    "Atelectasis": (0.11, 0.1),
    "Cardiomegaly": (0.12, 0.4),
    "Effusion": (0.085, 0.2),
    "Infiltration": (0.12, 0.0),
    "Mass": (0.15, 0.2),
    "Nodule": (0.15, 0.1),
    "Pneumonia": (0.13, 0.1),
    "Pneumothorax": (0.11, -0.3),
    "Consolidation": (0.12, 0.0),
    "Edema": (0.11, 0.3),
    "Emphysema": (0.12, 0.5),
    "Fibrosis": (0.13, 0.4),
    "Pleural_Thickening": (0.10, 0.2),
    "Hernia": (0.14, 0.6),
}

# finding: what it brings along, with which chance
COMPANIONS = {
    "Cardiomegaly": {"Edema": 0.3, "Effusion": 0.3},
    "Edema": {"Cardiomegaly": 0.4, "Effusion": 0.35},
    "Effusion": {"Atelectasis": 0.3, "Cardiomegaly": 0.15},
    "Pneumonia": {"Infiltration": 0.35, "Consolidation": 0.3, "Effusion": 0.12},
    "Consolidation": {"Pneumonia": 0.25},
    "Emphysema": {"Pneumothorax": 0.3},
    "Fibrosis": {"Pleural_Thickening": 0.4},
    "Pleural_Thickening": {"Fibrosis": 0.2},
    "Mass": {"Nodule": 0.25, "Atelectasis": 0.15},
}

MALE_ODDS = {"Emphysema": 1.4, "Pneumothorax": 1.3, "Mass": 1.2, "Hernia": 0.75}
# A hyperinflated chest hides these, so one image never shows both.
HIDDEN_BY = {"Emphysema": ("Cardiomegaly", "Edema"), "Edema": ("Fibrosis",)}
LOCAL = ("Consolidation", "Pneumonia", "Mass", "Infiltration", "Atelectasis", "Nodule")
PAINT_ORDER = ("Emphysema", "Pneumothorax", "Edema", "Infiltration", "Fibrosis")


@dataclass(frozen=True)
class PhantomImage:
    """One image with all that is known about it.

    Attributes:
        image: uint8 [size, size], bright is dense.
        masks: finding: bool [size, size], the area in which it was drawn.
        labels: the findings, in the order of `FINDINGS`; empty for a normal chest.
        patient_id: shared by a patient's images, which share their anatomy too.
        view: 'PA', 'AP' or 'LATERAL'.
        age: in years.
        sex: 'M' or 'F'.
    """

    image: np.ndarray
    masks: dict[str, Mask]
    labels: tuple[str, ...]
    patient_id: str
    view: str
    age: int
    sex: str


@dataclass(frozen=True)
class Patient:
    """What a patient's images share."""

    name: str
    age: int
    sex: str
    shape: Shape
    spots: dict[str, Spot]
    images: int


@dataclass(frozen=True)
class Shot:
    """How one image was taken."""

    view: str
    turn: float  # degrees
    zoom: float
    offset: tuple[float, float]
    black: float  # density that is shown black
    white: float
    gamma: float
    grain: float  # noise, in parts of the grey scale
    seed: int


# --- images


def develop(layers: Radiograph) -> Array:
    """The density that the layers add up to, about 0 to 1."""
    air = np.clip(layers.air, 0, 1.3)
    return layers.soft - 0.42 * air + 0.17 * layers.marks * np.minimum(air, 1) + layers.bone + layers.extra


def expose(density: Array, shot: Shot, size: int) -> np.ndarray:
    """Blur, noise, grey scale and rounding: [width, width] to uint8 [size, size]."""
    small = cv2.resize(density, (size, size), interpolation=cv2.INTER_AREA)
    grey = np.clip((small - shot.black) / (shot.white - shot.black), 0, 1) ** shot.gamma
    rng = Generator(PCG64(shot.seed))
    uneven = 0.012 * noise(rng, size, 7) + 0.008 * noise(rng, size, 24)
    grain = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), 0.6)
    return np.clip(255 * (grey + uneven + shot.grain * grain) + 0.5, 0, 255).astype(np.uint8)


def placement(shot: Shot, width: int) -> np.ndarray:
    """The affine map [2, 3] for the patient's position before the detector."""
    middle = (width / 2, width / 2)
    matrix = cv2.getRotationMatrix2D(middle, shot.turn, shot.zoom)
    matrix[:, 2] += np.asarray(shot.offset) * width
    return matrix


def shrink(mask: Mask, matrix: np.ndarray, size: int) -> Mask:
    """`mask` [width, width] in the image's [size, size]; never empty."""
    width = mask.shape[0]
    moved = cv2.warpAffine(mask.astype(np.float32), matrix, (width, width))
    small = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA)
    return small >= min(0.5, max(float(small.max()), 1e-6))


def draw(shape: Shape, spots: dict[str, Spot], shot: Shot, size: int) -> tuple[np.ndarray, dict[str, Mask]]:
    """One image of one chest.

    Args:
        shape: the chest without findings.
        spots: finding: where and how strong.
        shot: how the image is taken.
        size: of the image in pixels, 64 to 512; drawn at 256 at least.
    Returns:
        image uint8 [size, size], and finding: mask, bool [size, size].
    """
    for name, spot in spots.items():
        shape = bend(shape, name, spot)
    width = max(256, size)
    radiograph = (draw_lateral if shot.view == "LATERAL" else draw_frontal)(shape, width)
    order = [n for n in PAINT_ORDER if n in spots] + [n for n in spots if n not in PAINT_ORDER]
    drawn = {name: PAINTERS[name](radiograph, spots[name]) for name in order}
    matrix = placement(shot, width)
    edge = cv2.BORDER_REPLICATE
    density = cv2.warpAffine(develop(radiograph), matrix, (width, width), borderMode=edge)
    masks = {name: shrink(drawn[name], matrix, size) for name in FINDINGS if name in drawn}
    return expose(density, shot, size), masks


# --- patients


def sample_findings(rng: Generator, age: int, sex: str) -> tuple[str, ...]:
    """A sick patient's findings, at least one, in the order of `FINDINGS`."""
    chance = np.array([rate * np.exp(rise * (age - 55) / 20) for rate, rise in ONSET.values()])
    odds = np.array([MALE_ODDS.get(name, 1.0) for name in FINDINGS])
    chance *= odds if sex == "M" else 1 / odds
    found = {FINDINGS[k] for k in np.flatnonzero(rng.random(len(FINDINGS)) < chance)}
    if not found:
        found = {FINDINGS[rng.choice(len(FINDINGS), p=chance / chance.sum())]}
    for name in sorted(found):
        found |= {other for other, p in COMPANIONS.get(name, {}).items() if rng.random() < p}
    for name, hidden in HIDDEN_BY.items():
        found -= set(hidden) if name in found else set()
    return tuple(name for name in FINDINGS if name in found)


def place_findings(rng: Generator, found: tuple[str, ...]) -> dict[str, Spot]:
    """A `Spot` for each finding, so that none lies on top of another where that can be."""
    sides = {name: int(rng.choice((-1, 1))) for name in FINDINGS}
    if "Pneumothorax" in found:
        sides["Pleural_Thickening"] = -sides["Pneumothorax"]
    slots = [(side, zone) for side in (-1, 1) for zone in (0, 1, 2)]
    rng.shuffle(slots)
    late = [
        ("Pneumothorax" in found and s == sides["Pneumothorax"])
        + ("Effusion" in found and (s, z) == (sides["Effusion"], 2))
        for s, z in slots
    ]
    slots = [slots[k] for k in np.argsort(late, kind="stable")]
    spots = {}
    for name in found:
        side, zone = slots[LOCAL.index(name)] if name in LOCAL else (sides[name], 0)
        if name == "Pleural_Thickening":
            zone = int(rng.integers(0, 3))
        scale = float(rng.uniform(0.85, 1.2))
        spots[name] = Spot(float(rng.random()), side, zone, scale, int(rng.integers(2**31)))
    return spots


def sample_shape(rng: Generator, sex: str) -> Shape:
    """The measures of a healthy chest."""
    dome = rng.normal(0.72, 0.015)
    return Shape(
        seed=int(rng.integers(2**31)),
        centre=float(0.5 + rng.normal(0, 0.008)),
        half_width=float(np.clip(rng.normal(0.392 if sex == "M" else 0.378, 0.012), 0.35, 0.42)),
        domes=(float(dome), float(dome + rng.normal(0.025, 0.006))),
        drop=float(rng.uniform(0.11, 0.15)),
        heart=float(np.clip(rng.normal(0.45, 0.025), 0.39, 0.5)),
        air=float(rng.uniform(0.92, 1.05)),
        vessels=float(rng.uniform(0.8, 1.15)),
        breast=float(rng.uniform(0.03, 0.08)) if sex == "F" else 0.0,
        bubble=float(rng.uniform(0.03, 0.07)) if rng.random() < 0.7 else 0.001,
    )


def sample_patient(seed: int, number: int) -> Patient:
    """Patient `number` of the series `seed`; depends on nothing else."""
    rng = Generator(PCG64(SeedSequence((seed, number))))
    sex = "M" if rng.random() < 0.53 else "F"
    age = int(np.clip(rng.normal(54, 17), 18, 92))
    healthy = rng.random() < 0.25
    found = () if healthy else sample_findings(rng, age, sex)
    shape = sample_shape(rng, sex)
    images = int(rng.choice((1, 2, 3, 4), p=(0.35, 0.3, 0.2, 0.15)))
    return Patient(f"p{number:05d}", age, sex, shape, place_findings(rng, found), images)


def sample_shot(rng: Generator, sick: bool) -> Shot:
    """View, position and exposure of one image."""
    front = 0.3 if sick else 0.2
    view = str(rng.choice(("LATERAL", "AP", "PA"), p=(0.17, front, 0.83 - front)))
    return Shot(
        view=view,
        turn=float(rng.normal(0, 1.8)),
        zoom=float(rng.uniform(0.95, 1.06)),
        offset=(float(rng.normal(0, 0.012)), float(rng.normal(0, 0.012))),
        black=float(rng.uniform(-0.01, 0.07)) - 0.03 * (view == "AP"),
        white=float(rng.uniform(0.8, 0.92)) + 0.1 * (view == "AP"),
        gamma=float(rng.uniform(0.8, 1.15)),
        grain=float(rng.uniform(0.012, 0.035)),
        seed=int(rng.integers(2**31)),
    )


def revisit(rng: Generator, spots: dict[str, Spot]) -> dict[str, Spot]:
    """A patient's findings on one day: most of them, each a little changed."""
    kept = {}
    for name, spot in spots.items():
        present, change = rng.random() < 0.88, rng.normal(0, (0.15, 0.04))
        strength = float(np.clip(spot.strength + change[0], 0, 1))
        if present:
            scale = float(np.clip(spot.scale + change[1], 0.8, 1.25))
            kept[name] = replace(spot, strength=strength, scale=scale)
    return kept


def patient_images(seed: int, number: int, size: int) -> Iterator[PhantomImage]:
    """All images of patient `number` of the series `seed`."""
    patient = sample_patient(seed, number)
    for visit in range(patient.images):
        rng = Generator(PCG64(SeedSequence((seed, number, visit + 1))))
        shot, spots = sample_shot(rng, bool(patient.spots)), revisit(rng, patient.spots)
        shape = patient.shape
        if shot.view == "AP":  # taken from near by, lying down
            right, left = shape.domes
            shape = replace(shape, heart=shape.heart * 1.09, domes=(right - 0.02, left - 0.02))
        image, masks = draw(shape, spots, shot, size)
        yield PhantomImage(image, masks, tuple(masks), patient.name, shot.view, patient.age, patient.sex)


def draw_images(count: int, size: int = 128, seed: int = 0) -> Iterator[PhantomImage]:
    """Yields `count` images, 1 to 4 a patient, a patient's ones in a row.

    Args:
        count: number of images; image i does not depend on it.
        size: of each image in pixels, 64 to 512.
        seed: of the whole series; same arguments, same images.
    Raises:
        ValueError: for a size out of range, or a negative count or seed.
    """
    return series(patient_images, count, size, seed)


# --- files

README = """\
Synthetic chest radiographs, drawn by data/phantom/radiographs.py: no patients, no real images.

labels.csv: image (path from this folder), labels (joined by '|', or 'No Finding'),
    patient_id, view (PA, AP or LATERAL), age (years), sex (M or F).
boxes.csv: image, finding, x, y, w, h: one row for each connected part of a finding's
    mask, in pixels from the image's upper left corner.
images/: 8-bit grey PNG, bright is dense.
masks/: 16-bit PNG for each image with findings; bit k is set where finding k lies:
"""


def mask_bits(masks: dict[str, Mask]) -> np.ndarray:
    """The masks in one uint16 image: bit k is FINDINGS[k]."""
    bits = np.zeros(next(iter(masks.values())).shape, np.uint16)
    for name, mask in masks.items():
        bits |= mask.astype(np.uint16) << FINDINGS.index(name)
    return bits


def boxes(mask: Mask) -> list[tuple[int, int, int, int]]:
    """x, y, width, height in pixels of each connected part (8 neighbours) of `mask`."""
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    return [(int(x), int(y), int(w), int(h)) for x, y, w, h, _ in stats[1:]]


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes `pixels` as PNG; cv2.imwrite alone reports a full disk by its value only."""
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path}: could not be written")


def fill_folder(folder: Path, images: Iterator[PhantomImage]) -> None:
    """Writes all files of the sample data into the empty `folder`."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    (folder / "README.txt").write_text(README + "    " + ", ".join(FINDINGS) + "\n", "utf-8")
    with (
        (folder / "labels.csv").open("w", newline="", encoding="utf-8") as label_file,
        (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as box_file,
    ):
        labels, box_rows = csv.writer(label_file), csv.writer(box_file)
        labels.writerow(("image", "labels", "patient_id", "view", "age", "sex"))
        box_rows.writerow(("image", "finding", "x", "y", "w", "h"))
        for number, p in enumerate(images):
            name = f"{number:05d}_{p.patient_id}.png"
            image, joined = f"images/{name}", "|".join(p.labels) or "No Finding"
            save_png(folder / image, p.image)
            labels.writerow((image, joined, p.patient_id, p.view, p.age, p.sex))
            if p.masks:
                save_png(folder / "masks" / name, mask_bits(p.masks))
            for finding, mask in p.masks.items():
                box_rows.writerows((image, finding, *box) for box in boxes(mask))


def write_phantom(folder: Path, count: int = 1200, size: int = 128, seed: int = 0) -> None:
    """Writes `count` images with labels, masks and boxes into the new `folder`.

    The folder appears only when it is complete (`write_whole_folder`). README.txt, written
    with it, describes the files.

    Args:
        folder: must not exist; its parents are made.
        count, size, seed: as for `draw_images`.
    Raises:
        FileExistsError: if `folder` exists.
        ValueError: as `draw_images`.
    """
    images = draw_images(count, size, seed)
    write_whole_folder(Path(folder), lambda partial: fill_folder(partial, images))
