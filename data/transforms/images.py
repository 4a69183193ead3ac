"""From a decoded image to a model's input: intensity, channels, size, augmentation, normalisation.

Images are [H, W, C] with C 1 or 3, uint8 in 0..255 or float32 in [0, 1]. The order is fixed: resizing
comes before augmentation, so that augmentation costs the same for a thumbnail and a 12-megapixel image.
Whatever is random is drawn from the generator that the caller hands over.
"""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol, TypedDict

import cv2
import numpy as np
import torch

from configs.errors import ConfigError
from data.readers.contrast import judge
from data.readers.images import scale_intensity, to_channels
from data.study import DatasetIndex, Pixels
from data.transforms.input_transform import ReadBatch, ReadImage, collate_images, no_images
from utils.batch import DeviceTransform

RESIZE_MODES = ("stretch", "letterbox")

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one image in one epoch, a function of (seed, epoch, index) and of nothing else.

    So an augmented image is the same with any number of workers, and after a resume.
    Each number is an integer >= 0 (NumPy raises ValueError otherwise).
    """
    # A spawn key, unlike a list of three, keeps a seed beyond 32 bits from running into the epoch.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, index)))


def _with_channel_axis(image: np.ndarray) -> np.ndarray:
    """cv2 returns [H, W] for an image of one channel; this is [H, W, 1] again."""
    return image[:, :, None] if image.ndim == 2 else image


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w, C] → [*size, C]: axes that shrink by area means, then axes that grow linearly."""
    # cv2's INTER_AREA is no area mean as soon as one axis grows, hence the two steps.
    shrunk = (min(image.shape[0], size[0]), min(image.shape[1], size[1]))
    for target, interpolation in ((shrunk, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if image.shape[:2] != target:
            image = _with_channel_axis(cv2.resize(image, target[::-1], interpolation=interpolation))
    return image


def resize(image: np.ndarray, size: tuple[int, int], mode: str = "stretch") -> np.ndarray:
    """Resize [h, w, C] to [height, width, C], same dtype; size is (height, width) in pixels.

    'stretch' fills the size and may change the aspect ratio. 'letterbox' keeps the ratio, centres the
    image and pads with 0; of an odd number of padding pixels the odd one goes below or to the right.
    Axes that shrink are area means (no aliasing), axes that grow are linear.
    Returns the image itself if it has the size. Raises ConfigError for another mode or a size < 1.
    """
    _check_resize(size, mode)
    if mode == "stretch" or image.shape[:2] == tuple(size):
        return _fit(image, size)
    ratio = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (min(side, max(1, round(length * ratio))) for side, length in zip(size, image.shape[:2]))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    boxed = np.zeros((*size, image.shape[2]), image.dtype)
    boxed[top : top + height, left : left + width] = _fit(image, (height, width))
    return boxed


def _check_resize(size: Sequence[int], mode: str) -> None:
    if mode not in RESIZE_MODES:
        raise ConfigError(f"unknown resize mode {mode!r}: one of {', '.join(map(repr, RESIZE_MODES))}")
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"size must be (height, width), both at least 1 pixel, got {tuple(size)}")


def channel_statistics(values: Sequence[float], channels: int, name: str) -> np.ndarray:
    """A mean or standard deviation as float64 [channels]: one value is repeated, three become their mean.

    name: what an error calls it. Raises ConfigError for any other number of values, or one not finite.
    """
    array = np.asarray(values, np.float64).reshape(-1)
    if array.size not in (1, channels) and not (array.size == 3 and channels == 1):
        raise ConfigError(f"{name} has {array.size} values for {channels} channels: give 1 or {channels}")
    if not np.isfinite(array).all() or (name == "std" and (array <= 0).any()):
        bound = " and above 0" if name == "std" else ""
        raise ConfigError(f"{name} must be finite{bound}, got {array.tolist()}")
    return np.full(channels, array.mean()) if array.size != channels else array


def normalize(
    image: np.ndarray, mean: Sequence[float], std: Sequence[float], channels: int | None = None
) -> np.ndarray:
    """(x - mean) / std per channel, uint8 [H, W, C] as x / 255: → float32 [C, H, W], contiguous.

    mean, std: in units of [0, 1]; 1 or C values, or 3 for an image of one channel, which takes their
    average. channels: C of the result where an image of one channel is to be repeated; None: as it has.
    Raises ConfigError for other numbers of values or std <= 0.
    """
    channels = channels or image.shape[2]
    centre, spread = channel_statistics(mean, channels, "mean"), channel_statistics(std, channels, "std")
    unit = 255.0 if image.dtype == np.uint8 else 1.0
    planes = image.transpose(2, 0, 1).astype(np.float32, order="C")
    out = planes - (centre * unit).astype(np.float32)[:, None, None]  # repeats a grey image
    out *= (1.0 / (spread * unit)).astype(np.float32)[:, None, None]
    return out


class LightAugmentation:
    """One affine warp (rotation, scale, shift, perhaps a mirror image), then brightness and contrast.

    p → R(angle) (p - centre) * scale + centre + shift, by linear interpolation with 0 outside the
    image; then x → (x - m) * (1 + c) + m + b, with m the image's mean, clipped to the range.
    Each of angle, scale - 1, shift, b and c is uniform in plus or minus its limit.

    rotation_degrees: degrees. scale: of 1. translate: of height and width. brightness: of the full
    range. contrast: of 1. horizontal_flip: probability; 0 by default, as left and right differ in a
    chest radiograph. Raises ConfigError for limits out of range.
    Image [H, W, C] → the same shape and dtype.
    """

    def __init__(
        self,
        rotation_degrees: float = 7.0,
        scale: float = 0.1,
        translate: float = 0.05,
        brightness: float = 0.1,
        contrast: float = 0.1,
        horizontal_flip: float = 0.0,
    ) -> None:
        _check_limit("rotation_degrees", rotation_degrees, 180.0)
        _check_limit("horizontal_flip", horizontal_flip, 1.0)
        for name, limit in (("translate", translate), ("brightness", brightness), ("contrast", contrast)):
            _check_limit(name, limit, 1.0)
        _check_limit("scale", scale, 0.9)
        self.limits = np.array([rotation_degrees, scale, translate, translate, brightness, contrast])
        self.horizontal_flip = horizontal_flip

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Image [H, W, C] → one random variant; always draws 7 numbers, for all settings."""
        height, width = image.shape[:2]
        return self.warped(image, *self.draw((height, width), rng))

    def warped(self, image: np.ndarray, matrix: np.ndarray, brightness: float, gain: float) -> np.ndarray:
        """Image [H, W, C] → the variant that these numbers make of it, see `draw`."""
        height, width = image.shape[:2]
        # The warp comes first: what it fills with 0 then brightens together with a black background.
        warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return _jitter(_with_channel_axis(warped), brightness, gain)

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """One random variant of an image of (height, width), in numbers.

        The matrix float64 [2, 3] from old to new (x, y), in pixels from the upper left one's centre; b; 1 + c.
        """
        angle, scale, down, right, brightness, contrast = rng.uniform(-1.0, 1.0, 6) * self.limits
        mirror = rng.random() < self.horizontal_flip
        matrix = _affine_matrix(size, angle, 1.0 + scale, (down * size[0], right * size[1]), mirror)
        return matrix, float(brightness), float(1.0 + contrast)


def _check_limit(name: str, value: float, largest: float) -> None:
    if not 0.0 <= value <= largest:
        raise ConfigError(f"augmentation: {name} must lie in [0, {largest:g}], got {value!r}")


def _affine_matrix(
    size: tuple[int, int], angle: float, scale: float, shift: tuple[float, float], mirror: bool
) -> np.ndarray:
    """float64 [2, 3] from old to new (x, y), about the image's centre; shift is (down, right) in pixels."""
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    cos, sin = scale * np.cos(np.deg2rad(angle)), scale * np.sin(np.deg2rad(angle))
    linear = np.array([[cos, sin], [-sin, cos]])
    if mirror:
        linear[:, 0] *= -1.0
    return np.column_stack([linear, centre - linear @ centre + np.array([shift[1], shift[0]])])


def _jitter(image: np.ndarray, brightness: float, gain: float) -> np.ndarray:
    """x → (x - mean) * gain + mean + brightness, clipped; uint8 by a table of its 256 values."""
    unit = 255.0 if image.dtype == np.uint8 else 1.0
    mean = float(np.mean(cv2.mean(image)[: image.shape[2]]))
    offset = mean * (1.0 - gain) + brightness * unit
    if image.dtype == np.uint8:
        table = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
        return _with_channel_axis(cv2.LUT(image, table))
    changed: np.ndarray = np.clip(image * np.float32(gain) + np.float32(offset), 0.0, 1.0)
    return changed


_NO_UPDATE = "NO_ALBUMENTATIONS_UPDATE"


def _import_albumentations() -> ModuleType:
    # Without this it asks the package index for its newest release whenever it is imported.
    given = os.environ.get(_NO_UPDATE)
    os.environ[_NO_UPDATE] = given or "1"
    try:
        return importlib.import_module("albumentations")
    except ImportError as error:
        raise ConfigError(
            f"DATA.use_albumentations is on, but albumentations cannot be imported ({error}): "
            "run `pip install albumentations`, or set DATA.use_albumentations=false"
        ) from error
    finally:
        if given is None:
            del os.environ[_NO_UPDATE]


class _Compose(Protocol):
    """What is used of albumentations.Compose, which has no types where the package is missing."""

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random, /) -> None: ...

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]: ...


class AlbumentationsAugmentation:
    """Mild augmentation of radiographs by albumentations: geometry, exposure, sharpness, small holes.

    Affine, 90 %: ±7°, scale ±10 %, shift ±5 %, 0 outside. Exposure, 70 %: brightness and contrast ±15 %,
    or gamma 0.8 to 1.25. Sharpness, 25 %: Gaussian noise (standard deviation 0.5 to 2.5 % of the range,
    equal in all channels), or Gaussian blur (sigma 0.3 to 1 pixel). Holes, 25 %: one to four, 4 to 10 %
    a side. horizontal_flip: probability, 0 by default, as left and right differ in a chest radiograph.

    Image [H, W, C], C 1 or 3, uint8 or float32 in [0, 1] → the same shape and dtype.
    Raises ConfigError where the package is missing or horizontal_flip is no probability.
    """

    def __init__(self, horizontal_flip: float = 0.0) -> None:
        _check_limit("horizontal_flip", horizontal_flip, 1.0)
        self.horizontal_flip = horizontal_flip
        self._compose = self._build()

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Image [H, W, C] → one random variant, drawn from rng alone."""
        # Not set_random_seed: that gives every step the same stream, so that the dice of all steps agree.
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return _with_channel_axis(self._compose(image=image)["image"])

    def __reduce__(self) -> tuple[type[AlbumentationsAugmentation], tuple[float]]:
        return type(self), (self.horizontal_flip,)

    def _build(self) -> _Compose:
        alb = _import_albumentations()
        exposure = [
            alb.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5),
            alb.RandomGamma(gamma_limit=(80, 125), p=0.5),
        ]
        sharpness = [
            alb.GaussNoise(std_range=(0.005, 0.025), per_channel=False, p=0.5),
            alb.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.0), p=0.5),
        ]
        steps = [
            alb.Affine(scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), rotate=(-7, 7), keep_ratio=True, p=0.9),
            alb.OneOf(exposure, p=0.7),
            alb.OneOf(sharpness, p=0.25),
            alb.CoarseDropout((1, 4), (0.04, 0.1), (0.04, 0.1), fill=0, p=0.25),
        ]
        if self.horizontal_flip > 0:
            steps.insert(0, alb.HorizontalFlip(p=self.horizontal_flip))
        compose: _Compose = alb.Compose(steps)
        return compose


class PreprocessRecord(TypedDict):
    """A Preprocess as a checkpoint carries it."""

    size: list[int]
    channels: int
    mean: list[float]
    std: list[float]
    resize_mode: str


class Preprocess:
    """A decoded image to a model's input, for training (with an augmentation) and evaluation alike.

    Order: intensity to uint8 or float32 in [0, 1] → channels → resize → augmentation → normalise.
    A grey image for a model of three channels is repeated last, after the augmentation, which then
    costs a third and stays grey.

    size: (height, width) in pixels. channels: 1 or 3. mean, std: in units of [0, 1], see `normalize`.
    resize_mode: 'stretch' or 'letterbox'. augmentation: called as augmentation(image, rng), or None.
    An ImageTransform of data/transforms/input_transform.py. Raises ConfigError for values outside these.
    """

    device_transform: DeviceTransform | None = None  # nothing is left to be done

    def __init__(
        self,
        size: Sequence[int],
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize_mode: str = "stretch",
        augmentation: Augmentation | None = None,
    ) -> None:
        _check_resize(size, resize_mode)
        if channels not in (1, 3):
            raise ConfigError(f"channels must be 1 or 3, got {channels!r}")
        self.size = (int(size[0]), int(size[1]))
        self.channels = channels
        self.mean = tuple(channel_statistics(mean, channels, "mean").tolist())
        self.std = tuple(channel_statistics(std, channels, "std").tolist())
        self.resize_mode = resize_mode
        self.augmentation = augmentation

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8, uint16 or float32 [H, W] or [H, W, C] → float32 [channels, height, width], contiguous.

        rng: needed by an augmentation, see `sample_rng`; ValueError if there is one and rng is None.
        """
        out = self.fit(image)
        if self.augmentation is not None:
            if rng is None:
                raise ValueError("an augmentation needs a generator: pass rng=sample_rng(seed, epoch, index)")
            out = self.augmentation(out, rng)
        return normalize(out, self.mean, self.std, self.channels)

    def apply(
        self,
        dataset_index: DatasetIndex,
        index: int,
        rng: np.random.Generator | None = None,
        full: Pixels | None = None,
    ) -> ReadImage:
        """Read an image and make the model's input of it; full: see `read`."""
        return ReadImage(torch.from_numpy(self(self.read(dataset_index, index, full), rng)))

    def collate(self, values: Sequence[ReadImage]) -> ReadBatch:
        """See `collate_images`."""
        return collate_images(values)

    def no_images(self) -> ReadBatch:
        """See ImageTransform."""
        return no_images(self.channels, self.size)

    def fitted(self, dataset_index: DatasetIndex, index: int) -> np.ndarray:
        """Read an image and do all before the augmentation."""
        return self.fit(self.read(dataset_index, index))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """All before the augmentation: uint8 or float32 in [0, 1], [height, width, C]; C is 1 for a grey image.

        What it gives it leaves as it is.
        """
        early_channels = 1 if image.ndim == 2 or image.shape[2] == 1 else self.channels
        return resize(to_channels(scale_intensity(image), early_channels), self.size, self.resize_mode)

    def read(self, dataset_index: DatasetIndex, index: int, full: Pixels | None = None) -> np.ndarray:
        """The image to call it with: JPEG files that are large enough come at a scale that leaves twice `size`.

        full: the result of dataset_index.read(index), if already read. Raises DataError as that does.
        Remarks what shows nothing, see `judge`.
        """
        image: Pixels | None = dataset_index.read_reduced(index, (2 * self.size[0], 2 * self.size[1]))
        if image is None:
            image = dataset_index.read(index) if full is None else full
        assert isinstance(image, np.ndarray), "a source of images"
        if not dataset_index.fitted:
            judge(image)
        return image

    def as_dict(self) -> PreprocessRecord:
        """What a checkpoint carries, in plain lists, numbers and strings; without the augmentation."""
        return {
            "size": list(self.size),
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize_mode": self.resize_mode,
        }

    @classmethod
    # Any: values of a file; the constructor checks them.
    def from_dict(cls, values: Mapping[str, Any], augmentation: Augmentation | None = None) -> Preprocess:
        """The inverse of `as_dict`; ConfigError names keys that are missing or unknown."""
        expected = {"size", "channels", "mean", "std", "resize_mode"}
        missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
        if missing or unknown:
            raise ConfigError(f"preprocessing: missing keys {missing}, unknown keys {unknown}")
        return cls(**values, augmentation=augmentation)
