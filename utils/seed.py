"""Seeds of the global random number generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# By generator. Any: each has a state of its own form; `is_random_state` looks at one that a file holds.
RandomState: TypeAlias = dict[str, Any]


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch on all devices. Order and augmentation of images do not depend on these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still use it
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside, torch's generators of the CPU and of `device` begin at `seed`; afterwards they continue where they were.

    torch.manual_seed seeds those of all devices, and the others would not be restored.
    """
    kind = "cpu" if device is None else device.type
    with (
        torch.random.fork_rng([device] if kind == "cuda" else []),
        _mps_state_kept() if kind == "mps" else nullcontext(),
    ):
        torch.default_generator.manual_seed(seed)
        if kind == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if kind == "mps":
            torch.mps.manual_seed(seed)
        yield


@contextmanager
def _mps_state_kept() -> Iterator[None]:
    state = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.mps.set_rng_state(state)


def random_state() -> RandomState:
    """The states of all global generators, as tensors and plain values that a checkpoint can hold."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    assert isinstance(numpy_state, tuple), "a dict is for other generators than NumPy's global one"
    kind, keys, *rest = numpy_state
    state: RandomState = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: RandomState) -> None:
    """Put back what `random_state` gave; CUDA's only where there are as many devices."""
    torch.set_rng_state(state["cpu"])
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    if torch.cuda.is_available() and len(state.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def is_random_state(state: RandomState) -> bool:
    """Whether `set_random_state` can take what a file holds: it is tried on generators of its own."""
    try:
        torch.Generator().set_state(state["cpu"])
        random.Random().setstate(state["python"])
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.RandomState().set_state((kind, keys, position, has_gauss, gauss))
        cuda = all(_is_cuda_state(each) for each in state.get("cuda", ()))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError):
        return False
    # NumPy takes any position, and would read beyond its keys.
    return cuda and kind == "MT19937" and len(keys) == 624 and isinstance(position, int) and 0 <= position <= 624


def _is_cuda_state(state: Tensor) -> bool:
    """Seed and offset, eight bytes each; the offset is a multiple of four."""
    is_bytes = state.device.type == "cpu" and state.dtype == torch.uint8 and state.shape == (16,)
    return is_bytes and int(state[8]) % 4 == 0
