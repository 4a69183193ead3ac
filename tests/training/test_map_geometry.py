"""Cells, regions and maps of other views, against sums over pixels and images that were really warped."""

import cv2
import numpy as np
import pytest
import torch

from data.transforms.images import LightAugmentation
from training.map_geometry import cell_matrix, even_centres, in_other_view, to_cells

AXIS = torch.arange(8, dtype=torch.float64) * 4


def test_every_pixel_belongs_to_cells_with_all_of_its_extent():
    for centres in (
        AXIS,
        even_centres(7, 32),
        torch.tensor([5.0]).double(),
        torch.tensor([0.0, 1.5, 4.0, 9.5]).double(),
    ):
        matrix = cell_matrix(centres, 32)
        assert torch.allclose(matrix.sum(1), torch.ones(len(centres), dtype=torch.float64))
        begin = torch.cat([torch.tensor([-0.5]).double(), (centres[1:] + centres[:-1]) / 2])
        extent = torch.cat([begin[1:], torch.tensor([31.5]).double()]) - begin
        assert torch.allclose((matrix * extent[:, None]).sum(0), torch.ones(32, dtype=torch.float64))


def test_a_region_is_averaged_to_even_cells_as_by_reshaping():
    share = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = to_cells(share, [even_centres(8, 32), even_centres(12, 48)])
    expected = (share.double() / 255).reshape(3, 8, 4, 12, 4).mean((2, 4))
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_cells_that_do_not_tile_are_sums_over_the_pixels_nearest_to_them():
    """A ResNet's first cell is centred on pixel 0: a slow loop over tenths of pixels."""
    share = torch.zeros(1, 32, 32, dtype=torch.uint8)
    share[0, 3:9, 10:11] = 255
    found = to_cells(share, [AXIS, AXIS])[0]
    fine = share[0].double().repeat_interleave(10, 0).repeat_interleave(10, 1) / 255
    places = (torch.arange(320, dtype=torch.float64) + 0.5) / 10 - 0.5
    nearest = (places[:, None] - AXIS).abs().argmin(1)
    for y in range(8):
        for x in range(8):
            assert float(found[y, x]) == pytest.approx(float(fine[nearest == y][:, nearest == x].mean()), abs=1e-6)


def drawn_views(seed: int, count: int = 1) -> torch.Tensor:
    augmentation, rng = LightAugmentation(20.0, 0.2, 0.1, horizontal_flip=0.5), np.random.default_rng(seed)
    pairs = [[augmentation.draw((32, 32), rng)[0] for _ in range(2)] for _ in range(count)]
    return torch.tensor(np.array(pairs), dtype=torch.float32)


@pytest.mark.parametrize("centres", [even_centres(32, 32), AXIS, even_centres(8, 32)], ids=["pixels", "resnet", "even"])
def test_a_linear_map_of_the_image_is_the_same_in_both_views(centres):
    """Maps that are linear in the place before augmentation: interpolation is exact, so any shift would show."""
    views = drawn_views(1, 20)
    slope = torch.tensor([0.7, -0.3])

    def as_seen(view: torch.Tensor) -> torch.Tensor:
        """What a map says at its cells, if it says slope · place before augmentation."""
        linear, shift = view[:, :2].double(), view[:, 2].double()
        places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
        return ((places - shift) @ torch.linalg.inv(linear).T @ slope.double()).float()

    first, second = (torch.stack([as_seen(pair[i]) for pair in views]) for i in range(2))
    seen, both = in_other_view(second, views, [centres, centres], (32, 32))
    # Beyond the outer cells' centres their values are repeated, which is no line any more.
    places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).float()
    for i, (a, b) in enumerate(views):
        before = (places - a[:, 2]) @ torch.linalg.inv(a[:, :2]).T
        there = before @ b[:, :2].T + b[:, 2]
        between = ((there >= centres[0]) & (there <= centres[-1])).all(-1) & both[i]
        assert between.sum() > 10
        assert torch.allclose(first[i][between], seen[i][between], atol=1e-3)


def test_a_delta_comes_back_to_where_it_was():
    """cv2 warps an image of one spot by both maps: seen from the first view, the second's spot lies on the first's."""
    for seed in range(10):
        views = drawn_views(seed)
        spot = cv2.GaussianBlur(
            np.eye(32, dtype=np.float32)[16:17].T @ np.eye(32, dtype=np.float32)[13:14], (9, 9), 1.5
        )
        one, other = (cv2.warpAffine(spot, np.float64(view), (32, 32)) for view in views[0].numpy())
        seen, both = in_other_view(torch.tensor(other)[None], views, [even_centres(32, 32)] * 2, (32, 32))
        assert both[0].float().mean() > 0.5
        places = np.stack(np.meshgrid(np.arange(32), np.arange(32)), -1)
        means = [(image[..., None] * places).sum((0, 1)) / image.sum() for image in (one, seen[0].numpy())]
        assert np.abs(means[0] - means[1]).max() < 0.1, seed


def test_a_mirror_is_exact_to_half_a_cell():
    mirror = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[-1.0, 0, 31], [0, 1, 0]]])[None]
    maps = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen, both = in_other_view(maps, mirror, [even_centres(8, 32)] * 2, (32, 32))
    assert both.all()
    assert torch.allclose(seen, maps.flip(2), atol=1e-6)


def test_what_either_view_does_not_show_does_not_count():
    shift = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1.0, 0, 16], [0, 1, 0]]])[None]
    _, both = in_other_view(torch.zeros(1, 32, 32), shift, [even_centres(32, 32)] * 2, (32, 32))
    assert both[0].all(0).tolist() == [True] * 16 + [False] * 16
    _, both = in_other_view(torch.zeros(1, 32, 32), shift.flip(1), [even_centres(32, 32)] * 2, (32, 32))
    assert both[0].all(0).tolist() == [False] * 16 + [True] * 16
