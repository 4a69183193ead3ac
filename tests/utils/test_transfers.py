"""Sent ahead, read one late: in order, everything once, no more held than that takes."""

import pytest
import torch

from utils.transfers import AsyncHostCopy, pipelined, prefetch_to_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_each_item_comes_once_after_the_next_has_begun(count):
    started = []

    def begin():
        for number in range(count):
            started.append(number)
            yield number

    for number in pipelined(begin()):
        assert started[-1] == min(number + 1, count - 1)
    assert started == list(range(count))


def test_what_is_fetched_is_what_was_there():
    tensors = [torch.randn(3, 2), torch.tensor(1.5), torch.arange(4)]
    assert all(map(torch.equal, AsyncHostCopy(tensors).get(), tensors))


def test_on_a_cpu_nothing_is_sent_and_none_stays_none():
    items = [torch.zeros(1), None, torch.ones(1)]
    found = list(prefetch_to_device(iter(items), lambda tensor: tensor + 1, CPU))
    assert [a is b is c for (a, b), c in zip(found, items, strict=True)] == [True] * 3
