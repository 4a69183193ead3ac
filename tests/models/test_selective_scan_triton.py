"""The Triton kernels against the plain scan, run by Triton's interpreter, which has to be asked for before import."""

import json

import pytest
import torch

from models.backbones.selective_scan import plain_scan
from tests.models.triton_interpreter import compile_for, interpreted

NAMES = ("y", "u", "delta", "A", "B", "C", "D", "delta_bias")
# Batch, length, channels, states; then the type of the four sequences. 33 channels and more are two blocks of them.
CASES = {
    "several chunks": (1, 37, 5, 4, torch.float32),
    "one step": (1, 1, 3, 2, torch.float32),
    "two blocks of channels": (2, 3, 33, 3, torch.float32),
    "whole chunks": (1, 32, 2, 16, torch.float32),
    "bf16": (2, 18, 5, 4, torch.bfloat16),
    "float16": (1, 18, 5, 4, torch.float16),
}
# Types of the sequences, and devices; each takes seconds.
COMPILED = [("fp32", 80), ("bf16", 90)]
COMPILED += [
    pytest.param(*pair, marks=pytest.mark.slow) for pair in (("fp32", 90), ("bf16", 80), ("fp16", 80), ("fp16", 90))
]


def arguments(batch, length, width, states, dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The seven arguments and dy; the steps reach from e⁻⁹ to 5."""
    g = torch.Generator().manual_seed(0)
    u, delta, B, C, dy = (torch.randn(batch, length, n, generator=g) for n in (width, width, states, states, width))
    A = -torch.rand(width, states, generator=g) * 3
    D, bias = torch.randn(width, generator=g), torch.randn(width, generator=g) * 0.1
    u, delta, B, C = (x.to(dtype) for x in (u, delta * 3 - 3, B, C))
    return [x.requires_grad_() for x in (u, delta, A, B, C, D, bias)], dy.to(dtype)


def results(scan, inputs, dy) -> list[torch.Tensor]:
    y = scan(*inputs)
    return [y, *torch.autograd.grad(y, inputs, dy)]


def deviations(case: str) -> dict[str, float]:
    """Largest deviation from the plain scan in float64 over its largest value: y and the gradients."""
    from models.backbones.selective_scan_triton import triton_scan

    inputs, dy = arguments(*CASES[case])
    found, again = results(triton_scan, inputs, dy), results(triton_scan, inputs, dy)
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True)), "two runs differ"
    assert [x.dtype for x in found] == [dy.dtype, *(x.dtype for x in inputs)]
    exact = results(plain_scan, [x.detach().double().requires_grad_() for x in inputs], dy.double())
    pairs = zip(NAMES, found, exact)  # after one step the gradient of A is zero
    return {n: ((x.double() - e).abs().max() / e.abs().max().clamp(min=1e-30)).item() for n, x, e in pairs}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    return interpreted(__file__)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_agrees_with_the_plain_scan(case, name, measured):
    dtype = CASES[case][-1]
    tolerance = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert measured[case][name] <= tolerance


@pytest.mark.parametrize("sequences, capability", COMPILED)
def test_the_kernels_compile_for_devices_that_are_not_here(sequences, capability, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from models.backbones import selective_scan_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"N": 16, "CHUNK": 16, "BLOCK_D": module.BLOCK, "BLOCK_N": 16}
    types = dict.fromkeys(("u", "delta", "B", "C", "y", "dy", "du", "ddelta"), f"*{sequences}")
    types |= dict.fromkeys(("batch", "length", "width"), "i32")
    for kernel in (module._forward_kernel, module._backward_kernel):
        assert compile_for(kernel, types, constants, capability, module.WARPS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({case: deviations(case) for case in CASES}))
