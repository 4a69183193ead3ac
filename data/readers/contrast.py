"""The guard against images that show nothing: what is remarked of an image as people and models see it."""

from __future__ import annotations

import numpy as np

from data.readers.remarks import is_collecting, remark

# Share of pixels that are pure black or white. Background makes up to some 90 % of a radiograph or a volume (a hand on
# a large plate, a head in a wide field of view); beyond 98 % what is left of a 224 px image is smaller than 32 x 32 px.
CLIPPED_SHARE = 0.98
# Of 256 grey levels, between the 1st and the 99th percentile. A monitor shows fewer than these as one grey.
LEAST_LEVELS = 4
_TAIL = 0.01
_COUNTED = 2**16


def judge(image: np.ndarray) -> None:
    """Remark what is constant, clipped or flat. image: uint8, uint16 (its own min–max counts) or float in [0, 1].

    Any shape; of large arrays every n-th value counts, for constancy all of them. Nothing is measured where nobody
    collects remarks.
    """
    if not is_collecting() or not image.size:
        return
    few = _some_of(image)
    low, high = few.min(), few.max()
    if low == high or image.dtype == np.uint16:
        low, high = image.min(), image.max()
    if low == high:
        remark("constant", f"all values are {low:g}")
        return
    counts = np.bincount(_levels(few, float(low), float(high)), minlength=256)
    shares = counts / counts.sum()
    if shares[0] + shares[255] > CLIPPED_SHARE:
        remark("clipped", f"{shares[0]:.1%} black, {shares[255]:.1%} white")
        return
    below = np.cumsum(shares)
    darkest, brightest = (int(np.searchsorted(below, part)) for part in (_TAIL, 1 - _TAIL))
    if brightest - darkest < LEAST_LEVELS:
        remark("flat", f"98% of the pixels lie within grey levels {darkest} to {brightest} of 255")


def _some_of(image: np.ndarray) -> np.ndarray:
    if image.size <= _COUNTED:
        return image
    height, width = image.shape[:2]
    if image.ndim == 3 and image.shape[2] not in (1, 3):  # a volume [D, H, W]
        return image.reshape(-1)[:: -(-image.size // _COUNTED)]
    step = 256
    return image[:: -(-height // step), :: -(-width // step)]


def _levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8, flat."""
    if values.dtype == np.uint8:
        return values.ravel()
    scale, offset = (255.0 / (high - low), low) if values.dtype == np.uint16 else (255.0, 0.0)
    levels = (values.astype(np.float64) - offset) * scale
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8).ravel()
