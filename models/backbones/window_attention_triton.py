"""Attention in windows of a map as two Triton kernels: a window's scores stay in registers, forwards and backwards.

Same mathematics and layouts as `swin_attention.plain_window_attention`. With P = softmax(S) and dP = dy vᵀ the gradient
of the scores is dS = P (dP - Σ P dP), row by row; both are recomputed from q, k and v, which alone are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# A program takes so many windows of a head one after another that about this many programs are started.
PROGRAMS, WARPS = 2048, 4


def triton_window_attention(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """`plain_window_attention` by Triton kernels: qkv [B, H, W, 3, heads, c] → [B, H, W, heads, c].

    Scores and softmax are float32, bias and mask are. Windows of at most 64 places, c a power of two from 16 on. No
    atomics: the same arguments give the same bits.
    """
    return _window_attention(qkv, bias, mask, list(window), list(shift))


@torch.library.custom_op(
    "hybridmednet::window_attention",
    mutates_args=(),
    schema="(Tensor qkv, Tensor bias, Tensor? mask, int[] window, int[] shift) -> Tensor",
)
def _window_attention(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    y = qkv.new_empty(qkv.shape[:3] + qkv.shape[4:])
    per_program, programs = _shares(qkv, window)
    with torch.cuda.device_of(qkv):
        _forward_kernel[(programs, qkv.shape[4])](
            qkv.contiguous(), *_biases(bias, mask), y, *_sizes(qkv, mask, window, shift, per_program), num_warps=WARPS
        )
    return y


@_window_attention.register_fake
def _(qkv, bias, mask, window, shift):
    return qkv.new_empty(qkv.shape[:3] + qkv.shape[4:])


@torch.library.custom_op(
    "hybridmednet::window_attention_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor qkv, Tensor bias, Tensor? mask, int[] window, int[] shift) -> (Tensor, Tensor)",
)
def _backward(
    dy: Tensor, qkv: Tensor, bias: Tensor, mask: Tensor | None, window: Sequence[int], shift: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gradients of qkv, and of the bias: a partial sum a program."""
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    per_program, programs = _shares(qkv, window)
    dbias = torch.empty((programs, *bias.shape), dtype=torch.float32, device=qkv.device)
    with torch.cuda.device_of(qkv):
        _backward_kernel[(programs, qkv.shape[4])](
            qkv.contiguous(), *_biases(bias, mask), dy.contiguous(), dqkv, dbias,
            *_sizes(qkv, mask, window, shift, per_program), num_warps=WARPS,
        )  # fmt: skip
    return dqkv, dbias.sum(0).to(bias.dtype)


@_backward.register_fake
def _(dy, qkv, bias, mask, window, shift):
    return torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device), torch.empty_like(bias)


def _keep(ctx, inputs, output) -> None:
    qkv, bias, mask, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(qkv, bias, mask)


def _gradients(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(dy, *ctx.saved_tensors, ctx.window, ctx.shift), None, None, None


_window_attention.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.hybridmednet.window_attention)
def _operations(qkv, bias, mask, window, shift, **_) -> int:
    """Of the matrix products q kᵀ and P v."""
    batch, height, width, _, heads, c = qkv
    return 2 * 2 * batch * height * width * heads * window[0] * window[1] * c


@register_flop_formula(torch.ops.hybridmednet.window_attention_backward)
def _operations_backward(dy, *arguments, **_) -> int:
    """Two products a product; making P again does not count."""
    return 2 * _operations(*arguments)


def _shares(qkv: Tensor, window: Sequence[int]) -> tuple[int, int]:
    """Windows of one program, and programs of one head."""
    windows = qkv.shape[0] * (qkv.shape[1] // window[0]) * (qkv.shape[2] // window[1])
    per_program = max(1, windows * qkv.shape[4] // PROGRAMS)
    return per_program, triton.cdiv(windows, per_program)


def _biases(bias: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    bias = bias.float().contiguous()
    return bias, bias if mask is None else mask.float().contiguous()


def _sizes(qkv: Tensor, mask: Tensor | None, window: Sequence[int], shift: Sequence[int], per_program: int) -> tuple:
    """batch, height, width, shift, windows of a program; heads and the rest are constants."""
    batch, height, width, _, heads, c = qkv.shape
    block = max(16, triton.next_power_of_2(window[0] * window[1]))
    return batch, height, width, *shift, per_program, heads, *window, c, block, mask is not None


@triton.jit
def _positions(number, height, width, down, right, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, t):
    """Which window of its map it is, and where its places lie in the batch's maps, counted row by row."""
    across = width // WINDOW_W
    windows = height // WINDOW_H * across
    window = number % windows
    y = (window // across * WINDOW_H + t // WINDOW_W + down) % height
    x = (window % across * WINDOW_W + t % WINDOW_W + right) % width
    return window, ((number // windows).to(tl.int64) * height + y) * width + x


@triton.jit
def _triple(qkv, cell, there, STRIDE: tl.constexpr):
    """q, k and v of a window and head, zero beyond its places."""
    q = tl.load(qkv + cell, mask=there, other=0.0)
    k = tl.load(qkv + cell + STRIDE, mask=there, other=0.0)
    v = tl.load(qkv + cell + 2 * STRIDE, mask=there, other=0.0)
    return q, k, v


@triton.jit
def _probabilities(q, k, bias, mask, window, cells, inside, t, scale, N: tl.constexpr, MASKED: tl.constexpr):
    """softmax(q kᵀ scale + bias + mask) of a window, columns beyond its places zero."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias
    if MASKED:
        scores += tl.load(mask + window * N * N + cells, mask=inside, other=0.0)
    scores = tl.where(t[None, :] < N, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward_kernel(
    qkv, bias, mask, y, batch, height, width, down, right, per_program, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """y of some windows of one head."""
    N: tl.constexpr = WINDOW_H * WINDOW_W
    head = tl.program_id(1)
    t, c = tl.arange(0, BLOCK), tl.arange(0, C)
    cells, inside = t[:, None] * N + t[None, :], (t[:, None] < N) & (t[None, :] < N)
    there = t[:, None] < N
    offsets = tl.load(bias + head * N * N + cells, mask=inside, other=0.0)
    total = batch * (height // WINDOW_H) * (width // WINDOW_W)
    first = tl.program_id(0) * per_program
    for number in range(first, tl.minimum(first + per_program, total)):
        window, position = _positions(number, height, width, down, right, WINDOW_H, WINDOW_W, t)
        cell = (position * (3 * HEADS) + head)[:, None] * C + c[None, :]
        q, k, v = _triple(qkv, cell, there, HEADS * C)
        P = _probabilities(q, k, offsets, mask, window, cells, inside, t, 1.0 / C**0.5, N, MASKED)
        result = tl.dot(P.to(v.dtype), v, input_precision="ieee")
        tl.store(y + (position * HEADS + head)[:, None] * C + c[None, :], result.to(y.dtype.element_ty), mask=there)


@triton.jit
def _backward_kernel(
    qkv, bias, mask, dy, dqkv, dbias, batch, height, width, down, right, per_program, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v of some windows of one head, and the sum of theirs of the bias."""
    N: tl.constexpr = WINDOW_H * WINDOW_W
    head = tl.program_id(1)
    scale = 1.0 / C**0.5
    t, c = tl.arange(0, BLOCK), tl.arange(0, C)
    cells, inside = t[:, None] * N + t[None, :], (t[:, None] < N) & (t[None, :] < N)
    there = t[:, None] < N
    offsets = tl.load(bias + head * N * N + cells, mask=inside, other=0.0)
    dS_sum = tl.zeros((BLOCK, BLOCK), tl.float32)
    total = batch * (height // WINDOW_H) * (width // WINDOW_W)
    first = tl.program_id(0) * per_program
    for number in range(first, tl.minimum(first + per_program, total)):
        window, position = _positions(number, height, width, down, right, WINDOW_H, WINDOW_W, t)
        cell = (position * (3 * HEADS) + head)[:, None] * C + c[None, :]
        q, k, v = _triple(qkv, cell, there, HEADS * C)
        g = tl.load(dy + (position * HEADS + head)[:, None] * C + c[None, :], mask=there, other=0.0)
        P = _probabilities(q, k, offsets, mask, window, cells, inside, t, scale, N, MASKED)
        dP = tl.dot(g, tl.trans(v), input_precision="ieee")
        dS = P * (dP - tl.sum(P * dP, 1)[:, None])
        dS_sum += dS
        dv = tl.dot(tl.trans(P.to(g.dtype)), g, input_precision="ieee")
        low = (dS * scale).to(q.dtype)
        dq = tl.dot(low, k, input_precision="ieee")
        dk = tl.dot(tl.trans(low), q, input_precision="ieee")
        tl.store(dqkv + cell, dq.to(dqkv.dtype.element_ty), mask=there)
        tl.store(dqkv + cell + HEADS * C, dk.to(dqkv.dtype.element_ty), mask=there)
        tl.store(dqkv + cell + 2 * HEADS * C, dv.to(dqkv.dtype.element_ty), mask=there)
    tl.store(dbias + (tl.program_id(0) * HEADS + head) * N * N + cells, dS_sum, mask=inside)
