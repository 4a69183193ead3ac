"""The selective scan against the textbook loop in float64, its memory, and the choice of a kernel."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.backbones import selective_scan as module
from models.backbones.selective_scan import SCAN, graph_scan, plain_scan, selective_scan
from utils.torch_private import FakeTensorMode

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
SEQUENCES = ("u", "delta", "B", "C")


def textbook(u, delta, A, B, C, D, delta_bias) -> Tensor:
    """The recurrence as it is printed, one step after another."""
    delta = F.softplus(delta + delta_bias)
    h, y = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[1]):
        entering = (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        h = torch.exp(delta[:, t, :, None] * A) * h + entering
        y.append((h * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(y, 1)


def arguments(batch=2, length=37, width=24, states=16, dtype=torch.float32, shift=-3.0) -> list[Tensor]:
    """The seven arguments, leaves; the same numbers in every type."""
    g = torch.Generator().manual_seed(0)
    u, delta, B, C = (torch.randn(batch, length, n, generator=g) for n in (width, width, states, states))
    A = -torch.exp(0.5 * torch.randn(width, states, generator=g))
    D, bias = torch.randn(width, generator=g), 0.1 * torch.randn(width, generator=g)
    return [x.to(dtype).requires_grad_() for x in (u, delta + shift, A, B, C, D, bias)]


def gradient_of_y(y: Tensor) -> Tensor:
    """The same numbers in every type."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype)


def results(scan, inputs: list[Tensor]) -> list[Tensor]:
    """y and all gradients."""
    y = scan(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, gradient_of_y(y))]


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


def assert_near(found: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    """The largest deviation of each, over the largest value."""
    assert len(found) == len(exact)
    for name, x, e in zip(("y", *NAMES), found, exact, strict=False):
        assert x.shape == e.shape, name
        deviation = ((x.double() - e).abs().max() / e.double().abs().max().clamp(min=1e-30)).item()
        assert deviation <= tolerance, f"{name} deviates by {deviation:.1e}"


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_gradients_are_those_of_finite_differences(chunk):
    inputs = arguments(2, 7, 3, 4, torch.float64, shift=0.0)
    assert torch.autograd.gradcheck(lambda *x: plain_scan(*x, chunk), inputs)


@pytest.mark.parametrize("shape", [(2, 197, 48, 16), (1, 1, 3, 2), (3, 16, 5, 4), (2, 65, 7, 1)], ids=str)
@pytest.mark.parametrize("shift", [-6.0, -3.0, 1.0])
def test_y_and_all_gradients_are_the_textbooks(shape, shift):
    inputs = arguments(*shape, shift=shift)
    assert_near(results(selective_scan, inputs), results(textbook, double(inputs)), 2e-6)


@pytest.mark.parametrize("shape", [(2, 197, 48, 16), (1, 1, 3, 2), (3, 16, 5, 4), (2, 65, 7, 1)], ids=str)
@pytest.mark.parametrize("shift", [-6.0, -3.0, 1.0])
def test_the_scan_of_exported_graphs_is_the_textbooks(shape, shift):
    inputs = arguments(*shape, shift=shift)
    assert_near([graph_scan(*inputs).detach()], [textbook(*double(inputs)).detach()], 2e-6)


def test_the_scan_of_exported_graphs_bears_strong_and_weak_decay():
    """Neither overflow nor 0/0 where every state is forgotten at once, or none is."""
    for shift in (-40.0, 60.0):
        inputs = arguments(2, 300, 6, 4, shift=shift)
        assert_near([graph_scan(*inputs).detach()], [textbook(*double(inputs)).detach()], 2e-6)


@pytest.mark.parametrize("chunk", [1, 16, 64, 40])
def test_the_chunk_changes_no_bit_but_of_the_gradient_of_A(chunk):
    """That one is a sum over all steps, chunk by chunk."""
    inputs = arguments()
    found, expected = (results(lambda *x, c=c: plain_scan(*x, c), inputs) for c in (chunk, 7))
    assert [n for n, x, e in zip(("y", *NAMES), found, expected, strict=True) if not torch.equal(x, e)] in ([], ["A"])
    assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("shift", [50.0, -40.0])
def test_large_and_tiny_steps_stay_finite(shift):
    """δ = 50 forgets at once; δ = e⁻⁴⁰ takes in nothing."""
    inputs = arguments(shift=shift)
    found = results(selective_scan, inputs)
    assert all(x.isfinite().all() for x in found)
    assert_near(found, results(textbook, double(inputs)), 2e-6)


def test_without_a_bias():
    inputs = arguments()[:6]
    expected = results(lambda *x: textbook(*x, torch.zeros(24, dtype=torch.float64)), double(inputs))
    for x, e in zip(results(selective_scan, inputs), expected, strict=True):
        torch.testing.assert_close(x.double(), e, rtol=0, atol=2e-6 * e.abs().max().item())


def test_any_strides_will_do():
    """Slices and transposed tensors, as projections and convolutions leave them."""
    inputs = arguments()
    expected = results(selective_scan, inputs)
    strided = [torch.stack([x.detach()] * 2, -1)[..., 0].requires_grad_() for x in inputs]
    strided[0] = inputs[0].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert not any(x.is_contiguous() for x in strided)
    for x, e in zip(results(selective_scan, strided), expected):
        torch.testing.assert_close(x, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_other_shapes_are_refused_and_none_is_broadcast(name):
    """A kernel would read beyond the end of an argument that is one row only."""
    inputs = dict(zip(NAMES, arguments()))
    for wrong in (inputs[name][..., :1], inputs[name][:1], inputs[name].unsqueeze(0)):
        with pytest.raises(ValueError, match=r"where u is|^u is"):
            selective_scan(**(inputs | {name: wrong}))
    with pytest.raises(ValueError, match="L and d above 0"):
        selective_scan(*(x[:, :0] if n in SEQUENCES else x for n, x in inputs.items()))


# ---- 16 bits


@pytest.fixture
def bf16() -> list[Tensor]:
    """Sequences in bf16, weights in float32, as autocast leaves them."""
    named = zip(NAMES, arguments(length=197))
    return [x.detach().to(torch.bfloat16 if n in SEQUENCES else torch.float32).requires_grad_() for n, x in named]


def assert_rounded_only(found: list[Tensor], inputs: list[Tensor]) -> None:
    """The float32 result on the same rounded inputs, rounded once more at the end."""
    wide = [x.detach().float().requires_grad_() for x in inputs]
    assert [x.dtype for x in found] == [torch.bfloat16, *(x.dtype for x in inputs)]
    for x, e in zip(found, results(selective_scan, wide), strict=True):
        rounding = torch.finfo(torch.bfloat16).eps / 2 if x.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(x.float(), e, rtol=1.01 * rounding, atol=1e-5 * e.abs().max().item())


def test_bf16_rounds_what_goes_in_and_out_and_nothing_between(bf16):
    assert_rounded_only(results(selective_scan, bf16), bf16)


def test_autocast_changes_nothing_within(bf16):
    expected = results(selective_scan, bf16)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(selective_scan, bf16)
    assert all(torch.equal(x, e) for x, e in zip(found, expected, strict=True))
    wide = arguments()
    expected = results(selective_scan, wide)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(x, e) for x, e in zip(results(selective_scan, wide), expected, strict=True))


# ---- memory


def saved_bytes(inputs: list[Tensor]) -> int:
    """Bytes that the backward pass keeps."""
    sizes = []

    def count(x: Tensor) -> Tensor:
        sizes.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        selective_scan(*inputs)
    return sum(sizes)


def test_saved_bytes_are_linear_in_the_length():
    first, second, third = (saved_bytes(arguments(length=n)) for n in (64, 128, 192))
    assert third - second == second - first
    of_all_states = 4 * 2 * 192 * 24 * 16
    assert third - saved_inputs(192) == of_all_states // 16


def saved_inputs(length: int) -> int:
    return sum(x.nbytes for x in arguments(length=length))


@pytest.mark.parametrize("length", [1, 37, 64])
def test_fake_tensors_have_the_shapes_and_bytes_of_real_ones(length, monkeypatch):
    real = saved_bytes(arguments(length=length))
    monkeypatch.setattr(module, "_states", lambda *_: pytest.fail("a loop over nothing"))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in arguments(length=length)]
        assert saved_bytes(fake) == real
        assert selective_scan(*fake).shape == (2, length, 24)


def test_meta_tensors_have_shapes(monkeypatch):
    monkeypatch.setattr(module, "_states", lambda *_: pytest.fail("a loop over nothing"))
    y = selective_scan(*(x.to("meta") for x in arguments(length=100_000)))
    assert (y.shape, y.device.type) == ((2, 100_000, 24), "meta")


def test_recomputation_gives_the_same_bits():
    inputs = arguments()
    recomputed = results(lambda *x: checkpoint(selective_scan, *x, use_reentrant=False), inputs)
    assert all(torch.equal(x, e) for x, e in zip(recomputed, results(selective_scan, inputs), strict=True))


# ---- the choice of a kernel, with kernels made up for the CPU


def wrong_gradient(*inputs: Tensor) -> Tensor:
    """The right y; the gradient of D is lost."""
    *rest, D, bias = inputs
    return plain_scan(*rest, D.detach() + 0 * D, bias)


def not_a_number(*inputs: Tensor) -> Tensor:
    return plain_scan(*inputs) * torch.nan


def does_not_compile(*_: Tensor) -> Tensor:
    raise RuntimeError("no such instruction")


def not_installed():
    raise ImportError("no such module")


class Counted:
    """A kernel that agrees, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        return plain_scan(*inputs)


@pytest.fixture
def kernels(monkeypatch):
    """Puts kernels into the table for the CPU: kernels(name=loader, …)."""
    monkeypatch.setattr(SCAN, "chosen", {})
    return lambda **table: monkeypatch.setattr(SCAN, "kernels", {"cpu": tuple(table.items())})


def test_the_first_kernel_that_agrees_is_used_and_checked_once(kernels, caplog):
    first, second = Counted(), Counted()
    kernels(absent=not_installed, first=lambda: first, second=lambda: second)
    inputs = arguments()
    for _ in range(3):
        selective_scan(*inputs)
    assert (first.calls, second.calls) == (4, 0)
    assert not caplog.records


@pytest.mark.parametrize(
    "kernel, words",
    [
        (wrong_gradient, "deviates by 1.0e"),
        (not_a_number, "deviates by inf"),
        (does_not_compile, "fails (RuntimeError: no such instruction)"),
        (lambda *x: plain_scan(*x)[:, :1], "fails ("),
        (lambda *x: plain_scan(*x) * 1.01, "deviates by 1.0e-02, where 1.0e-03 is allowed"),
    ],
)
def test_a_kernel_that_is_wrong_is_set_aside_with_a_warning(kernel, words, kernels, caplog):
    kernels(wrong=lambda: kernel)
    inputs = arguments()
    with caplog.at_level(logging.WARNING):
        results(selective_scan, inputs)
        found = results(selective_scan, inputs)
    assert all(torch.equal(x, e) for x, e in zip(found, results(plain_scan, inputs), strict=True))
    (record,) = caplog.records
    assert words in record.getMessage()
    assert "wrong" in record.getMessage() and "the plain scan is used instead" in record.getMessage()


def test_the_next_kernel_takes_the_place_of_a_wrong_one(kernels, caplog):
    right = Counted()
    kernels(wrong=lambda: not_a_number, right=lambda: right)
    selective_scan(*arguments())
    assert right.calls == 2
    assert "right is used instead" in caplog.text


def test_every_type_is_checked_and_float64_stays_plain(kernels, bf16):
    kernel = Counted()
    kernels(kernel=lambda: kernel)
    selective_scan(*arguments(dtype=torch.float64))
    assert kernel.calls == 0
    selective_scan(*arguments())
    selective_scan(*bf16)
    assert kernel.calls == 4


def test_the_check_disturbs_nothing_of_the_caller(kernels):
    """Random states, gradients, what hooks count, autocast and grad mode."""
    inputs = arguments()
    y = selective_scan(*inputs)
    saved = saved_bytes(inputs)
    kernel = Counted()
    kernels(kernel=lambda: kernel)
    before = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(*inputs), y)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(x.grad is None for x in inputs)
    SCAN.chosen.clear()
    assert saved_bytes(inputs) == saved
    SCAN.chosen.clear()
    recomputed = results(lambda *x: checkpoint(selective_scan, *x, use_reentrant=False), inputs)
    assert all(torch.equal(x, e) for x, e in zip(recomputed, results(plain_scan, inputs), strict=True))


def test_an_unchecked_kernel_is_not_compiled_in(kernels, monkeypatch):
    kernel = Counted()
    kernels(kernel=lambda: kernel)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        selective_scan(*arguments())
        assert kernel.calls == 0
    selective_scan(*arguments())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    selective_scan(*arguments())
    assert kernel.calls == 3


def test_shapes_alone_need_no_kernel(kernels):
    kernels(kernel=lambda: pytest.fail("a kernel for nothing"))
    with FakeTensorMode() as mode:
        selective_scan(*(mode.from_tensor(x) for x in arguments()))


def test_mambas_function_is_given_its_own_layout(kernels, monkeypatch, caplog):
    """A stand-in for mamba_ssm with its documented arguments: sequences [batch, d or N, L]."""

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert z is None and delta_softplus
        assert len({x.dtype for x in (u, delta, B, C)}) == 1 and A.dtype == D.dtype == torch.float32
        return plain_scan(*(x.mT for x in (u, delta)), A, B.mT, C.mT, D, delta_bias).mT

    interface = type("Interface", (), {"selective_scan_fn": staticmethod(selective_scan_fn)})
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(__import__("sys").modules, name, interface)
    kernels(mamba_ssm=module._load_mamba)
    inputs = arguments()
    torch.testing.assert_close(selective_scan(*inputs), plain_scan(*inputs))
    inputs[1] = inputs[1].detach().bfloat16()
    selective_scan(*inputs)
    assert plain_scan not in SCAN.chosen.values() and not caplog.records
