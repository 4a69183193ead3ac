"""What tensors of a file may be: those that a network can take, and no more of them than the file has bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import torch
from torch import Tensor

from configs.errors import CheckpointError

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Names may share a storage (tied weights); a file whose tensors add up to more is made to fill the memory.
_SHARED_AT_MOST = 16


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor with a number at each place: neither sparse nor quantised nor without a storage."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and value.device.type != "meta"
    )


def misfit(value: object, own: Tensor) -> str:
    """Why `value` cannot stand for `own`, such as '(4, 3) instead of (3,)'; '' where it can.

    Floating numbers of 16 to 64 bits may stand for each other, and integers for integers; nothing else is converted.
    own: may be on the meta device.
    """
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} instead of {tuple(own.shape)}"
    if value.shape != own.shape:
        return f"{tuple(value.shape)} instead of {tuple(own.shape)}"
    if not is_plain(value):
        return f"{_nature(value)} instead of plain numbers"
    if not _convertible(value.dtype, own.dtype):
        return f"{_name(value.dtype)} instead of {_name(own.dtype)}"
    return ""


def not_finite(value: Tensor, own: Tensor) -> bool:
    """Whether `value`, as a tensor of the type of `own`, has a NaN or an infinity."""
    return own.is_floating_point() and not bool(value.to(own.dtype).isfinite().all())


def check_storages(content: object) -> None:
    """CheckpointError where tensors in a file's content are larger than what the file holds for them.

    Strides of 0 make any size of a few bytes: such a tensor is small until it is copied.
    """
    held: dict[int, int] = {}
    total = 0
    for tensor in tensors_in(content):
        if not is_plain(tensor):
            continue
        size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
        if size > storage.nbytes():
            raise CheckpointError(
                f"a tensor {tuple(tensor.shape)} of {size / 1e6:,.1f} MB has {storage.nbytes():,} bytes in it"
            )
        total += size
        held[storage.data_ptr()] = storage.nbytes()
    if total > _SHARED_AT_MOST * sum(held.values()):
        raise CheckpointError(f"its tensors take {total / 1e6:,.1f} MB, and it holds {sum(held.values()):,} bytes")


def tensors_in(content: object) -> Iterator[Tensor]:
    """All tensors in nested mappings, lists and tuples, however deep; a container that holds itself is entered once."""
    left: list[object] = [content]
    entered: set[int] = set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in entered:
            entered.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value


def _convertible(found: torch.dtype, own: torch.dtype) -> bool:
    return found is own or any(found in kind and own in kind for kind in (_REAL, _INTEGER))


def _nature(value: Tensor) -> str:
    if value.device.type == "meta":
        return "a tensor without numbers (meta)"
    return "a quantised tensor" if value.is_quantized else f"a tensor of layout {_name(value.layout)}"


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
