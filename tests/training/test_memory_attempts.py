"""Out of memory: what counts as it, how batches are cut, and that a failed attempt holds nothing."""

import gc
import itertools
import weakref

import pytest
import torch

from tests.training.toys import (
    TensorLoader,
    by_cuda,
    by_the_cpu,
    random_data,
)
from utils.out_of_memory import catch_oom, is_out_of_memory, largest_part


@pytest.mark.parametrize(("size", "parts"), list(itertools.product([1, 2, 5, 8, 9], [1, 2, 4, 16])))
def test_a_cut_batch_is_the_batch(size, parts):
    (_, batch) = next(TensorLoader(*random_data(size), size).epoch(0))
    pieces = batch.split(parts)
    assert len(pieces) == min(size, parts) and max(map(len, pieces)) == largest_part(size, parts)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    for of in (lambda b: b.inputs.image, lambda b: b.targets.labels, lambda b: b.targets.mask, lambda b: b.index):
        assert torch.cat([of(piece) for piece in pieces]).equal(of(batch))


@pytest.mark.parametrize("refuse", [by_cuda, by_the_cpu])
def test_nothing_is_held_after_a_failed_attempt(refuse):
    """Not even until the next collection of cycles: the memory is wanted at once."""
    held = []

    def step() -> None:
        hidden = torch.zeros(3, requires_grad=True) * 2
        held.append(weakref.ref(hidden))
        refuse()

    gc.disable()
    try:
        with catch_oom() as caught:
            step()
        assert caught.failure and held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("refuse", [by_cuda, by_the_cpu])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_nothing_is_held_after_a_failed_backward_pass(refuse, position):
    """Autograd's queue on a CPU holds what was ready and did not run: here, two branches of every layer."""
    held, weights = [], [torch.randn(8, 8, requires_grad=True) for _ in range(6)]

    def step() -> None:
        x = torch.randn(8, 8)
        for weight in weights:
            x = torch.tanh(x @ weight) + torch.sigmoid(x @ weight)
            held.append(weakref.ref(x))
        x.sum().backward()

    handle = weights[position].register_hook(lambda gradient: refuse())
    gc.disable()
    try:
        with catch_oom() as caught:
            step()
        assert caught.failure and [ref() is None for ref in held] == [True] * 6
    finally:
        gc.enable()
    handle.remove()
    with torch.inference_mode(), catch_oom() as caught:
        refuse()
    assert caught.failure


def test_what_is_out_of_memory():
    with pytest.raises(RuntimeError) as real:
        by_the_cpu()
    assert not isinstance(real.value, torch.OutOfMemoryError) and is_out_of_memory(real.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("")) and not is_out_of_memory(
        RuntimeError("CUDA error: assert")
    )
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))
