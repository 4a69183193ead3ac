"""The 14 findings of the sample images: how each deforms the chest, and one painter for each.

A painter changes the layers of a `Radiograph` and returns the mask of what it drew; lengths and sides are those of
`data.phantom.layers`.

The names are those of NIH ChestX-ray14 (Wang et al. 2017, arXiv:1705.02315); the shapes
follow the Fleischner Society's glossary (Hansell et al. 2008, doi:10.1148/radiol.2462070712).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, sin

import numpy as np

from data.phantom.drawing import Mask, branches, ellipse, glow, grid, noise, polygon, radius, step, strokes
from data.phantom.layers import Radiograph, Shape


@dataclass(frozen=True)
class Spot:
    """Where and how a patient has one finding: zone 0 is upper, 1 middle, 2 lower."""

    strength: float  # 0 to 1, visible from 0
    side: int
    zone: int
    scale: float  # about 1
    seed: int


def bend(shape: Shape, finding: str, spot: Spot) -> Shape:
    """The chest `shape` as `finding` deforms it; most findings leave it alone."""
    s = spot.strength
    if finding == "Cardiomegaly":
        return replace(shape, heart=max(shape.heart + 0.07, 0.545 + 0.14 * s))
    if finding == "Emphysema":
        return replace(
            shape,
            domes=(shape.domes[0] + 0.03 + 0.06 * s, shape.domes[1] + 0.03 + 0.06 * s),
            drop=shape.drop * (0.6 - 0.4 * s),
            half_width=shape.half_width * 1.04,
            heart=shape.heart * (0.88 - 0.14 * s),
            air=shape.air * (1.05 + 0.13 * s),
            vessels=shape.vessels * (0.75 - 0.2 * s),
        )
    if finding in ("Atelectasis", "Pneumothorax"):
        towards = 1 if finding == "Atelectasis" else -1
        lift = (0.035 + 0.035 * s) * (finding == "Atelectasis")
        right, left = shape.domes
        domes = (right - lift, left) if spot.side < 0 else (right, left - lift)
        return replace(shape, domes=domes, shift=shape.shift + towards * spot.side * 0.015)
    return shape


def paint_atelectasis(radiograph: Radiograph, spot: Spot) -> Mask:
    """Plates, or a wedge with its tip at the hilum; `bend` raises the diaphragm."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    x0, y0 = radiograph.centres[spot.side, spot.zone]
    if rng.random() < 0.35:
        hx, hy = radiograph.hila[spot.side]
        away = np.array([x0 - hx, y0 - hy]) * 1.25
        across = np.array([-away[1], away[0]]) * 0.32 * spot.scale
        corners = [np.array([hx, hy]), (hx, hy) + away + across, (hx, hy) + away - across]
        drawn = polygon(w, [tuple(c) for c in corners], 0.006)
    else:
        lines = []
        for k in range(rng.integers(2, 4)):
            middle = np.array([x0, y0 + 0.05 * (k - 0.7)]) + rng.normal(0, 0.012, 2)
            tilt, half = rng.normal(0, 0.22), 0.1 * spot.scale * rng.uniform(0.6, 1.2)
            end = half * np.array([cos(tilt), sin(tilt)])
            lines.append([middle - end, middle + (0, -0.1 * half), middle + end])
        drawn = strokes(w, lines, 0.014 * spot.scale, 0.0035)
    drawn *= np.maximum(radiograph.lungs[-1], radiograph.lungs[1])
    radiograph.fill(drawn, 0.6)
    radiograph.extra += (0.08 + 0.1 * spot.strength) * drawn
    return drawn > 0.35


def paint_cardiomegaly(radiograph: Radiograph, spot: Spot) -> Mask:
    """The heart, which `bend` has enlarged."""
    radiograph.extra += 0.02 * radiograph.heart
    return radiograph.heart > 0.5


def paint_effusion(radiograph: Radiograph, spot: Spot) -> Mask:
    """Fluid in the costophrenic angle; its level climbs the chest wall (meniscus)."""
    side = 1 if radiograph.lateral else spot.side
    _, y = grid(radiograph.width)
    lung, inset = radiograph.lungs[side], np.clip(radiograph.inset[side], 0, 1)
    deepest = float(np.where(lung.max(0) > 0.5, radiograph.floor[side][0], 0).max())
    height = (0.12 + 0.12 * spot.strength) * spot.scale
    climb = (0.09 + 0.05 * spot.strength) / (1 + (inset / 0.05) ** 2)
    fluid = lung * step(y - (deepest - height - climb), 0.012)
    radiograph.fill(fluid, 0.97)
    radiograph.extra += 0.05 * fluid
    return fluid > 0.5


def paint_infiltration(radiograph: Radiograph, spot: Spot) -> Mask:
    """Ill-defined mottling over a wide zone, vessels still to be seen through it."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    x0, y0 = radiograph.centres[spot.side, spot.zone]
    window = glow(w, (x0, y0), (0.2 * spot.scale, 0.23 * spot.scale), rng.uniform(-0.5, 0.5))
    mottle = step(noise(rng, w, 20) + 0.5 * noise(rng, w, 36) + 0.35, 0.9)
    lung = np.maximum(radiograph.lungs[-1], radiograph.lungs[1])
    haze = np.minimum(1, 1.3 * window) * mottle * lung
    radiograph.air *= 1 - (0.68 + 0.22 * spot.strength) * haze
    return (window * lung) > 0.3


def paint_mass(radiograph: Radiograph, spot: Spot) -> Mask:
    """One round, slightly lobed opacity of more than 3 cm (a chest is about 30 cm wide)."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    x0, y0 = radiograph.centres[spot.side, spot.zone]
    x, y = grid(w)
    angle = np.arctan2(y - y0, x - x0)
    lobes = sum(0.035 * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4))
    size = 0.062 * spot.scale * (1 + lobes)
    r = radius(w, (x0, y0), (1.0, 1.0)) / size
    drawn = step(1 - r, 0.14)
    radiograph.fill(drawn, 0.5)
    radiograph.extra += (0.09 + 0.1 * spot.strength) * drawn * (1.1 - 0.35 * np.minimum(r, 1) ** 2)
    return drawn > 0.5


def paint_nodule(radiograph: Radiograph, spot: Spot) -> Mask:
    """One to four small round opacities around one place."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    drawn = np.zeros((w, w), np.float32)
    positions = [radiograph.centres[spot.side, spot.zone]] + list(radiograph.centres.values())
    picked = [0, *rng.choice(np.arange(1, len(positions)), rng.integers(0, 4), replace=False)]
    for k in picked:
        x0, y0 = np.asarray(positions[k]) + rng.normal(0, 0.022, 2)
        size = rng.uniform(0.021, 0.03) * spot.scale
        drawn = np.maximum(drawn, ellipse(w, (x0, y0), (size, size), soft=0.3))
    radiograph.extra += (0.21 + 0.12 * spot.strength) * drawn
    return drawn > 0.5


def paint_pneumonia(radiograph: Radiograph, spot: Spot) -> Mask:
    """A patchy lobar opacity with air bronchograms: dark branches from the hilum."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    hilum, (x0, y0) = radiograph.hila[spot.side], radiograph.centres[spot.side, spot.zone]
    window = ellipse(w, (x0, y0), (0.125 * spot.scale, 0.135 * spot.scale), soft=0.4)
    patches = step(noise(rng, w, 12) + 0.75, 0.9)
    lung = radiograph.lungs[spot.side]
    opacity = window * (0.5 + 0.5 * patches) * lung
    radiograph.fill(opacity, 0.8 + 0.2 * spot.strength)
    heading = np.arctan2(y0 - hilum[1], x0 - hilum[0]) + np.linspace(-0.6, 0.6, 5)
    near = ((2 * hilum[0] + x0) / 3, (2 * hilum[1] + y0) / 3)
    tubes = np.concatenate(branches(rng, near, heading, 0.16, 2))
    radiograph.extra -= 0.15 * strokes(w, list(tubes), 0.008, 0.0015) * opacity
    return (window * lung) > 0.4


def paint_pneumothorax(radiograph: Radiograph, spot: Spot) -> Mask:
    """A rim without markings outside a fine pleural line; the lung has drawn back."""
    side = -1 if radiograph.lateral else spot.side
    _, y = grid(radiograph.width)
    lung, inset = radiograph.lungs[side], radiograph.inset[side]
    depth = np.clip(1.35 - 1.1 * y, 0.35, 1.3)
    gap = (0.09 + 0.07 * spot.strength) * spot.scale * depth * (1.3 if radiograph.lateral else 1)
    rim = lung * step(gap - inset, 0.004)
    line = np.clip(1 - ((inset - gap) / 0.0065) ** 2, 0, 1) * lung
    radiograph.marks *= 1 - rim
    radiograph.air *= 1 + (0.22 + 0.1 * spot.strength) * rim
    radiograph.air *= 1 - 0.2 * lung * (1 - rim)
    radiograph.extra += (0.16 + 0.06 * spot.strength) * line
    return rim > 0.5


def paint_consolidation(radiograph: Radiograph, spot: Spot) -> Mask:
    """A dense, even opacity that a fissure cuts off along a straight line."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    x0, y0 = radiograph.centres[spot.side, spot.zone]
    x, y = grid(w)
    slope = rng.uniform(-0.25, 0.25)
    below = y - (y0 + slope * (x - x0))
    fissure = step((below if spot.zone else -below) + 0.06, 0.006)
    r = radius(w, (x0, y0), (0.15 * spot.scale, 0.14 * spot.scale))
    lobe = fissure * step(1 - r + 0.06 * noise(rng, w, 9), 0.12) * radiograph.lungs[spot.side]
    radiograph.fill(lobe, 0.97)
    radiograph.extra += (0.01 + 0.04 * spot.strength) * lobe
    return lobe > 0.5


def paint_edema(radiograph: Radiograph, spot: Spot) -> Mask:
    """Bat wings around both hila, wide vessels, and Kerley B lines at the bases."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    wings, lines = np.zeros((w, w), np.float32), []
    for side in radiograph.sides:
        hx, hy = radiograph.hila[side]
        centre = (hx + side * 0.045 * (not radiograph.lateral), hy + 0.03)
        wings = np.maximum(wings, glow(w, centre, (0.17, 0.25)) * radiograph.lungs[side])
        for k in range(7):
            row = int((0.58 + 0.02 * k) * w)
            inside = np.flatnonzero((radiograph.inset[side][row] > 0.006) & (radiograph.lungs[side][row] > 0.5))
            if len(inside):
                edge = inside[-1 if side > 0 else 0] / w
                lines.append([(edge, row / w), (edge - side * 0.045, row / w - 0.006)])
    haze = np.minimum(1, 1.5 * wings) * (0.8 + 0.2 * step(noise(rng, w, 26), 1))
    radiograph.marks *= 1.1 + 0.3 * spot.strength
    radiograph.air *= 1 - (0.42 + 0.36 * spot.strength) * haze
    radiograph.extra += (0.07 + 0.07 * spot.strength) * strokes(w, [np.array(p) for p in lines], 0.005)
    return wings > 0.25


def paint_emphysema(radiograph: Radiograph, spot: Spot) -> Mask:
    """Bullae in the upper lungs; `bend` has inflated them and flattened the diaphragm."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    lung = np.maximum(radiograph.lungs[-1], radiograph.lungs[1])
    for side in (-1, 1):
        x0, y0 = np.asarray(radiograph.centres[side, 0]) + rng.normal(0, 0.02, 2)
        size = rng.uniform(0.035, 0.06) * spot.scale
        r = radius(w, (x0, y0), (size, 1.2 * size))
        radiograph.air *= 1 + 0.12 * step(1 - r, 0.05) * lung
        radiograph.marks *= 1 - 0.8 * step(1 - r, 0.1)
        radiograph.extra += 0.06 * np.clip(1 - ((r - 1) / 0.12) ** 2, 0, 1) * lung
    return lung > 0.5


def paint_fibrosis(radiograph: Radiograph, spot: Spot) -> Mask:
    """A net of fine lines, densest at the bases and under the pleura."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    _, y = grid(w)
    window = np.zeros((w, w), np.float32)
    for side in radiograph.sides:
        rise = y - radiograph.floor[side] + 0.27 * spot.scale
        rim = 0.55 + 0.45 * step(0.1 - radiograph.inset[side], 0.06)
        window = np.maximum(window, step(rise - 0.03, 0.1) * rim * radiograph.lungs[side])
    ridges = [np.clip(1 - (noise(rng, w, n) / 0.42) ** 2, 0, 1) for n in (26, 36)]
    net = np.maximum(*ridges) * window
    radiograph.extra += (0.085 + 0.12 * spot.strength) * net * (1 - 0.7 * radiograph.heart)
    radiograph.air *= 1 - 0.15 * window
    return window > 0.4


def paint_pleural_thickening(radiograph: Radiograph, spot: Spot) -> Mask:
    """A bright band along the chest wall, widest at the apex or at mid height."""
    rng, w = np.random.default_rng(spot.seed), radiograph.width
    _, y = grid(w)
    side = 1 if radiograph.lateral else spot.side
    middle = (0.26, 0.42, 0.5)[spot.zone]
    reach = np.clip(1.15 - ((y - middle) / (0.24 * spot.scale)) ** 2, 0, 1)
    uneven = 1 + 0.15 * noise(rng, w, 14)
    thick = (0.03 + 0.018 * spot.strength) * spot.scale * reach * uneven
    band = radiograph.lungs[side] * step(thick - radiograph.inset[side], 0.003)
    radiograph.fill(band, 0.9)
    radiograph.extra += (0.05 + 0.07 * spot.strength) * band
    return band > 0.5


def paint_hernia(radiograph: Radiograph, spot: Spot) -> Mask:
    """A round shadow behind the heart: a wall, gas above, a level, fluid below."""
    w, (x0, y0) = radiograph.width, radiograph.hiatus
    size = (0.058 + 0.024 * spot.strength) * spot.scale
    r = radius(w, (x0 + 0.015 * spot.side, y0 - 0.5 * size), (1.15 * size, size))
    _, y = grid(w)
    inside = step(1 - r, 0.05)
    gas = inside * step((y0 - 0.42 * size) - y, 0.004)
    wall = np.clip(1 - ((r - 1) / 0.12) ** 2, 0, 1)
    radiograph.fill(inside, 0.85)
    radiograph.extra += 0.06 * wall + 0.05 * (inside - gas) - (0.1 + 0.1 * spot.strength) * gas
    return inside > 0.5


Painter = Callable[[Radiograph, Spot], Mask]

PAINTERS: dict[str, Painter] = {
    "Atelectasis": paint_atelectasis,
    "Cardiomegaly": paint_cardiomegaly,
    "Effusion": paint_effusion,
    "Infiltration": paint_infiltration,
    "Mass": paint_mass,
    "Nodule": paint_nodule,
    "Pneumonia": paint_pneumonia,
    "Pneumothorax": paint_pneumothorax,
    "Consolidation": paint_consolidation,
    "Edema": paint_edema,
    "Emphysema": paint_emphysema,
    "Fibrosis": paint_fibrosis,
    "Pleural_Thickening": paint_pleural_thickening,
    "Hernia": paint_hernia,
}
