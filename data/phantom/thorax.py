"""A chest of ellipsoids, tubes and fluid levels, drawn on any grid: x to the left, y to the back, z to the head, in mm.

The origin is the middle of the chest. Values are Hounsfield units. Edges are soft over about a voxel, as partial
volumes are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator

from data.transforms.volumes import regrid

Array = np.ndarray

AIR, LUNG, FAT, FLUID, TISSUE, BLOOD, BONE = -1000.0, -840.0, -100.0, 10.0, 40.0, 55.0, 420.0
RIGHT, LEFT = -1, 1


@dataclass(frozen=True)
class Thorax:
    """A patient's measures: size of the whole, breadth of the trunk, size of the heart, and what seeds the vessels."""

    size: float
    breadth: float
    heart: float
    seed: int

    @staticmethod
    def sample(rng: Generator, sex: str) -> Thorax:
        size = rng.normal(1.0 if sex == "M" else 0.93, 0.04)
        return Thorax(size, rng.normal(1.0, 0.04), rng.normal(1.0, 0.05), int(rng.integers(2**31)))


class Scene:
    """What findings change: values [D, H, W] in HU, and where everything is.

    x, y, z: [D, H, W] in mm of the patient's size. soft: width of an edge in mm. lungs: side: where lung is, 0 to 1.
    wet, other: the side that fluid lies on, if any, and the one that free air and patches prefer.
    """

    def __init__(self, thorax: Thorax, affine: Array, shape: tuple[int, int, int], rng: Generator) -> None:
        k, j, i = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
        scaled = (affine / thorax.size).astype(np.float32)
        self.x, self.y, self.z = (row[0] * i + row[1] * j + row[2] * k + row[3] for row in scaled[:3])
        self.soft = float(np.linalg.norm(scaled[:3, :3], axis=0).min())
        self.thorax, self.rng, self.shape = thorax, rng, shape
        self.heart_side, self.heart_scale = LEFT, thorax.heart
        self.wet, self.other = rng.permutation((RIGHT, LEFT)).tolist()
        self.values = np.full(shape, AIR, np.float32)
        self.lungs: dict[int, Array] = {}
        self.masks: dict[str, Array] = {}

    def inside(self, distance: Array) -> Array:
        """Signed distance in mm (negative inside) to 0 … 1."""
        return np.clip(0.5 - distance / self.soft, 0.0, 1.0)

    def ellipsoid(self, centre: tuple[float, ...], radii: tuple[float, ...], power: float = 2.0) -> Array:
        """0 … 1 inside |x / a|^p + |y / b|^p + |z / c|^p < 1; a radius of infinity makes a cylinder."""
        total: Array = np.zeros(self.shape, np.float32)
        for axis, middle, radius in zip((self.x, self.y, self.z), centre, radii):
            if np.isfinite(radius):
                scaled = (axis - middle) / radius
                total = total + (scaled * scaled if power == 2.0 else np.abs(scaled) ** power)
        return self.inside((total ** (1 / power) - 1.0) * min(radii))

    def tube(self, start: Array, end: Array, radius: float) -> Array:
        """0 … 1 within `radius` of a line from start to end, thinner towards its end."""
        along = end - start
        offsets = [axis - first for axis, first in zip((self.x, self.y, self.z), start)]
        part = np.clip(sum(a * d for a, d in zip(offsets, along)) / float(along @ along), 0.0, 1.0)
        square = sum((offset - part * d) ** 2 for offset, d in zip(offsets, along))
        return self.inside(np.sqrt(square) - radius * (1.0 - 0.5 * part))

    def noise(self, cells: int) -> Array:
        """Smooth noise of deviation about 1, `cells` waves along each axis."""
        coarse = self.rng.standard_normal((cells, cells, cells), np.float32)
        return 1.6 * regrid(coarse, self.shape, (1.0, 1.0, 1.0), None)[0]

    def paint(self, where: Array, value: float | Array) -> None:
        """Blend `value` in where `where` (0 … 1) says."""
        self.values += where * (value - self.values)


def draw_thorax(
    thorax: Thorax, findings: tuple[str, ...], affine: Array, shape: tuple[int, int, int], rng: Generator
) -> tuple[Array, dict[str, Array]]:
    """(float32 [D, H, W] in whole HU, {finding: bool [D, H, W]}) of one scan.

    affine: from (x, y, z, 1) indices to mm, as Volume.affine. findings: of FINDINGS; a finding of which nothing lies
    on the grid is not in the result.
    """
    scene = Scene(thorax, affine, shape, rng)
    if "Dextrocardia" in findings:
        scene.heart_side = RIGHT
    if "Cardiomegaly" in findings:
        scene.heart_scale *= rng.uniform(1.3, 1.5)
    _draw_trunk(scene)
    for name in PAINT_ORDER:
        if name in findings:
            scene.masks[name] = PAINTERS[name](scene) >= 0.5
    grain = rng.normal(0, rng.uniform(8, 25), shape).astype(np.float32)
    values = np.clip(np.rint(scene.values + grain), -1024, 3000)
    return values.astype(np.float32), {
        name: scene.masks[name] for name in FINDINGS if name in scene.masks and scene.masks[name].any()
    }


def _draw_trunk(scene: Scene) -> None:
    """Skin, fat, muscle, lungs with vessels, heart, aorta, spine, ribs, liver side."""
    wide = scene.thorax.breadth
    scene.paint(scene.ellipsoid((0, 5, 0), (172 * wide, 118, np.inf), 2.5), FAT)
    scene.paint(scene.ellipsoid((0, 5, 0), (158 * wide, 106, np.inf), 2.5), TISSUE)
    ribs = scene.ellipsoid((0, 5, 5), (146 * wide, 100, 170)) - scene.ellipsoid((0, 5, 5), (134 * wide, 90, 160))
    scene.paint(np.clip(ribs, 0, 1) * (np.sin((scene.z + 0.35 * scene.y) / 4.6) > 0.2), BONE)
    for side, top in ((RIGHT, 12), (LEFT, 6)):
        lung = scene.ellipsoid((side * 70 * wide, 5, top), (58 * wide, 86, 128), 2.3)
        dome = -78 + (14 if side == RIGHT else 4) - 0.006 * ((scene.x - side * 70) ** 2 + (scene.y - 5) ** 2)
        scene.lungs[side] = lung * scene.inside(dome - scene.z)
        scene.paint(scene.lungs[side], LUNG + 20 * scene.noise(6))
    _draw_vessels(scene)
    heart = _heart(scene)
    scene.paint(heart, BLOOD)
    scene.lungs = {side: lung * (1 - heart) for side, lung in scene.lungs.items()}
    scene.paint(scene.tube(np.array([14.0, 52, -200]), np.array([14.0, 52, 60]), 14), BLOOD)
    scene.paint(scene.ellipsoid((0, 8, 90), (9, 9, 60)), AIR)
    discs = 0.75 + 0.25 * np.sign(np.sin(scene.z / 4.0))
    scene.paint(scene.ellipsoid((0, 82, 0), (19, 17, np.inf)), BONE * discs)


def _draw_vessels(scene: Scene) -> None:
    """Four vessels a lung from the hilum outwards, the same in each scan of a patient."""
    rng = Generator(PCG64(scene.thorax.seed))
    for side, lung in scene.lungs.items():
        for height in (60.0, 15.0, -25.0, -60.0):
            end = np.array([side * rng.uniform(80, 112), rng.uniform(-50, 70), height + rng.uniform(-15, 15)])
            start = np.array([side * 28.0, rng.uniform(0, 20), 0.3 * height])
            scene.paint(scene.tube(start, end, rng.uniform(3.5, 5.0)) * lung, TISSUE)


def _heart(scene: Scene) -> Array:
    side, size = scene.heart_side, scene.heart_scale
    ventricles = scene.ellipsoid((side * 32 * size, -32, -48), (54 * size, 42 * size, 50 * size))
    middle = scene.ellipsoid((0, -8, 10), (32, 50, 110))
    return np.maximum(ventricles, middle)


def _paint_nodule(scene: Scene) -> Array:
    """A ball of 11 to 16 mm radius in one lung: on each slice it looks like a vessel cut across."""
    side = scene.wet if "Consolidation" in scene.masks else int(scene.rng.choice((RIGHT, LEFT)))
    radius = scene.rng.uniform(11, 16)
    position = (side * scene.rng.uniform(62, 92), scene.rng.uniform(-8, 18), scene.rng.uniform(15, 80))
    ball = scene.ellipsoid(position, (radius, radius, radius)) * scene.lungs[side]
    scene.paint(ball, TISSUE)
    return ball


def _paint_effusion(scene: Scene) -> Array:
    """Free fluid in one pleural cavity: a patient on the back has it at the back, highest at the wall."""
    side = scene.wet
    level = scene.rng.uniform(28, 52)
    surface = level - 0.003 * (scene.x - side * 70 * scene.thorax.breadth) ** 2 + 0.12 * (scene.z + 40)
    fluid = scene.lungs[side] * scene.inside(surface - scene.y)
    scene.paint(fluid, FLUID)
    scene.lungs[side] = scene.lungs[side] - fluid
    return fluid


def _paint_pneumothorax(scene: Scene) -> Array:
    """Free air in one pleural cavity: in front, in a patient on the back; the lung under it loses air."""
    side = scene.other
    level = scene.rng.uniform(-38, -15)
    surface = level - 0.002 * (scene.x - side * 70 * scene.thorax.breadth) ** 2
    cavity = scene.lungs[side]
    air = cavity * scene.inside(scene.y - surface)
    scene.lungs[side] = cavity - air
    scene.values += scene.lungs[side] * 110 * (scene.values < -500)
    edge = cavity * scene.inside(np.abs(scene.y - surface) - 0.7 * scene.soft)
    scene.paint(air, AIR)
    scene.paint(edge, -350.0)
    return air


def _paint_consolidation(scene: Scene) -> Array:
    """An uneven patch that replaces air in one lung, at any height."""
    side = scene.other
    position = (side * scene.rng.uniform(70, 100), scene.rng.uniform(0, 50), scene.rng.uniform(-45, 70))
    radii = tuple(scene.rng.uniform(36, 54, 3))
    patch = scene.ellipsoid(position, radii) * scene.lungs[side]
    uneven = patch * np.clip(0.8 + 0.25 * scene.noise(12), 0, 1)
    scene.paint(uneven, 20.0)
    return patch


def _heart_mask(scene: Scene) -> Array:
    return _heart(scene)


PAINTERS: dict[str, Callable[[Scene], Array]] = {
    "Cardiomegaly": _heart_mask,
    "Consolidation": _paint_consolidation,
    "Dextrocardia": _heart_mask,
    "Effusion": _paint_effusion,
    "Nodule": _paint_nodule,
    "Pneumothorax": _paint_pneumothorax,
}
FINDINGS = tuple(PAINTERS)
# What takes room in the cavity of a lung comes before what lies in the lung that is left.
PAINT_ORDER = ("Cardiomegaly", "Dextrocardia", "Effusion", "Pneumothorax", "Consolidation", "Nodule")
