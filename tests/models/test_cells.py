"""Which pixels the cells of each level are centred on: by the arithmetic of each family, and by what a network sees."""

import pytest
import torch
from torch import Tensor, nn

from models import backbone_dims, create_backbone, list_backbones
from models.backbones.base import BaseVisionBackbone
from models.backbones.cells import CellGrid, trace_cells
from models.backbones.families import smallest_of_each_family
from tests.averaging import averaging

IMAGES = [name for name in smallest_of_each_family(list_backbones()) if backbone_dims(name) == 2]
VOLUMES = [name for name in smallest_of_each_family(list_backbones()) if backbone_dims(name) == 3]
SLOW = pytest.mark.slow
PATCHES = [1.5, 3.5, 7.5, 15.5]
# The first cells' centres, in pixels, of the four levels. Patches of s pixels: (s − 1) / 2. Kernels of k padded by
# (k − 1) / 2 on both sides begin at pixel 0; DenseNet's transitions average pairs of cells: (4 − 1 + …) 0, 2, 6, 14.
THEORY = {
    **dict.fromkeys(("resnet18", "mobilenetv2", "mobilenetv3_small", "efficientnet_b0", "regnety_004"), [0] * 4),
    **dict.fromkeys(("convnext_tiny", "convnextv2_tiny", "swin_tiny", "swinv2_tiny"), PATCHES),
    **dict.fromkeys(("vit_tiny", "sam_base", "vim_tiny"), PATCHES),
    "dinov2_small": [1.25, 3, 6.5, 13.5],
    "densenet121": [0, 2, 6, 14],
    "efficientvim_m1": [0] * 4,
}
TENSORFLOW = {"tf_efficientnet_lite0": (3, 3, 3, 5, 3), "efficientnetv2_s": (3, 3, 3, 3, 3)}
QUICK = {"resnet18", "vit_tiny", "swin_tiny", "tf_efficientnet_lite0", "efficientvim_m1"}


def mostly_slow(names) -> list:
    return [name if name in QUICK else pytest.param(name, marks=SLOW) for name in names]


def grids(name: str, size: tuple[int, ...]) -> list[CellGrid]:
    return create_backbone(name, image_size=size).cell_grids(size)


def test_every_family_has_an_arithmetic():
    """MaxViT's paths differ by half a cell, which test_maxvit is about."""
    assert sorted([*THEORY, *TENSORFLOW, "maxvit_tiny"]) == IMAGES


@pytest.mark.parametrize("size", [(70, 97), (101, 64)], ids=str)
@pytest.mark.parametrize("name", mostly_slow(THEORY))
def test_cells_lie_where_strides_and_paddings_put_them(name, size):
    backbone = create_backbone(name, image_size=size)
    found = backbone.cell_grids(size)
    for grid, first, stride in zip(found, THEORY[name], backbone.feature_strides, strict=True):
        assert grid.first == pytest.approx((first, first)) and grid.stride == pytest.approx((stride, stride))


def tensorflow_first(side: int, kernels: tuple[int, ...]) -> list[float]:
    """TensorFlow's 'SAME': max((⌈n / 2⌉ − 1) · 2 + k − n, 0) cells of padding, the smaller half of them in front."""
    first, stride, found = 0.0, 1, []
    for kernel in kernels:
        cells = -(-side // 2)
        padding = max((cells - 1) * 2 + kernel - side, 0)
        first += stride * ((kernel - 1) / 2 - padding // 2)
        side, stride = cells, stride * 2
        found.append(first)
    return found[-4:]


@pytest.mark.parametrize("name", mostly_slow(TENSORFLOW))
def test_tensorflows_padding_follows_the_size(name):
    size = (97, 70)
    expected = [tensorflow_first(side, TENSORFLOW[name]) for side in size]
    assert [grid.first for grid in grids(name, size)] == list(zip(*expected))
    assert [round(grid.first[0]) for grid in grids(name, (64, 64))] == [3, 7, 15, 31]
    assert [round(grid.first[0]) for grid in grids(name, (97, 97))] == [0, 0, 0, 0]


@SLOW
def test_maxvit_is_placed_between_its_two_paths():
    """Images are padded to a multiple of 32: 3×3 kernels begin one cell in, the shortcut's means of pairs half a one.

    first: 1 after the stem, then + 3/4 of a stride of 2, 4, 8 and 16.
    """
    found = [grid.first[0] for grid in grids("maxvit_tiny", (97, 70))]
    assert found == pytest.approx([2.5, 5.5, 11.5, 23.5])


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_are_cut_into_patches(name):
    found = grids(name, (28, 37, 41))
    assert [grid.first for grid in found] == [(first,) * 3 for first in PATCHES]
    assert [grid.stride for grid in found] == [(stride,) * 3 for stride in (4, 8, 16, 32)]


def seen_from(backbone: BaseVisionBackbone, level: int, size: tuple[int, int]) -> tuple[list[float], list[int]]:
    """The centroid of what the middle cell of a level sees, and that cell."""
    x = (0.01 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))).requires_grad_()
    activations = backbone.forward_features(x)[level]
    cell = [(cells - 1) // 2 for cells in activations.shape[2:]]
    (gradient,) = torch.autograd.grad(activations[0, :, cell[0], cell[1]].sum(), x)
    energy: Tensor = gradient[0].double().sum(0)
    along = [energy.sum(1 - axis) for axis in (0, 1)]
    return [float((line * torch.arange(len(line))).sum() / line.sum()) for line in along], cell


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "tf_efficientnet_lite0",
        *(pytest.param(n, marks=SLOW) for n in ("densenet121", "regnety_004", "mobilenetv2", "efficientnetv2_s")),
    ],
)
def test_a_cell_sees_the_pixels_around_its_centre(name):
    """Within 1 % of the side of a 97 × 70 image. Seen at 97 + 10 · 32 by 70 + 10 · 32, whose paddings are the same."""
    backbone = averaging(create_backbone(name))
    size, larger = (97, 70), (97 + 320, 70 + 320)
    level = 2
    assert backbone.cell_grids(size)[level] == backbone.cell_grids(larger)[level]
    seen, cell = seen_from(backbone, level, larger)
    grid = backbone.cell_grids(size)[level]
    for axis, side in enumerate(size):
        assert abs(grid.first[axis] + grid.stride[axis] * cell[axis] - seen[axis]) < 0.01 * side


class Odd(nn.Module):
    """Operations that no family of the registry has, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=2, dilation=2)
        self.up = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        dilated = self.conv(x)
        padded = nn.functional.pad(dilated, (1, 0, 3, 0))
        back = self.up(dilated)
        halved = nn.functional.interpolate(back, scale_factor=0.5, mode="bilinear")
        tokens = x.reshape(1, 1, x.shape[2] // 4, 4, x.shape[3] // 4, 4).mean((3, 5))
        return [dilated, padded, back, halved, tokens]


def test_operations_of_other_networks():
    """By hand: 3 taps 2 apart begin at pixel 2; 4 taps of a transposed convolution lie at −0.5 … of a half cell."""
    odd = Odd()
    found = trace_cells(odd, odd, (1, 1, 24, 40), [2, 2, 1, 2, 4])
    assert found[0] == CellGrid((2, 2), (2, 2))
    assert found[1] == CellGrid((2 - 6, 2 - 2), (2, 2))
    assert found[2] == CellGrid((1.5, 1.5), (1, 1))
    assert found[3] == CellGrid((2, 2), (2, 2))
    assert found[4] == CellGrid((1.5, 1.5), (4, 4))


def test_centres_are_pixels():
    centres = CellGrid((0.0, 5.0), (32.0, 16.0)).centres((3, 2))
    assert [axis.tolist() for axis in centres] == [[0, 32, 64], [5, 21]]
