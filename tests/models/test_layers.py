"""Small layers and the feature pyramid against torch, torchvision and slow loops, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork as ReferencePyramid

from models.fpn import FeaturePyramidNetwork
from models.fusion import mean_after_resize
from models.layers import BatchNorm1d, BatchNorm2d, ChannelLayerNorm, global_average_and_max, pooled_tokens, resize_to

NORMS = {"1d": (BatchNorm1d, nn.BatchNorm1d, ()), "2d": (BatchNorm2d, nn.BatchNorm2d, (1, 1))}


def used_norm(kind, channels: int = 5):
    """A norm whose weights and statistics are not the initial ones."""
    torch.manual_seed(0)
    norm = kind(channels).double()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


def assert_equal_buffers(module: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in module.named_buffers():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("ours, theirs, spatial", NORMS.values(), ids=NORMS)
def test_one_value_a_channel_is_normalised_with_running_statistics(ours, theirs, spatial):
    norm, x = used_norm(ours), torch.randn(1, 5, *spatial, dtype=torch.float64, requires_grad=True)
    before = buffers(norm)
    y = norm.train()(x)
    flat = (x.detach().flatten() - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(y.flatten(), flat, rtol=1e-12, atol=0)
    assert_equal_buffers(norm, before)
    with pytest.raises(ValueError, match="more than 1 value"):
        used_norm(theirs).train()(x)
    y.sum().backward()
    assert x.grad.abs().min() > 0 and norm.weight.grad.abs().min() > 0


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch, extra", [(2, 0), (3, 2), (1, 3)], ids=str)
@pytest.mark.parametrize("ours, theirs, spatial", NORMS.values(), ids=NORMS)
def test_every_other_batch_is_torchs(ours, theirs, spatial, batch, extra, training):
    shape = (batch, 5, *(side + extra for side in spatial)) if spatial else (batch + extra, 5)
    x = torch.randn(shape, dtype=torch.float64)
    mine, reference = used_norm(ours).train(training), used_norm(theirs).train(training)
    assert torch.equal(mine(x), reference(x))
    assert_equal_buffers(mine, buffers(reference))


def test_norms_have_torchs_names_and_type():
    """Weights of other versions load, and code that looks for torch's norms finds them."""
    for ours, theirs, _ in NORMS.values():
        assert isinstance(ours(3), theirs) and list(ours(3).state_dict()) == list(theirs(3).state_dict())


@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (1, 6, 4), (2, 6, 2, 3, 4)], ids=str)
def test_channel_layer_norm(shape):
    torch.manual_seed(0)
    norm, x = ChannelLayerNorm(6).double(), torch.randn(shape, dtype=torch.float64)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    tokens = norm(x)
    assert tokens.shape == (shape[0], math.prod(shape[2:]), 6)
    for b in range(shape[0]):
        for n, place in enumerate(np.ndindex(*shape[2:])):
            values = x[(b, slice(None), *place)]
            expected = (values - values.mean()) / (values.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
            torch.testing.assert_close(tokens[b, n], expected)


# ---- resizing


def area_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: means over the cells floor(i·old/new) … ceil((i+1)·old/new)."""
    matrix = np.zeros((new, old))
    for i in range(new):
        first, last = i * old // new, -((-(i + 1) * old) // new)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def linear_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: linear interpolation between sample centres, the border repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = min(int(centre), old - 1)
        matrix[i, low] += 1 - (centre - low)
        matrix[i, min(low + 1, old - 1)] += centre - low
    return matrix


def slow_resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    shrinks = size[0] <= x.shape[2] and size[1] <= x.shape[3]
    matrix = area_matrix if shrinks else linear_matrix
    rows, columns = (torch.from_numpy(matrix(old, new)) for old, new in zip(x.shape[2:], size))
    return torch.einsum("bchw,ih,jw->bcij", x, rows, columns)


SIZES = [1, 2, 3, 7, 8, 13, 14]
RESIZES = [((h, w), (i, j)) for h, w in zip(SIZES, SIZES[::-1]) for i, j in zip(SIZES, SIZES[2:] + SIZES[:2])]


@pytest.mark.parametrize("old, new", RESIZES, ids=str)
def test_resize_is_area_mean_or_bilinear(old, new):
    x = torch.randn(2, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_to(x, new), slow_resize(x, new), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("old, new", [*RESIZES, ((7, 7), (56, 56)), ((3, 4), (25, 31)), ((28, 28), (14, 14))], ids=str)
def test_mean_after_resize_is_the_mean_of_what_resize_builds(old, new):
    x = torch.randn(2, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = slow_resize(x, new).mean((2, 3))
    # Its weights are float32, whatever x is.
    torch.testing.assert_close(mean_after_resize(x, new), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(resize_to(x, new).mean((2, 3)), expected, rtol=1e-11, atol=1e-11)


def test_a_map_of_the_right_size_is_not_copied():
    x = torch.randn(1, 2, 3, 4)
    assert resize_to(x, (3, 4)) is x


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 7), (8, 13), (21, 14)], ids=str)
def test_pooled_tokens_are_area_means_row_by_row(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    grid = (min(4, size[0]), min(4, size[1]))
    means = slow_resize(x, grid)
    tokens = pooled_tokens(x, 4)
    assert tokens.shape == (2, grid[0] * grid[1], 3)
    for n, (i, j) in enumerate(np.ndindex(*grid)):
        torch.testing.assert_close(tokens[:, n], means[:, :, i, j])


def test_global_average_and_max():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = np.concatenate([x.mean((2, 3)), x.max((2, 3))], axis=1)
    np.testing.assert_allclose(global_average_and_max(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


# ---- feature pyramid network


@pytest.mark.parametrize(
    "sizes", [[(16, 16), (8, 8), (4, 4), (2, 2)], [(25, 19), (13, 10), (7, 5)], [(4, 6)]], ids=["even", "odd", "one"]
)
def test_feature_pyramid_is_torchvisions(sizes):
    torch.manual_seed(0)
    channels = [3, 5, 7, 9][: len(sizes)]
    ours, reference = FeaturePyramidNetwork(channels, 6).double(), ReferencePyramid(channels, 6).double()
    for mine, theirs in ((ours.lateral_convs, reference.inner_blocks), (ours.output_convs, reference.layer_blocks)):
        for conv, block in zip(mine, theirs, strict=True):
            conv.load_state_dict(block[0].state_dict())
            nn.init.normal_(conv.bias)
            block[0].load_state_dict(conv.state_dict())
    levels = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(channels, sizes)]
    expected = reference({str(i): level for i, level in enumerate(levels)})
    result = ours(levels)
    assert ours.feature_channels == [6] * len(sizes)
    for mine, theirs in zip(result, expected.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
