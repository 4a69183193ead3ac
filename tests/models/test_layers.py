"""Small layers and the feature pyramid against torch, torchvision and slow loops, in float64."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork as ReferencePyramid

from models.fpn import FeaturePyramidNetwork
from models.fusion import mean_after_resize
from models.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ChannelLayerNorm,
    GroupNorm32,
    along_axes,
    avg_pool_nd,
    conv_nd,
    conv_transpose_nd,
    global_average_and_max,
    group_count,
    linear,
    norm_nd,
    pooled_tokens,
    resize_to,
)
from utils.blocks import State

NORMS = {
    "1d": (BatchNorm1d, nn.BatchNorm1d, ()),
    "2d": (BatchNorm2d, nn.BatchNorm2d, (1, 1)),
    "3d": (BatchNorm3d, nn.BatchNorm3d, (1, 1, 1)),
}


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
    found = dict(module.named_buffers())
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
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
        for n, position in enumerate(np.ndindex(*shape[2:])):
            values = x[(b, slice(None), *position)]
            expected = (values - values.mean()) / (values.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
            torch.testing.assert_close(tokens[b, n], expected)


# ---- layers by their number of axes


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_layers_are_torchs_of_that_many_axes(spatial_dims):
    x = torch.randn(2, 4, *[6] * spatial_dims)
    for make, kind in (
        (conv_nd, (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
        (conv_transpose_nd, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    ):
        torch.manual_seed(0)
        layer = make(spatial_dims, 4, 8, 3, stride=2, padding=1, bias=False)
        torch.manual_seed(0)
        reference = kind[spatial_dims - 1](4, 8, 3, stride=2, padding=1, bias=False)
        assert type(layer) is type(reference) and torch.equal(layer(x), reference(x))
    pool = avg_pool_nd(spatial_dims, 2, ceil_mode=True)
    assert type(pool) is (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[spatial_dims - 1]
    assert pool(x).shape == (2, 4, *[3] * spatial_dims)
    assert linear(4, 3, bias=False)(torch.ones(2, 4)).shape == (2, 3)


@pytest.mark.parametrize("make", [conv_nd, conv_transpose_nd, avg_pool_nd])
@pytest.mark.parametrize("spatial_dims", [0, 4, "2"])
def test_other_numbers_of_axes_are_refused(make, spatial_dims):
    with pytest.raises(ValueError, match=f"spatial_dims is {spatial_dims!r}: one of 1, 2, 3"):
        make(spatial_dims, 4, 4, 1)


def test_norms_by_kind_and_number_of_axes():
    kinds = {0: BatchNorm1d, 1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}
    for spatial_dims, kind in kinds.items():
        assert type(norm_nd("batch", spatial_dims, 6)) is kind
        norm = norm_nd("group", spatial_dims, 512)
        assert type(norm) is GroupNorm32 and (norm.num_groups, norm.num_channels) == (32, 512)
    with pytest.raises(ValueError, match="unknown norm 'layer': one of batch, group"):
        norm_nd("layer", 2, 6)
    for kind in ("batch", "group"):
        with pytest.raises(ValueError, match="spatial_dims is 4: one of 0, 1, 2, 3"):
            norm_nd(kind, 4, 6)


@pytest.mark.parametrize("channels, groups", [(1024, 32), (512, 32), (256, 16), (48, 3), (100, 5), (31, 1), (1, 1)])
def test_groups_divide_the_channels_and_are_not_too_small(channels, groups):
    assert group_count(channels) == groups


def slow_group_norm(x: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """One sample and one group at a time, in float64."""
    y = torch.empty_like(x, dtype=torch.float64)
    for b in range(len(x)):
        for channels in torch.arange(x.shape[1]).chunk(norm.num_groups):
            values = x[b, channels].double()
            y[b, channels] = (values - values.mean()) / (values.var(correction=0) + norm.eps).sqrt()
    shape = (-1, *[1] * (x.ndim - 2))
    return y * norm.weight.double().reshape(shape) + norm.bias.double().reshape(shape)


@pytest.mark.parametrize("shape", [(3, 32), (1, 32), (2, 32, 5), (2, 32, 3, 4), (2, 32, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_group_norm_is_the_loop_in_float32_or_better(shape, dtype):
    torch.manual_seed(0)
    norm, x = norm_nd("group", len(shape) - 2, 32).to(dtype), (torch.randn(shape) * 3 + 40).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    y, expected = norm(x), slow_group_norm(x, norm)
    assert y.dtype == dtype and norm.num_groups == 2
    # Computed in float32 and rounded once: as near as the type's steps allow.
    torch.testing.assert_close(y.double(), expected, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_group_norm_computes_in_float32_under_autocast(dtype):
    torch.manual_seed(0)
    norm, x = GroupNorm32(2, 32), (torch.randn(2, 32, 4, 4) + 40).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == dtype and torch.equal(y, nn.GroupNorm(2, 32)(x.float()).to(dtype))


@pytest.mark.parametrize(
    "given, computed",
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_the_type_that_group_norm_computes_in(given, computed, monkeypatch):
    """Asked of what it calls: torch's own kernels on a CPU happen to widen half types inside."""
    types, original = set(), nn.functional.group_norm

    def spy(x, groups, weight, bias, eps):
        types.update((x.dtype, weight.dtype, bias.dtype))
        return original(x, groups, weight, bias, eps)

    monkeypatch.setattr(nn.functional, "group_norm", spy)
    assert GroupNorm32(2, 32).to(given)(torch.randn(2, 32).to(given)).dtype == given
    assert types == {computed}


def test_group_norm_trains_and_is_saved_as_torchs():
    norm = copy.deepcopy(GroupNorm32(2, 32))
    assert isinstance(norm, nn.GroupNorm) and list(norm.state_dict()) == ["weight", "bias"]
    norm(torch.randn(1, 32)).square().sum().backward()
    assert norm.weight.grad.abs().min() > 0 and norm.bias.grad.abs().min() > 0


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


def slow_resize(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """One axis after another."""
    shrinks = all(new <= old for new, old in zip(size, x.shape[2:]))
    matrix = area_matrix if shrinks else linear_matrix
    for axis, (old, new) in enumerate(zip(x.shape[2:], size), start=2):
        x = torch.tensordot(x, torch.from_numpy(matrix(old, new)), dims=([axis], [1])).movedim(-1, axis)
    return x


SIZES = [1, 2, 3, 7, 8, 13, 14]
RESIZES = [((h, w), (i, j)) for h, w in zip(SIZES, SIZES[::-1]) for i, j in zip(SIZES, SIZES[2:] + SIZES[:2])]
VOLUME_RESIZES = [
    ((4, 6, 8), (2, 3, 4)),
    ((5, 7, 3), (2, 7, 1)),
    ((2, 3, 4), (5, 6, 11)),
    ((1, 4, 4), (1, 8, 8)),
    ((1, 8, 8), (1, 3, 3)),
    ((8, 2, 3), (4, 4, 5)),
]


@pytest.mark.parametrize("old, new", RESIZES + VOLUME_RESIZES, ids=str)
def test_resize_is_area_mean_or_bilinear(old, new):
    x = torch.randn(2, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_to(x, new), slow_resize(x, new), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "old, new",
    [*RESIZES, *VOLUME_RESIZES, ((7, 7), (56, 56)), ((3, 4), (25, 31)), ((28, 28), (14, 14))],
    ids=str,
)
def test_mean_after_resize_is_the_mean_of_what_resize_builds(old, new):
    x = torch.randn(2, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = slow_resize(x, new).flatten(2).mean(-1)
    # Its weights are float32, whatever x is.
    torch.testing.assert_close(mean_after_resize(x, new), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(resize_to(x, new).flatten(2).mean(-1), expected, rtol=1e-11, atol=1e-11)


def test_a_map_of_the_right_size_is_not_copied():
    x = torch.randn(1, 2, 3, 4)
    assert resize_to(x, (3, 4)) is x


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 5), (7, 7), (8, 13), (21, 14), (1, 1, 1), (2, 9, 5), (8, 3, 4), (9,)], ids=str
)
def test_pooled_tokens_are_area_means_row_by_row(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    grid = tuple(min(4, side) for side in size)
    means = slow_resize(x, grid)
    tokens = pooled_tokens(x, 4)
    assert tokens.shape == (2, math.prod(grid), 3)
    for n, position in enumerate(np.ndindex(*grid)):
        torch.testing.assert_close(tokens[:, n], means[(slice(None), slice(None), *position)])


def test_the_3d_mean_of_exported_graphs_is_the_same_mean(monkeypatch):
    x = torch.randn(2, 3, 7, 9, 10, dtype=torch.float64)
    plain = resize_to(x, (4, 4, 3))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(resize_to(x, (4, 4, 3)), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(4,), (4, 4, 4), (3, 4, 4, 4)], ids=str)
def test_sizes_for_another_number_of_axes_are_refused(size):
    with pytest.raises(ValueError):
        resize_to(torch.randn(1, 2, 3, 4), size)


@pytest.mark.parametrize("spatial", [(4, 5), (2, 3, 4)], ids=str)
def test_global_average_and_max(spatial):
    x = np.random.default_rng(0).normal(size=(2, 3, *spatial))
    axes = tuple(range(2, x.ndim))
    expected = np.concatenate([x.mean(axes), x.max(axes)], axis=1)
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


def slow_conv3d(x: torch.Tensor, conv: nn.Conv3d) -> torch.Tensor:
    """One output place at a time; kernels of 1 or 3 with zeros around."""
    side = conv.kernel_size[0]
    padded = nn.functional.pad(x, [side // 2] * 6)
    y = x.new_empty(len(x), conv.out_channels, *x.shape[2:])
    for d, h, w in np.ndindex(*x.shape[2:]):
        cube = padded[:, :, d : d + side, h : h + side, w : w + side]
        y[:, :, d, h, w] = torch.einsum("bcijk,ocijk->bo", cube, conv.weight) + conv.bias
    return y


def test_feature_pyramid_of_a_volume_is_its_formula():
    torch.manual_seed(0)
    channels, sizes = [2, 3, 4], [(5, 6, 4), (3, 3, 2), (2, 2, 1)]
    fpn = FeaturePyramidNetwork(channels, 5, spatial_dims=3).double()
    levels = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(channels, sizes)]
    above, expected = None, []
    for i in (2, 1, 0):
        lateral = slow_conv3d(levels[i], fpn.lateral_convs[i])
        if above is not None:
            for position in np.ndindex(*sizes[i]):
                nearest = tuple(p * old // new for p, old, new in zip(position, sizes[i + 1], sizes[i]))
                lateral[(..., *position)] += above[(..., *nearest)]
        above = lateral
        expected.insert(0, slow_conv3d(lateral, fpn.output_convs[i]))
    for mine, other in zip(fpn(levels), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_feature_pyramid_has_a_step_a_level(spatial_dims):
    torch.manual_seed(0)
    fpn = FeaturePyramidNetwork([2, 3, 4], 5, spatial_dims=spatial_dims)
    state = State(levels=tuple(torch.randn(1, c, *[s] * spatial_dims) for c, s in zip([2, 3, 4], (8, 4, 2))))
    expected, steps = fpn(state.levels), fpn.steps()
    assert [step.name for step in steps] == ["fpn level 2", "fpn level 1", "fpn level 0"]
    for step in steps:
        state = step.run(state)
        assert len(state.tensors()) == 3
    assert all(torch.equal(mine, other) for mine, other in zip(state.levels, expected, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("old, new", [((3, 5), (7, 5)), ((1, 1), (4, 3)), ((7, 7), (56, 56)), ((4, 6), (3, 9))])
def test_growth_by_matrices_is_interpolation(old, new, layout):
    x = torch.randn(2, 8, *old, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, expected = resize_to(x, new), F.interpolate(x, size=new, mode="bilinear", align_corners=False)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    pairs = zip(torch.autograd.grad(y.square().sum(), x), torch.autograd.grad(expected.square().sum(), x))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape, new", [((3, 5), (7, 5)), ((6, 4), (2, 9)), ((2, 3, 4), (3, 5, 9)), ((1, 7), (8, 1))])
def test_a_matrix_an_axis_as_einsum_has_it(shape, new, layout):
    """What CUDA grows with, in every layout; also where the memory is in no layout of its own."""
    x = torch.randn(2, 6, *shape, dtype=torch.float64)
    if len(shape) == 2:
        x = x.to(memory_format=layout)
    matrices = [torch.randn(n, o, dtype=torch.float64) for o, n in zip(shape, new)]
    axes = "dhw"[-len(shape) :]
    expected = torch.einsum(f"bc{axes},{','.join(a.upper() + a for a in axes)}->bc{axes.upper()}", x, *matrices)
    for given in (x, x.mT.contiguous().mT, x.expand(2, *x.shape)[1], x[:, ::2]):
        wanted = expected[:, ::2] if given.shape != x.shape else expected
        torch.testing.assert_close(along_axes(given, matrices), wanted, rtol=1e-12, atol=1e-12)
    found = along_axes(x, matrices)
    assert found.is_contiguous(memory_format=layout if len(shape) == 2 else torch.contiguous_format)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("old, new", [((8, 12), (4, 4)), ((7, 7), (7, 7)), ((14, 7), (7, 7)), ((9, 8), (4, 4))])
def test_means_over_cells_are_those_of_adaptive_pooling(old, new, layout):
    """Bit by bit, and in their gradients: cells that are all alike are pooled plainly."""
    x = torch.randn(2, 8, *old).to(memory_format=layout).requires_grad_()
    y, expected = pooled_tokens(x, new[0]), F.adaptive_avg_pool2d(x, new)
    assert torch.equal(y, expected.flatten(2).mT)
    pairs = zip(torch.autograd.grad(y.square().sum(), x), torch.autograd.grad(expected.square().sum(), x))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
