"""Heatmaps lie where the network looked: at sizes that no stride divides, through letterboxes, on turned images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.readers.images import read_image, to_uint8
from data.transforms.images import resize
from explain.alignment import level_centres
from explain.cam import class_activation_maps
from explain.geometry import at_pixels, onto_image
from explain.network import Layer, explaining
from explain.rollout import attention_rollout
from models import HybridMedNet
from tests.averaging import averaging
from tests.explain.networks import images, network

SLOW = pytest.mark.slow


def planted(model: HybridMedNet, x: Tensor, level: int | str, cell: tuple[int, ...]) -> tuple[float, ...]:
    """Where a map with a response in one cell has its centre on the image, in pixels."""
    with explaining(model):
        layer = Layer(model, x, level)
        maps = torch.zeros(1, 1, *layer.activations.shape[2:])
        maps[(0, 0, *cell)] = 1
        pixels = layer.to_pixels(maps)[0, 0].double()
    axes = [pixels.sum([a for a in range(pixels.ndim) if a != axis]) for axis in range(pixels.ndim)]
    return tuple(float((line * torch.arange(len(line))).sum() / line.sum()) for line in axes)


@pytest.mark.parametrize(
    "name, size, level, cell, expected",
    [
        ("resnet18", (70, 97), 2, (2, 3), (32, 48)),
        ("resnet18", (101, 70), 3, (1, 1), (32, 32)),
        # TensorFlow's padding: none in front at 97, which 2 does not divide; 1 + 4 pixels at 70 = 2 · 35, 35 → 18 → 9.
        ("tf_efficientnet_lite0", (70, 97), 2, (2, 3), (37, 48)),
        ("vit_tiny", (70, 97), 2, (2, 3), (39.5, 55.5)),  # padded to 80 × 112 behind
        ("swin_tiny", (70, 101), 2, (2, 3), (39.5, 55.5)),
        ("swin3d_tiny", (37, 41, 45), 1, (2, 2, 2), (19.5, 19.5, 19.5)),
    ],
)
def test_a_planted_response_is_found_again(name, size, level, cell, expected):
    """Within 1 % of the side; the expected pixels are the cells' centres by each family's strides and paddings."""
    model = network(name, size)
    found = planted(model, images(1, 3, *size), level, cell)
    assert all(abs(a - b) < 0.01 * side for a, b, side in zip(found, expected, size, strict=True))


@pytest.mark.parametrize("name", ["resnet18", pytest.param("tf_efficientnet_lite0", marks=SLOW)])
@pytest.mark.parametrize("spot", [(140, 201), (170, 260)], ids=str)
def test_a_bright_spot_is_found_where_it_is(name, spot):
    """What the backbone answers to a spot, drawn on the image: the centre of the answer is the spot's."""
    size = (326, 417)  # 70 and 97 and eight and ten strides of 32
    model = network(name, size)
    averaging(model.backbone)
    empty = 0.01 * torch.ones(1, 3, *size)
    image = empty.clone()
    image[..., spot[0] - 4 : spot[0] + 5, spot[1] - 4 : spot[1] + 5] += 0.01
    with explaining(model):
        layer, background = Layer(model, image, 1), Layer(model, empty, 1)
        answer = layer.to_pixels((layer.activations - background.activations).sum(1))[0].double().relu()
    for axis, side in enumerate((70, 97)):
        along = answer.sum(1 - axis)
        centre = float((along * torch.arange(len(along))).sum() / along.sum())
        assert abs(centre - spot[axis]) < 0.01 * side


def test_fused_cells_lie_between_those_of_the_levels():
    """The fused map of a ResNet begins at pixel 0 as its levels do, and rises; a single cell says nothing of places."""
    for size in [(70, 97), (33, 64), (20, 20)]:
        model, x = network(size=size), images(1, 3, *size)
        with explaining(model):
            layer = Layer(model, x, "fused")
        for centres, cells, side in zip(layer.centres, layer.activations.shape[2:], size, strict=True):
            assert len(centres) == cells and (centres.diff() > 0).all()
            assert -1 < centres[0] < 8 and side - 20 < centres[-1] < side + 12


def test_fused_centres_by_hand():
    """Two levels, at strides 2 and 4, fused at the finer: 4 cells at 0, 2, 4, 6 and two at 1, 5 stretched to 4."""
    model = network(fpn=False)
    model.fusion.target_level = 0
    fine, coarse = torch.tensor([0.0, 2.0, 4.0, 6.0]), torch.tensor([1.0, 5.0])
    (found,) = model.fusion.centres([[fine], [coarse]])
    assert found.tolist() == pytest.approx([0.5, 2.0, 4.0, 5.5])
    (found,) = model.fusion.centres([[fine], [torch.tensor([3.0])]])
    assert found.tolist() == fine.tolist()


def test_a_backbone_without_a_promise_is_taken_for_tiles():
    backbone = SimpleNamespace(feature_strides=[4])
    (found,) = level_centres(backbone, [torch.zeros(1, 1, 3, 2)], (12, 8))
    assert [axis.tolist() for axis in found] == [[1.5, 5.5, 9.5], [1.5, 5.5]]


def test_cells_at_unequal_distances_are_interpolated_between_their_centres():
    pixels = at_pixels(torch.tensor([[0.0, 4.0, 8.0]]), (10,), [torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64)])
    assert pixels[0].tolist() == pytest.approx([0, 0, 2, 4, 5, 6, 7, 8, 8, 8])


def test_rollout_of_an_image_that_patches_do_not_divide(monkeypatch):
    """All attention to the patch in row 2, column 3 of 5 × 7: its centre is pixel (39.5, 55.5) of 70 × 97."""
    model, size = network("vit_tiny", (70, 97)), (70, 97)
    attention = model.backbone.global_attention(images(1, 3, *size))
    assert attention is not None and attention.grid == (5, 7)
    weights = torch.zeros_like(attention.weights[0])
    weights[..., attention.prefix + 2 * 7 + 3] = 1
    monkeypatch.setattr(model.backbone, "global_attention", lambda x: attention._replace(weights=[weights]))
    (heatmap,) = attention_rollout(model, images(1, 3, *size), [0])[0].double()
    for axis, centre in enumerate((39.5, 55.5)):
        line = heatmap.sum(1 - axis)
        assert abs(float((line * torch.arange(len(line))).sum() / line.sum()) - centre) < 0.7


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
@pytest.mark.parametrize("turned", [1, 3, 6, 8])
def test_a_spot_of_a_turned_image_comes_back_in_the_pixels_that_are_read(tmp_path, mode, turned):
    """EXIF says how the file is turned; what is read, resized and put back is upright, the spot where it was."""
    upright = np.zeros((90, 143), np.uint8)
    upright[20:31, 100:111] = 255
    quarter_turns = {1: 0, 3: 2, 6: 1, 8: 3}[turned]  # counter-clockwise, undone by the orientation
    exif = Image.Exif()
    exif[0x0112] = turned
    file = tmp_path / "turned.jpg"
    Image.fromarray(np.rot90(upright, quarter_turns)).save(file, exif=exif, quality=95)
    pixels = to_uint8(read_image(file))
    pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
    assert pixels.shape == upright.shape
    pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)  # without the traces of JPEG
    heatmap = resize(pixels[..., None], (97, 70), mode)[..., 0].astype(np.float32)
    found = onto_image(heatmap, pixels.shape, mode)
    assert found.shape == upright.shape
    for axis, (centre, side) in enumerate(zip((25, 105), upright.shape, strict=True)):
        line = found.sum(1 - axis)
        assert abs(float((line * np.arange(len(line))).sum() / line.sum()) - centre) < 0.01 * side


def test_followed_once_a_size_and_nothing_of_it_stays():
    model, x = network(), images(1, 3, 64, 64)
    class_activation_maps(model, x, [0], "grad_cam", 2)
    grids = model.backbone.cell_grids((64, 64))
    assert model.backbone.cell_grids((64, 64)) is grids
    assert all(p.grad is None and not p.is_meta for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model.backbone.cell_grids((97, 64)) is not grids
