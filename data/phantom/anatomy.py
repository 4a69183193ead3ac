"""A normal chest from the front and from the side, drawn as the layers of a `Radiograph`."""

import cv2
import numpy as np
from numpy.random import PCG64, Generator

from data.phantom.drawing import Array, branches, ellipse, grid, polygon, radius, step, strokes
from data.phantom.layers import Radiograph, Shape

# (side, zone) of a finding: its place; from the front as a distance from the midline and y
FRONTAL_ZONES = ((0.19, 0.26), (0.23, 0.45), (0.27, 0.64))
LATERAL_ZONES = {
    (-1, 0): (0.46, 0.27), (-1, 1): (0.37, 0.40), (-1, 2): (0.53, 0.57),
    (1, 0): (0.63, 0.24), (1, 1): (0.67, 0.42), (1, 2): (0.68, 0.62),
}  # fmt: skip


def wall_profile(depth: Array, half_width: float) -> Array:
    """Half the chest's inner width at `depth` (0 at its top, 1 at its base)."""
    return half_width * np.sqrt(1 - (1 - np.clip(depth, 0, 1)) ** 2.4)


def smooth_profile(width: int, rows: tuple, values: tuple, blur: float) -> Array:
    """`values` given at the heights `rows`, as a smooth column [width, 1]."""
    line = np.interp(grid(width)[1], rows, values).astype(np.float32)
    size = 2 * round(3 * blur * width) + 1
    return cv2.GaussianBlur(line, (1, size), blur * width, borderType=cv2.BORDER_REPLICATE)


def vessel_layer(shape: Shape, width: int, starts: dict, fans: dict, length: float) -> Array:
    """Branching vessels around the hila, [width, width], thinner with every branching."""
    rng = Generator(PCG64(shape.seed))
    layer = np.zeros((width, width), np.float32)
    for side, start in starts.items():
        low, high = fans[side]
        headings = np.linspace(low, high, 11) + rng.normal(0, 0.15, 11)
        tree = branches(rng, start, headings, length)
        fade = np.clip(1.15 - radius(width, start, (0.5, 0.5)), 0, 1)
        for level, (thick, bright) in enumerate(((0.011, 0.85), (0.006, 0.7), (0.004, 0.55))):
            drawn = strokes(width, list(tree[level]), thick, 0.002)
            layer = np.maximum(layer, bright * drawn * fade)
        layer += 0.7 * ellipse(width, start, (0.032, 0.06), soft=0.7)
    return layer * shape.vessels


def rib_layer(shape: Shape, width: int, lateral: bool) -> Array:
    """Ribs as bands with brighter edges, [width, width]."""
    rng = Generator(PCG64(shape.seed + 1))
    t = np.linspace(0.02, 1.0, 14)
    back, front = [], []
    for k in range(8 if lateral else 10):
        y0 = shape.top - 0.015 + 0.072 * k + rng.normal(0, 0.003)
        if lateral:
            back.append(np.stack([0.85 - 0.62 * t, y0 + 0.03 + 0.26 * t**1.3], -1))
            continue
        wide = float(wall_profile(np.asarray((k + 1.3) / 9), shape.half_width + 0.015))
        for side in (-1, 1):
            a = t * np.pi / 2
            x = shape.centre + side * (0.03 + (wide - 0.03) * np.sin(a))
            back.append(np.stack([x, y0 - 0.02 * np.sin(2 * a) + 0.1 * (1 - np.cos(a))], -1))
            x = shape.centre + side * (wide - (wide - 0.15) * t)
            front.append(np.stack([x, y0 + 0.1 + 0.13 * t**0.9], -1))
    layer = np.zeros((width, width), np.float32)
    upper_seven = front[:14]  # the lower ones end in cartilage, which is not seen
    for curves, thick, bright in ((back, 0.024, 0.095), (upper_seven, 0.026, 0.05)):
        band = strokes(width, curves, thick, 0.0025)
        layer += bright * (1.5 * band - 0.9 * strokes(width, curves, thick / 2, 0.004))
    return np.clip(layer, 0, None)


def frontal_heart(shape: Shape, width: int) -> Array:
    """Heart, aortic knob and pulmonary trunk, 0 to 1."""
    broad, x = 2 * shape.half_width * shape.heart, shape.centre + shape.shift
    right, left = shape.domes
    tall = 0.1 + 0.12 * max(0.0, shape.heart - 0.4)
    parts = (
        ellipse(width, (x + 0.24 * broad, left - 0.055), (0.44 * broad, tall), 0.5),
        ellipse(width, (x - 0.1 * broad, right - 0.09), (0.23 * broad, 0.12)),
        ellipse(width, (x + 0.03, left - 0.17), (0.24 * broad + 0.02, 0.13), -0.2),
        ellipse(width, (x + 0.045, shape.top + 0.2), (0.045, 0.045), soft=0.35),
        ellipse(width, (x + 0.055, shape.top + 0.29), (0.036, 0.075), soft=0.4),
    )
    return np.maximum.reduce(parts)


def frontal_bones(shape: Shape, width: int) -> Array:
    """Ribs, clavicles, shoulder blades and spine, as density."""
    x, y = grid(width)
    c, layer = shape.centre, rib_layer(shape, width, lateral=False)
    for side in (-1, 1):
        t = np.linspace(0, 1, 9)
        s_curve = shape.top + 0.075 - 0.03 * t - 0.014 * np.sin(2 * np.pi * t)
        bone = [np.stack([c + side * (0.05 + 0.29 * t), s_curve], -1)]
        layer += 0.15 * strokes(width, bone, 0.026, 0.002)
        layer -= 0.05 * strokes(width, bone, 0.01, 0.003)  # marrow
        blade = [(0.42, 0.13), (0.35, 0.2), (0.37, 0.42), (0.43, 0.3)]
        layer += 0.045 * polygon(width, [(c + side * u, v) for u, v in blade], 0.004)
    pitch = (y - shape.top) / 0.058
    discs = 0.75 + 0.25 * step(np.abs(pitch % 1 - 0.5) - 0.1, 0.05)
    column = step(0.036 - np.abs(x - c), 0.005) * discs
    spines = ellipse(width, (c, 0.5), (0.007, 0.5)) * step(0.25 - np.abs(pitch % 1 - 0.5), 0.1)
    return layer + 0.045 * column + 0.035 * spines


def frontal_body(shape: Shape, width: int) -> Array:
    """Neck, shoulders and trunk as soft-tissue density, with breasts if there are any."""
    x, _ = grid(width)
    rows = (0, 0.06, 0.13, 0.2, 0.3, 0.5, 1)
    edge = smooth_profile(width, rows, (0.12, 0.15, 0.36, 0.5, 0.55, 0.52, 0.5), 0.02)
    t = np.abs(x - shape.centre) / (edge + 0.3 * (shape.half_width - 0.385))
    body = step(1 - t, 0.015) * (0.42 + 0.2 * np.sqrt(np.clip(1 - t * t, 0, 1)))
    for side in (-1, 1):
        position = (shape.centre + side * 0.21, 0.62)
        body += shape.breast * ellipse(width, position, (0.16, 0.15), soft=0.12)
    return body


def draw_frontal(shape: Shape, width: int) -> Radiograph:
    """A normal chest from the front (PA or AP), as layers."""
    x, y = grid(width)
    c, high = shape.centre, max(shape.domes) + shape.drop - shape.top
    wall = wall_profile((y - shape.top) / high, shape.half_width)
    inner = 0.045 + 0.1 * np.clip(1 - (y - shape.top) / 0.1, 0, 1) ** 2
    lungs, inset, floor, air = {}, {}, {}, np.zeros((width, width), np.float32)
    for side, dome in zip((-1, 1), shape.domes, strict=True):
        out = side * (x - c)
        t = np.clip(out / shape.half_width, 0, 1.05)
        fall = np.clip((t - 0.45) / 0.52, 0, None) ** 2.2 + 0.3 * np.clip(1 - t / 0.45, 0, 1) ** 2
        floor[side] = (dome + shape.drop * fall).astype(np.float32)
        inset[side] = (wall - out).astype(np.float32)
        lung = step(inset[side], 0.005) * step(out - inner, 0.008) * step(floor[side] - y, 0.005)
        lungs[side] = lung
        depth = np.sqrt(np.clip(inset[side] / np.maximum(wall, 0.01), 0, 1))
        air += lung * (0.62 + 0.38 * np.minimum(1, 1.3 * depth))
    heart = frontal_heart(shape, width)
    middle = smooth_profile(width, (0, 0.15, 0.3, 0.6, 1), (0.05, 0.06, 0.06, 0.07, 0.07), 0.02)
    mediastinum = step(middle - np.abs(x - c - shape.shift), 0.012)
    covered = 1 - np.maximum(0.9 * heart, 0.95 * mediastinum)
    windpipe = step(0.02 - np.abs(x - c - shape.shift * 0.5), 0.006) * step(0.33 - y, 0.03)
    belly = step(y - np.minimum(floor[-1], floor[1]), 0.01) * (1 - lungs[-1] - lungs[1])
    belly *= step(shape.half_width - np.abs(x - c), 0.05)
    gas = (c + 0.2, shape.domes[1] + 0.035 + 0.7 * shape.bubble)
    bubble = ellipse(width, gas, (shape.bubble, 0.6 * shape.bubble + 0.002), 0.2, 0.15)
    hila = {-1: (c - 0.085 + shape.shift, 0.43), 1: (c + 0.09 + shape.shift, 0.415)}
    fans = {-1: (np.pi * 0.42, np.pi * 1.62), 1: (np.pi * 0.58, -np.pi * 0.62)}
    return Radiograph(
        lateral=False,
        lungs=lungs,
        inset=inset,
        floor=floor,
        centres={(s, z): (c + s * u, v) for s in (-1, 1) for z, (u, v) in enumerate(FRONTAL_ZONES)},
        hila=hila,
        hiatus=(c + 0.03, max(shape.domes) + 0.01),
        heart=heart,
        soft=frontal_body(shape, width) + 0.06 * heart + 0.06 * mediastinum + 0.08 * belly,
        air=air * covered * shape.air + 0.4 * windpipe + 0.75 * bubble,
        marks=vessel_layer(shape, width, hila, fans, 0.2),
        bone=frontal_bones(shape, width) * (0.5 + 0.5 * (lungs[-1] + lungs[1])),
        extra=np.zeros((width, width), np.float32),
    )


def lateral_edges(shape: Shape, width: int) -> tuple[Array, Array]:
    """x of the breastbone's and of the back wall's inner side for every row, [width, 1]."""
    rows, deep = (0, 0.12, 0.3, 0.55, 1), 1.35 * (shape.half_width - 0.385)
    front = smooth_profile(width, rows, (0.44, 0.37, 0.26, 0.2, 0.19), 0.06)
    back = smooth_profile(width, rows, (0.68, 0.74, 0.82, 0.85, 0.79), 0.06)
    return front - deep, back + deep


def lateral_bones(shape: Shape, inset: dict[int, Array], ribs_seen: Array) -> Array:
    """Ribs, spine and breastbone from the side, as density."""
    width = len(ribs_seen)
    _, y = grid(width)
    pitch = (y - 0.05) / 0.062
    discs = 0.55 + 0.45 * step(np.abs(pitch % 1 - 0.5) - 0.09, 0.04)
    spine = step(0.045 - np.abs(inset[1] - 0.05), 0.006) * discs
    sternum = step(0.012 - np.abs(inset[-1] + 0.018), 0.005) * step(0.6 - y, 0.03)
    return rib_layer(shape, width, lateral=True) * ribs_seen + 0.1 * spine + 0.12 * sternum


def draw_lateral(shape: Shape, width: int) -> Radiograph:
    """A normal chest from the left side, the patient facing the image's left."""
    x, y = grid(width)
    front, back = lateral_edges(shape, width)
    inset = {-1: x - front, 1: back - x}
    t = np.clip((x - 0.22) / 0.58, 0, 1)
    dome = min(shape.domes) - 0.02
    fall = np.clip((t - 0.35) / 0.65, 0, 1) ** 1.6 + 0.25 * np.clip(1 - t / 0.35, 0, 1) ** 2
    floor = (dome + 1.4 * shape.drop * fall).astype(np.float32)
    other = step(floor + 0.02 - y, 0.005)
    inside = step(inset[-1], 0.006) * step(inset[1], 0.006)
    top = step(y - shape.top - 0.02 - 3.2 * (x - 0.6) ** 2, 0.012)
    lung = inside * top * (0.75 * step(floor - y, 0.005) + 0.25 * other)
    size = shape.heart / 0.45
    position = (0.27 + 0.115 * size, dome + 0.03 - 0.115 * size)
    heart = ellipse(width, position, (0.17 * size, 0.125 * size), -0.75, 0.1)
    arch = ellipse(width, (0.47, 0.34), (0.07, 0.13), 0.35, soft=0.6)
    heart_cover = 1 - np.maximum(0.8 * heart, 0.5 * arch)
    body = step(inset[-1] + 0.05, 0.012) * step(inset[1] + 0.11, 0.02)
    arms = ellipse(width, (0.55, 0.0), (0.42, 0.16), soft=0.25)
    windpipe = step(0.018 - np.abs(x - 0.5 - 0.1 * y), 0.006) * step(0.38 - y, 0.02)
    belly = step(y - floor, 0.01) * step(inset[1] + 0.05, 0.02) * step(inset[-1] + 0.03, 0.02)
    breast = ellipse(width, (0.19, 0.57), (0.09, 0.16), soft=0.4)
    soft = np.maximum(0.5 * body, 0.4 * arms) + 0.12 * arms * body
    soft += 3 * shape.breast * breast * (1 - 0.7 * body)
    hila = {-1: (0.5, 0.42), 1: (0.54, 0.43)}
    fans = {-1: (np.pi * 0.5, np.pi * 1.6), 1: (-np.pi * 0.45, np.pi * 0.6)}
    bubble = ellipse(width, (0.4, dome + 0.07), (shape.bubble, 0.5 * shape.bubble + 0.002))
    return Radiograph(
        lateral=True,
        lungs={-1: lung, 1: lung},
        inset=inset,
        floor={-1: floor, 1: floor},
        centres=LATERAL_ZONES,
        hila=hila,
        hiatus=(0.6, dome + 0.02),
        heart=heart,
        soft=soft + 0.07 * heart + 0.1 * belly,
        air=lung * heart_cover * shape.air * 0.85 + 0.3 * windpipe + 0.6 * bubble,
        marks=vessel_layer(shape, width, hila, fans, 0.16),
        bone=lateral_bones(shape, inset, body * (0.26 + 0.49 * lung)),
        extra=np.zeros((width, width), np.float32),
    )
