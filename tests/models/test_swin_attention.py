"""Attention on whole maps against timm's blocks, which roll maps, cut them into windows and put them together."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

from models import create_backbone
from models.backbones.swin_attention import WINDOW_ATTENTION, SwinBlock, plain_window_attention, use_window_kernels
from utils.kernels import prepare_kernels


def kernel(*arguments):
    """Not `plain_window_attention` itself, which stands for no kernel."""
    kernel.calls += 1
    return plain_window_attention(*arguments)


@pytest.fixture
def with_kernel(monkeypatch):
    kernel.calls = 0
    monkeypatch.setattr(WINDOW_ATTENTION, "chosen", {})
    monkeypatch.setattr(WINDOW_ATTENTION, "kernels", {"cpu": (("a kernel", lambda: kernel),)})


def block(size=(14, 21), window=7, shift=3, dim=32, heads=2, **options) -> SwinTransformerBlock:
    torch.manual_seed(0)
    created = SwinTransformerBlock(dim, size, heads, window_size=window, shift_size=shift, **options)
    torch.nn.init.normal_(created.attn.relative_position_bias_table)
    return created


def with_gradients(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("window, shift", [(7, 0), (7, 3), ((2, 7), (1, 3)), ((2, 7), (1, 0))])
def test_a_block_computes_what_timms_does(window, shift, with_kernel):
    x = torch.randn(2, 14, 21, 32)
    expected = with_gradients(block(window=window, shift=shift), x)
    ours = torch.nn.Sequential(block(window=window, shift=shift))
    use_window_kernels(ours)
    assert type(ours[0]) is SwinBlock
    found = with_gradients(ours, x)
    assert kernel.calls == 2  # once in the check
    for y, e in zip(found, expected, strict=True):
        assert (y - e).abs().max() <= 1e-5 * e.abs().max()


@pytest.mark.parametrize(
    "options, why",
    [
        ({"size": (15, 21)}, "windows do not divide the map, which timm rolls before it pads it"),
        ({"window": 9, "size": (18, 18)}, "81 places"),
        ({"dim": 48, "heads": 2}, "heads of 24 numbers"),
        ({"attn_drop": 0.5}, "dropout of weights"),
        ({"dynamic_mask": True}, "a mask made anew for every map"),
    ],
)
def test_what_the_kernel_has_no_tile_for_stays_with_timm(options, why, with_kernel):
    ours, theirs = block(**options), block(**options)
    use_window_kernels(torch.nn.Sequential(ours))
    x = torch.randn(2, *options.get("size", (14, 21)), options.get("dim", 32))
    torch.manual_seed(1)
    found = ours(x)
    torch.manual_seed(1)
    assert torch.equal(found, theirs(x)), why
    assert kernel.calls == 0


def test_without_a_kernel_a_block_is_timms_to_the_last_bit():
    ours, theirs = block(), block()
    use_window_kernels(torch.nn.Sequential(ours))
    x = torch.randn(2, 14, 21, 32)
    assert torch.equal(ours(x), theirs(x))


def test_the_kernel_is_chosen_for_the_type_of_autocast(with_kernel):
    ours = block()
    use_window_kernels(torch.nn.Sequential(ours))
    with torch.autocast("cpu", torch.bfloat16):
        ours(torch.randn(1, 14, 21, 32))
    assert [dtype for _, dtype in WINDOW_ATTENTION.chosen] == [torch.bfloat16]


def test_a_network_is_compiled_with_kernels_that_were_prepared(with_kernel):
    network = create_backbone("swin_tiny", image_size=(64, 64)).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = [y.detach() for y in network.forward_features(x)]
    calls = kernel.calls
    WINDOW_ATTENTION.chosen.clear()
    prepare_kernels(network, torch.device("cpu"), (torch.float32,))
    assert kernel.calls == calls + 1
    found = torch.compile(network.forward_features, backend="eager", fullgraph=True)(x)
    torch.compiler.reset()
    assert kernel.calls > calls + 1  # traced
    for y, e in zip(found, expected):
        torch.testing.assert_close(y, e, rtol=1e-4, atol=1e-5)
