"""The Triton kernels against the plain form, run by Triton's interpreter, which has to be asked for before import."""

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.backbones.swin_attention import plain_window_attention
from tests.models.triton_interpreter import compile_for, interpreted

NAMES = ("y", "qkv", "bias")
# Batch, rows and columns of windows, window, shift, heads, numbers of a head, a mask; then the type of the numbers.
# No bf16: the interpreter multiplies its bits; a GPU is asked in test_cuda.py.
CASES = {
    "shifted windows of 49": (2, (2, 3), (7, 7), (3, 3), 2, 32, True, torch.float32),
    "windows of 49": (1, (2, 2), (7, 7), (0, 0), 3, 32, False, torch.float32),
    "64 places, shifted one way": (1, (2, 1), (8, 8), (4, 0), 1, 16, True, torch.float32),
    "one window of six places": (3, (1, 1), (2, 3), (0, 0), 2, 16, False, torch.float32),
    "float16": (2, (1, 2), (7, 7), (3, 3), 2, 32, True, torch.float16),
}


def arguments(batch, counts, window, shift, heads, width, masked, dtype) -> tuple[list, torch.Tensor]:
    """The five arguments and dy."""
    g = torch.Generator().manual_seed(0)
    size, positions = [n * side for n, side in zip(counts, window)], window[0] * window[1]
    qkv = torch.randn(batch, *size, 3, heads, width, generator=g).to(dtype).requires_grad_()
    bias = torch.randn(heads, positions, positions, generator=g).requires_grad_()
    mask = (torch.rand(counts[0] * counts[1], positions, positions, generator=g) < 0.4).float() * -100
    dy = torch.randn(batch, *size, heads, width, generator=g).to(dtype)
    return [qkv, bias, mask if masked else None, window, shift], dy


def results(function, inputs, dy) -> list[torch.Tensor]:
    y = function(*inputs)
    return [y, *torch.autograd.grad(y, inputs[:2], dy)]


def operations(function, inputs, dy) -> int:
    """Forwards and backwards, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        results(function, inputs, dy)
    return counter.get_total_flops()


def wide(inputs: list) -> list:
    """The same in float64."""
    qkv, bias, mask, *rest = inputs
    pair = [x.detach().double().requires_grad_() for x in (qkv, bias)]
    return [*pair, None if mask is None else mask.double(), *rest]


def deviations(case: str) -> dict[str, float]:
    """Largest deviation from the plain form in float64 over its largest value: y and the gradients."""
    from models.backbones import window_attention_triton as module

    module.PROGRAMS = 4  # so that one program has several windows
    inputs, dy = arguments(*CASES[case])
    found, again = (results(module.triton_window_attention, inputs, dy) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True)), "two runs differ"
    assert [x.dtype for x in found] == [dy.dtype, dy.dtype, torch.float32]
    exact = results(plain_window_attention, wide(inputs), dy.double())
    counts = [
        operations(f, i, dy.to(i[0].dtype))
        for f, i in ((module.triton_window_attention, inputs), (plain_window_attention, wide(inputs)))
    ]
    assert counts[0] == counts[1] > 0, "a counter of operations sees others"
    return {n: ((x.double() - e).abs().max() / e.abs().max()).item() for n, x, e in zip(NAMES, found, exact)}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    return interpreted(__file__)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_agrees_with_the_plain_form(case, name, measured):
    dtype = CASES[case][-1]
    tolerance = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert measured[case][name] <= tolerance


@pytest.mark.parametrize(
    "numbers, capability",
    [("bf16", 90), *(pytest.param(n, c, marks=pytest.mark.slow) for n in ("fp32", "fp16") for c in (80, 90))],
)
def test_the_kernels_compile_for_devices_that_are_not_here(numbers, capability, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from models.backbones import window_attention_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"HEADS": 4, "WINDOW_H": 7, "WINDOW_W": 7, "C": 32, "BLOCK": 64, "MASKED": True}
    types = dict.fromkeys(("qkv", "y", "dy", "dqkv"), f"*{numbers}")
    types |= dict.fromkeys(("batch", "height", "width", "down", "right", "per_program"), "i32")
    for kernel in (module._forward_kernel, module._backward_kernel):
        assert compile_for(kernel, types, constants, capability, module.WARPS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({case: deviations(case) for case in CASES}))
    sys.exit()
