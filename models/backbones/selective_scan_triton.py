"""The selective scan as two Triton kernels: states stay in registers, nothing of size [batch, L, d, N] is written.

Same mathematics, layouts and saved tensors as `selective_scan.plain_scan`, whose gradients are derived there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.backbones.selective_scan import CHUNK, plain_scan

# Channels of one program. With one warp every sum stays within it.
BLOCK, WARPS = 32, 1


def triton_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, chunk: int = CHUNK
) -> Tensor:
    """`selective_scan` by Triton kernels: u, delta [batch, L, d], A [d, N], B, C [batch, L, N], D, delta_bias [d] → y.

    States are float32; float64 arguments go to the plain scan. No atomics: the same arguments give the same bits.
    """
    if u.dtype == torch.float64:
        return plain_scan(u, delta, A, B, C, D, delta_bias, chunk)
    return _scan(u, delta, A, B, C, D, delta_bias, chunk)[0]


# An operator of torch's own kind: one node to compilers, fake tensors and counters of operations.
@torch.library.custom_op(
    "hybridmednet::selective_scan",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor bias, int chunk) "
    "-> (Tensor, Tensor)",
)
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """y and the kept states. One program a sequence and block of channels walks along time."""
    y, kept = _results(u, A, chunk)
    with torch.cuda.device_of(u):
        _forward_kernel[_grid(u)](*_rows((u, delta, A, B, C, D, bias)), y, kept, *_sizes(u, A, chunk), num_warps=WARPS)
    return y, kept


@_scan.register_fake
def _(u, delta, A, B, C, D, bias, chunk):
    return _results(u, A, chunk)


def _results(u: Tensor, A: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    return y, _floats(u, -(-u.shape[1] // chunk), len(u), *A.shape)


@torch.library.custom_op(
    "hybridmednet::selective_scan_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor bias, Tensor kept, "
    "int chunk) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, kept: Tensor,
    chunk: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of all seven arguments, chunk by chunk.

    Sums over channels and over the batch are of one partial sum a program.
    """
    raw = (u, delta, A, B, C, D, bias)
    batch, length, width = u.shape
    scratch = _floats(u, batch, chunk, *A.shape)
    du, ddelta = (torch.empty(u.shape, dtype=x.dtype, device=u.device) for x in (u, delta))
    dA, dD, dbias = _floats(u, batch, *A.shape), _floats(u, batch, width), _floats(u, batch, width)
    dB, dC = (_floats(u, _grid(u)[1], batch, length, A.shape[1]) for _ in range(2))
    with torch.cuda.device_of(u):
        _backward_kernel[_grid(u)](
            *_rows((*raw, dy)), kept, scratch, du, ddelta, dA, dB, dC, dD, dbias, *_sizes(u, A, chunk), num_warps=WARPS
        )
    gradients = du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dbias.sum(0)
    return tuple(g.to(x.dtype) for g, x in zip(gradients, raw))


@_scan_backward.register_fake
def _(dy, *arguments):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in arguments[:7])


def _keep(ctx, inputs, output) -> None:
    *raw, ctx.chunk = inputs
    ctx.save_for_backward(*raw, output[1])


def _gradients(ctx, dy: Tensor, _) -> tuple[Tensor | None, ...]:
    return *_scan_backward(dy, *ctx.saved_tensors, ctx.chunk), None


_scan.register_autograd(_gradients, setup_context=_keep)


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _rows(tensors) -> list[Tensor]:
    """As the kernels read them: without gaps, the last dimension innermost."""
    return [x.contiguous() for x in tensors]


def _grid(u: Tensor) -> tuple[int, int]:
    return len(u), triton.cdiv(u.shape[2], BLOCK)


def _sizes(u: Tensor, A: Tensor, chunk: int) -> tuple[int, ...]:
    """batch, length, width, then the constants N, CHUNK, BLOCK_D, BLOCK_N."""
    return *u.shape, A.shape[1], chunk, BLOCK, triton.next_power_of_2(A.shape[1])


@triton.jit
def _softplus(x):
    """ln(1 + eˣ) to the last bits, also where eˣ is far below 1: ln(1 + e) = 2 artanh(e / (2 + e)), its series."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    square = s * s  # at most 1/9
    series = 1.0 / 17
    for k in tl.static_range(8):
        series = series * square + 1.0 / (15 - 2 * k)
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def _row(pointer, number, width, columns):
    """Some columns of a row, zero beyond its end, float32."""
    return tl.load(pointer + number * width + columns, mask=columns < width, other=0.0).to(tl.float32)


@triton.jit
def _step(u, delta, bias, A, B, row, width, channel, n, h, N: tl.constexpr):
    """u_t, raw δ_t, δ_t, a_t, B_t and h_t from the state before."""
    u_t = _row(u, row, width, channel)
    raw_t = _row(delta, row, width, channel) + bias
    B_t = _row(B, row, N, n)
    delta_t = _softplus(raw_t)
    a_t = tl.exp(delta_t[:, None] * A)
    return u_t, raw_t, delta_t, a_t, B_t, a_t * h + (delta_t * u_t)[:, None] * B_t[None, :]


@triton.jit
def _forward_kernel(
    u, delta, A, B, C, D, bias, y, kept,
    batch, length, width, N: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y, and the state before every CHUNK-th step."""
    number = tl.program_id(0).to(tl.int64)
    channel, n = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    cells, inside = channel[:, None] * N + n[None, :], (channel[:, None] < width) & (n[None, :] < N)
    Aw = tl.load(A + cells, mask=inside, other=0.0).to(tl.float32)
    Dw, bw = _row(D, 0, width, channel), _row(bias, 0, width, channel)
    h = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
    for t in range(length):
        if t % CHUNK == 0:
            tl.store(kept + (t // CHUNK * batch + number) * width * N + cells, h, mask=inside)
        row = number * length + t
        u_t, _, _, _, _, h = _step(u, delta, bw, Aw, B, row, width, channel, n, h, N)
        y_t = tl.sum(h * _row(C, row, N, n)[None, :], 1) + Dw * u_t
        tl.store(y + row * width + channel, y_t, mask=channel < width)


@triton.jit
def _backward_kernel(
    u, delta, A, B, C, D, bias, dy, kept, scratch, du, ddelta, dA, dB, dC, dD, dbias,
    batch, length, width, N: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients; dB, dC of this block of channels and dA, dD, dbias of this sequence alone."""
    number, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel, n = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    cells, inside = channel[:, None] * N + n[None, :], (channel[:, None] < width) & (n[None, :] < N)
    Aw = tl.load(A + cells, mask=inside, other=0.0).to(tl.float32)
    Dw, bw = _row(D, 0, width, channel), _row(bias, 0, width, channel)
    through = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)  # a_{t+1} G_{t+1}
    dAw = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
    dDw, dbw = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for reverse in range(chunks):
        start = (chunks - 1 - reverse) * CHUNK
        steps = tl.minimum(CHUNK, length - start)
        h = tl.load(kept + ((chunks - 1 - reverse) * batch + number) * width * N + cells, mask=inside, other=0.0)
        for i in range(steps):  # the states before every step of the chunk
            tl.store(scratch + (number * CHUNK + i) * width * N + cells, h, mask=inside)
            _, _, _, _, _, h = _step(u, delta, bw, Aw, B, number * length + start + i, width, channel, n, h, N)
        tl.debug_barrier()
        for j in range(steps):
            i = steps - 1 - j
            row = number * length + start + i
            before = tl.load(scratch + (number * CHUNK + i) * width * N + cells, mask=inside, other=0.0)
            u_t, raw_t, delta_t, a_t, B_t, h = _step(u, delta, bw, Aw, B, row, width, channel, n, before, N)
            dy_t = _row(dy, row, width, channel)
            G = through + _row(C, row, N, n)[None, :] * dy_t[:, None]
            q = G * a_t * before
            through = G * a_t
            partial = (block * batch * length + row) * N + n
            tl.store(dC + partial, tl.sum(dy_t[:, None] * h, 0), mask=n < N)
            tl.store(dB + partial, tl.sum((delta_t * u_t)[:, None] * G, 0), mask=n < N)
            from_input = tl.sum(G * B_t[None, :], 1)
            draw_t = (tl.sum(q * Aw, 1) + u_t * from_input) * tl.sigmoid(raw_t)
            tl.store(du + row * width + channel, delta_t * from_input + Dw * dy_t, mask=channel < width)
            tl.store(ddelta + row * width + channel, draw_t, mask=channel < width)
            dAw += q * delta_t[:, None]
            dDw += dy_t * u_t
            dbw += draw_t
        tl.debug_barrier()
    tl.store(dA + number * width * N + cells, dAw, mask=inside)
    tl.store(dD + number * width + channel, dDw, mask=channel < width)
    tl.store(dbias + number * width + channel, dbw, mask=channel < width)
