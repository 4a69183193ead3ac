"""The selective scan of Mamba: a linear recurrence along a sequence, with coefficients that depend on the input.

Source: Gu & Dao 2023, arXiv:2312.00752. On the CPU in plain PyTorch; on CUDA by a kernel that has to agree with it; in
exported graphs without a loop over time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from utils.kernels import Kernel, KernelChoice, is_exported
from utils.torch_private import FakeTensor

# Steps between two states that are kept for the backward pass; those between are recomputed.
CHUNK = 16


def _load_triton() -> Kernel:
    from models.backbones.selective_scan_triton import triton_scan

    return triton_scan


def _load_mamba() -> Kernel:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(u, delta, A, B, C, D, delta_bias):
        """Mamba's function wants the sequence last, and one type for what changes along it."""
        same = u.dtype if len({x.dtype for x in (u, delta, B, C)}) == 1 else torch.float32
        us, deltas, Bs, Cs = (x.to(same).transpose(1, 2).contiguous() for x in (u, delta, B, C))
        options = {"delta_bias": delta_bias.float(), "delta_softplus": True}
        y = selective_scan_fn(us, deltas, A.float(), Bs, Cs, D.float(), **options)
        return y.transpose(1, 2).to(u.dtype)

    return scan


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor | None = None
) -> Tensor:
    """h_t = exp(δ_t A) h_{t-1} + δ_t u_t B_t, h_0 = 0; y_t = ⟨C_t, h_t⟩ + D u_t, with δ = softplus(delta + delta_bias).

    u, delta [batch, L, d], A [d, N], B, C [batch, L, N], D, delta_bias [d] → y [batch, L, d] in the type of u.

    States are float32 for all types of the arguments, float64 where u is. Time and memory are linear in L; of the
    states only every 16th is kept. Mamba's own function has the sequence last, which costs copies here.
    Raises ValueError for other shapes: nothing is broadcast, and kernels read memory by these shapes.
    """
    if delta_bias is None:
        delta_bias = torch.zeros_like(D)
    _check_shapes(u, delta, A, B, C, D, delta_bias)
    if is_exported():
        scan = graph_scan
    else:
        scan = plain_scan if _only_shapes(u) else SCAN.of(u.device, u.dtype)
    return scan(u, delta, A, B, C, D, delta_bias)


def _check_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> None:
    if u.ndim != 3 or A.ndim != 2 or 0 in u.shape[1:]:
        raise ValueError(
            f"u is [batch, L, d] with L and d above 0 and A [d, N], not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    (batch, length, width), states = u.shape, A.shape[1]
    wanted = {
        "delta": (delta, (batch, length, width)),
        "A": (A, (width, states)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (width,)),
        "delta_bias": (bias, (width,)),
    }
    for name, (x, shape) in wanted.items():
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} has to be {shape} where u is {tuple(u.shape)}, not {tuple(x.shape)}")


def plain_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, chunk: int = CHUNK
) -> Tensor:
    """`selective_scan` in plain PyTorch, on any device; y does not depend on `chunk`, not in the last bit."""
    return _PlainScan.apply(u, delta, A, B, C, D, delta_bias, chunk)


class _PlainScan(torch.autograd.Function):
    """Loops over time with whole [batch, d, N] states. Everything that can be is computed for a chunk at once."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, chunk):
        with _without_autocast(u):
            raw = (u, delta, A, B, C, D, delta_bias)
            uw, dw, Aw, Bw, Cw, Dw = _wide(*raw)
            h = uw.new_zeros(uw.shape[1], *Aw.shape)
            y, spans = torch.empty_like(uw), _spans(len(uw), chunk)
            kept = h.new_empty(len(spans), *h.shape)
            for number, span in enumerate([] if _only_shapes(u) else spans):
                kept[number] = h
                states = _states(uw[span], dw[span], Aw, Bw[span], h)[1]
                h = states[-1].clone()
                y[span] = torch.matmul(states, Cw[span].unsqueeze(-1)).squeeze(-1)
            y.addcmul_(uw, Dw)
        ctx.save_for_backward(*raw, kept)
        ctx.chunk = chunk
        return y.transpose(0, 1).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *raw, kept = ctx.saved_tensors
        with _without_autocast(dy):
            gradients = _plain_gradients(raw, kept, ctx.chunk, dy)
        return *(g.to(x.dtype) for g, x in zip(gradients, raw)), None


def graph_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """`selective_scan` in ⌈log2 L⌉ plain operations on whole sequences, for graphs that are exported.

    (a, h) pairs of neighbours are joined at distances 1, 2, 4, …: h_t += a_t h_{t-s}, a_t *= a_{t-s}. As every a is in
    (0, 1), products only shrink and nothing is divided. All states are in memory at once: [L, batch, d, N].
    Source: Hillis & Steele, CACM 1986.
    """
    uw, dw, Aw, Bw, Cw, Dw = _wide(u, delta, A, B, C, D, delta_bias)
    a, h = (dw.unsqueeze(-1) * Aw).exp(), (dw * uw).unsqueeze(-1) * Bw.unsqueeze(2)
    step = 1
    while step < u.shape[1]:
        h = torch.cat([h[:step], h[step:] + a[step:] * h[:-step]])
        a = torch.cat([a[:step], a[step:] * a[:-step]])
        step *= 2
    y = torch.matmul(h, Cw.unsqueeze(-1)).squeeze(-1) + uw * Dw
    return y.transpose(0, 1).to(u.dtype)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _spans(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _only_shapes(x: Tensor) -> bool:
    """Whether x has no values, so that a loop over time would compute nothing; not so while a graph is traced."""
    return (x.is_meta or isinstance(x, FakeTensor)) and not torch.compiler.is_compiling()


def _wide(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """u, δ, A, B, C, D in the type of the states, the sequence first."""
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, B, C = (x.to(wide).transpose(0, 1) for x in (u, delta, B, C))
    return u, F.softplus(delta + bias.to(wide)), A.to(wide), B, C, D.to(wide)


def _states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """a_t = exp(δ_t A) and h_t for every step of a chunk: [T, batch, d, N] each; h is the state before it."""
    a = (delta.unsqueeze(-1) * A).exp_()
    states = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    for a_t, h_t in zip(a.unbind(0), states.unbind(0)):
        h = h_t.addcmul_(a_t, h)
    return a, states


def _plain_gradients(raw: list[Tensor], kept: Tensor, chunk: int, dy: Tensor) -> tuple[Tensor, ...]:
    """Gradients of all seven arguments. G_t is that of h_t: G_t = C_t dy_t + a_{t+1} G_{t+1}."""
    u, delta, A, B, C, D = _wide(*raw)
    dy = dy.to(u.dtype).transpose(0, 1)
    du, ddelta, dB, dC = torch.empty_like(u), torch.empty_like(u), torch.empty_like(B), torch.empty_like(C)
    dA = torch.zeros_like(A)
    a_next, G_next = torch.zeros_like(kept[0]), torch.zeros_like(kept[0])
    for number, span in reversed(list(enumerate(_spans(len(u), chunk)))):
        before = kept[number]
        a, states = _states(u[span], delta[span], A, B[span], before)
        G = dy[span].unsqueeze(-1) * C[span].unsqueeze(2)
        for G_t, a_t in zip(reversed(G.unbind(0)), reversed(a.unbind(0))):
            G_next, a_next = G_t.addcmul_(a_next, G_next), a_t
        a_next, G_next = a_next.clone(), G_next.clone()
        dC[span] = torch.matmul(dy[span].unsqueeze(2), states).squeeze(2)
        through_input = torch.matmul(G, B[span].unsqueeze(-1)).squeeze(-1)  # Σ_n G B
        dB[span] = torch.matmul((delta[span] * u[span]).unsqueeze(2), G).squeeze(2)
        du[span] = delta[span] * through_input
        # q_t = G_t a_t h_{t-1}, the states moved on by one step.
        q = G.mul_(a)
        q[0] *= before
        q[1:] *= states[:-1]
        ddelta[span] = (q * A).sum(-1).addcmul_(u[span], through_input)
        dA += q.mul_(delta[span].unsqueeze(-1)).sum((0, 1))
    du.addcmul_(dy, D)
    dD = (dy * u).sum((0, 1))
    # δ = softplus(raw): its derivative is sigmoid(raw) = 1 - exp(-δ).
    ddelta *= -torch.expm1(-delta)
    back = [x.transpose(0, 1) for x in (du, ddelta, dB, dC)]
    return back[0], back[1], dA, back[2], back[3], dD, ddelta.sum((0, 1))


def _example(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor | None], Tensor]:
    """Arguments like those of a trained network, and dy; random states are left alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, 37, 40), "delta": (2, 37, 40), "B": (2, 37, 16), "C": (2, 37, 16), "dy": (2, 37, 40)}
    like_u = {name: torch.randn(shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}
    A, D, bias = (torch.randn(shape, generator=generator).to(device) for shape in ((40, 16), (40,), (40,)))
    arguments = [like_u["u"], like_u["delta"], -A.exp(), like_u["B"], like_u["C"], D, bias - 2]
    return [x.requires_grad_() for x in arguments], like_u["dy"]


SCAN = KernelChoice(
    "selective scan",
    "the plain scan",
    plain_scan,
    {"cuda": (("the Triton kernel", _load_triton), ("mamba_ssm", _load_mamba))},
    _example,
)
