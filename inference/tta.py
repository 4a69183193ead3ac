"""Test-time transforms of images and volumes: the same ones every time, so that a prediction can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TestTimeTransform:
    """One affine transform about the image's centre.

    degrees: of rotation, in the plane of the last two axes, from x towards y. scale: above 1 enlarges. shift: parts of
    the image's lengths, an entry per axis (y, x) or (z, y, x), by which what is shown moves.
    """

    degrees: float = 0.0
    scale: float = 1.0
    shift: tuple[float, ...] = ()

    @property
    def is_identity(self) -> bool:
        return self == TestTimeTransform()


# Smaller than what training's augmentation draws (±7°, ±10 %, ±5 %), so that a model has seen such images; in pairs
# of opposite sign, so that their mean leans to no side. No mirror image: in a chest radiograph the heart's side is a
# finding.
IMAGE_TRANSFORMS = (
    TestTimeTransform(),
    TestTimeTransform(degrees=3.0),
    TestTimeTransform(degrees=-3.0),
    TestTimeTransform(scale=1.05),
    TestTimeTransform(scale=0.95),
)
# Volumes: shifts only, as a rotation in voxels shears where these are oblong, and their spacing is not known here.
VOLUME_TRANSFORMS = (
    TestTimeTransform(),
    TestTimeTransform(shift=(0.0, 0.03, 0.0)),
    TestTimeTransform(shift=(0.0, -0.03, 0.0)),
    TestTimeTransform(shift=(0.0, 0.0, 0.03)),
    TestTimeTransform(shift=(0.0, 0.0, -0.03)),
)


def transforms_for(image: Tensor) -> tuple[TestTimeTransform, ...]:
    """The transforms of a batch [B, C, H, W] or [B, C, D, H, W]."""
    return IMAGE_TRANSFORMS if image.ndim == 4 else VOLUME_TRANSFORMS


def show(image: Tensor, transform: TestTimeTransform) -> Tensor:
    """A transformed batch, linearly interpolated; [B, C, *spatial] → the same shape.

    What lies outside repeats the edge: the value of black is not known here, as the batch is normalised. Training's
    augmentation, which comes before normalisation, fills with black.
    """
    if transform.is_identity or image.shape[0] == 0:  # studies of tables alone
        return image
    matrix = sampling_matrix(tuple(image.shape[2:]), transform)
    theta = torch.tensor(matrix, dtype=torch.float32, device=image.device).expand(len(image), -1, -1)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    transformed = functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
    return transformed.to(image.dtype)


def sampling_matrix(lengths: Sequence[int], transform: TestTimeTransform) -> list[list[float]]:
    """[n, n + 1] from a new place to the old one it shows, x first, each axis from -1 to 1 between its outer faces.

    A new place p shows the old place R(-degrees) (p - shift) / scale; rotation is in pixels, so that an image that is
    not square is not sheared.
    """
    axes = len(lengths)
    lengths = list(lengths)[::-1]
    angle = torch.deg2rad(torch.tensor(-transform.degrees, dtype=torch.float64))
    linear = torch.eye(axes, dtype=torch.float64)
    linear[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], dtype=torch.float64)
    size = torch.diag(torch.tensor(lengths, dtype=torch.float64))
    linear = torch.linalg.inv(size) @ linear @ size / transform.scale
    shift = torch.tensor((transform.shift or (0.0,) * axes)[::-1], dtype=torch.float64)
    return torch.column_stack([linear, linear @ (-2.0 * shift)]).tolist()
