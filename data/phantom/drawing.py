"""The drawing tools of the sample images: soft shapes, lines, noise and trees of branches on a square.

All lengths are fractions of the image's side: x runs right, y runs down.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import cos, sin
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# float32 unless a docstring says otherwise. Any: the types of cv2 do not say which numbers its functions give.
Array = NDArray[Any]
Mask = NDArray[np.bool_]
Point = tuple[float, float]


@lru_cache(maxsize=4)
def grid(width: int) -> tuple[Array, Array]:
    """x as [1, width] and y as [width, 1]: pixel centres, 0 to 1."""
    line = (np.arange(width, dtype=np.float32) + 0.5) / width
    return line[None, :], line[:, None]


def step(value: Array, soft: float) -> Array:
    """0 to 1 around value 0, over about `soft` on each side."""
    t = np.clip(value / (2 * soft) + 0.5, 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def radius(width: int, centre: Point, axes: Point, tilt: float = 0.0) -> Array:
    """Distance from `centre` in units of an ellipse's half axes; `tilt` in radians."""
    x, y = grid(width)
    dx, dy = x - centre[0], y - centre[1]
    u = (dx * cos(tilt) + dy * sin(tilt)) / axes[0]
    v = (dy * cos(tilt) - dx * sin(tilt)) / axes[1]
    return np.sqrt(u * u + v * v)


def ellipse(width: int, centre: Point, axes: Point, tilt: float = 0.0, soft: float = 0.06) -> Array:
    """A filled ellipse, 1 inside; `soft` is a part of its half axes."""
    return step(1 - radius(width, centre, axes, tilt), soft)


def glow(width: int, centre: Point, axes: Point, tilt: float = 0.0) -> Array:
    """A hill of height 1 that is level at its top and reaches 0 on the ellipse."""
    r = radius(width, centre, axes, tilt)
    return np.clip(1 - r * r, 0, 1) ** 2


def noise(rng: np.random.Generator, width: int, cells: int) -> Array:
    """A smooth random field of mean 0 and deviation about 1, `cells` bumps per side."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, width), interpolation=cv2.INTER_CUBIC)


def strokes(width: int, curves: Sequence, thick: float, blur: float = 0.0) -> Array:
    """Lines of thickness `thick` through points [n, 2], 0 to 1; `blur` is a deviation."""
    canvas = np.zeros((width, width), np.uint8)  # cv2 smooths edges in 8 bits only
    points = [np.rint(np.asarray(c) * width * 16).astype(np.int32) for c in curves]
    pixels = thick * width
    cv2.polylines(canvas, points, False, 255, max(1, round(pixels)), cv2.LINE_AA, 4)
    drawn = canvas.astype(np.float32) * (min(1.0, pixels) / 255)
    return cv2.GaussianBlur(drawn, (0, 0), blur * width) if blur else drawn


def polygon(width: int, points: Sequence[Point], blur: float) -> Array:
    """A filled polygon, 0 to 1."""
    canvas = np.zeros((width, width), np.uint8)
    corners = np.rint(np.asarray(points) * width * 16).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 255, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), blur * width)


def branches(
    rng: np.random.Generator, start: Point, headings: NDArray, length: float, levels: int = 3
) -> list[NDArray]:
    """Curves [n, 7, 2] of a tree that grows from `start`, one array per level."""
    origins = np.tile(np.asarray(start, dtype=np.float64), (len(headings), 1))
    lengths = length * rng.uniform(0.7, 1.25, len(headings))
    tree = []
    for _ in range(levels):
        bend = rng.normal(0, 0.7, len(headings))[:, None] * np.linspace(0, 1, 6)
        turn = headings[:, None] + bend
        moves = np.stack([np.cos(turn), np.sin(turn)], -1) * lengths[:, None, None] / 6
        path = origins[:, None] + np.concatenate([0 * moves[:, :1], moves.cumsum(1)], 1)
        tree.append(path)
        origins = np.concatenate([path[:, 3], path[:, 5]])
        fork = rng.uniform(0.35, 0.8, len(headings))
        headings = np.concatenate([turn[:, 3] + fork, turn[:, 5] - fork])
        lengths = np.tile(lengths, 2) * 0.6
    return tree
