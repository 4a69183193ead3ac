"""Batches ahead on the device; the CUDA half is in tests/test_cuda.py."""

import torch

from tests.training.toys import TensorLoader, random_data
from training.prefetch import Prefetcher, tensors_of


def test_without_a_stream_batches_are_handed_on_in_order():
    loader = TensorLoader(*random_data(12), 4, bad=(1,))
    moved = list(Prefetcher(torch.device("cpu"), torch.channels_last)(loader.epoch(0)))
    assert [number for number, _, _ in moved] == [0, 1, 2]
    assert all(batch is copy for _, batch, copy in moved) and moved[1][1] is None


def test_all_tensors_of_a_batch_are_found():
    (_, batch), *_ = TensorLoader(*random_data(4), 4).epoch(0)
    assert [t.shape[0] for t in tensors_of(batch)] == [4, 4, 4, 4]
