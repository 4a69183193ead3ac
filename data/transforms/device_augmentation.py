"""The light augmentation for whole batches, on the device that trains: workers decode, resize and draw numbers only.

Not torchvision v2 or kornia: they draw from a global generator, for a batch at a time, and augmentation is a function
of (seed, epoch, row).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data.study import DatasetIndex
from data.transforms.images import LightAugmentation, Preprocess
from data.transforms.input_transform import ReadBatch, ReadImage, collate_images, no_images

# What `prepare` draws: the sampling matrix [2, 3] row by row, brightness, gain.
AUGMENTATION_PARAMS = 8


class DeviceAugmentation:
    """A Preprocess with a LightAugmentation in two halves; takes its place in a ImageDataset.

    `prepare` makes and draws what depends on one image, where the image is read; `device_transform` does the rest for a
    batch, on any device. Together they are the Preprocess's function but for rounding: cv2 rounds a uint8 image to
    whole grey levels after the warp and after the exposure, here nothing is rounded.
    An ImageTransform of data/transforms/input_transform.py. Raises TypeError for another augmentation.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        if not isinstance(preprocess.augmentation, LightAugmentation):
            raise TypeError(f"only the light augmentation runs on a device, not {preprocess.augmentation!r}")
        self.preprocess, self.augmentation = preprocess, preprocess.augmentation
        self._normalisation: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def apply(self, dataset_index: DatasetIndex, index: int, rng: np.random.Generator) -> ReadImage:
        """Read an image (see `Preprocess.read`) and do the first half."""
        return self.prepare(self.preprocess.read(dataset_index, index), rng)

    def collate(self, values: Sequence[ReadImage]) -> ReadBatch:
        """See `collate_images`."""
        return collate_images(values)

    def no_images(self) -> ReadBatch:
        """See ImageTransform."""
        inputs = no_images(self.preprocess.channels, self.preprocess.size).inputs
        return ReadBatch(inputs, torch.empty(0, AUGMENTATION_PARAMS))

    def prepare(self, image: np.ndarray, rng: np.random.Generator) -> ReadImage:
        """A decoded image → uint8 or float32 in [0, 1], [c, H, W], c 1 for a grey image; numbers float32 [8]."""
        fitted = self.preprocess.fit(image)
        drawn = self.augmentation.draw(self.preprocess.size, rng)
        return ReadImage(torch.from_numpy(fitted).movedim(-1, 0), self.params(*drawn))

    def params(self, matrix: np.ndarray, brightness: float, gain: float) -> Tensor:
        """What was drawn, as the device takes it: float32 [8]."""
        numbers = [*sampling_matrix(matrix, self.preprocess.size).ravel(), brightness, gain]
        return torch.tensor(numbers, dtype=torch.float32)

    def device_transform(self, images: Tensor, augmentation_params: Tensor) -> Tensor:
        """uint8 or float32 [B, c, H, W] and [B, 8], on one device → normalised float32 [B, C, H, W].

        Nothing in here waits for the device.
        """
        if not len(images):
            return images  # `no_images`, which has the final shape
        images = images.float() / 255.0 if images.dtype == torch.uint8 else images
        matrix, (brightness, gain) = (
            augmentation_params[:, :6].reshape(-1, 2, 3),
            augmentation_params[:, 6:, None, None, None].unbind(1),
        )
        grid = _grid(matrix, images.shape[2], images.shape[3])
        warped = functional.grid_sample(images, grid, align_corners=False)
        mean = warped.mean((1, 2, 3), keepdim=True)
        changed = warped.sub_(mean).mul_(gain).add_(mean + brightness).clamp_(0.0, 1.0)
        scale, shift = self._normalisation_on(images.device)
        return torch.addcmul(shift, changed, scale)  # a grey image is repeated here

    def _normalisation_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """1 / std and -mean / std, [1, C, 1, 1]; sent once, as sending waits."""
        if device not in self._normalisation:
            mean, std = (
                np.array(values)[None, :, None, None] for values in (self.preprocess.mean, self.preprocess.std)
            )
            pair = (torch.tensor(values, dtype=torch.float32, device=device) for values in (1.0 / std, -mean / std))
            self._normalisation[device] = (next(pair), next(pair))
        return self._normalisation[device]


def sampling_matrix(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """From a matrix of old to new pixels to one of new to old places, as grid_sample counts them; float64 [2, 3].

    matrix: (x, y) from the upper left pixel's centre. Places run from -1 to 1 between the image's outer edges
    (align_corners=False). size: (height, width).
    """
    linear = np.linalg.inv(matrix[:, :2])
    half = np.array([size[1] / 2, size[0] / 2])
    centre = half - 0.5
    offset = linear @ (centre - matrix[:, 2]) - centre
    return np.column_stack([linear * half / half[:, None], offset / half])


def _grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """[B, 2, 3] → where each new pixel comes from, [B, H, W, 2].

    Not affine_grid: that is a matrix product, which TF32 and autocast round to a tenth of a pixel.
    """
    x, y = ((2.0 * torch.arange(n, device=matrix.device) + 1.0) / n - 1.0 for n in (width, height))
    a, b, c = matrix[:, None, None].unbind(-1)
    return a * x[None, None, :, None] + (b * y[None, :, None, None] + c)
