"""What torch and timm keep private and this program uses all the same; no other file of it touches such a name.

A release of theirs may change any of it without a word, so torch has an upper bound in requirements.txt: the release
after the newest in CHECKED_TORCH. To raise it, run `make test test-slow` with the new release and add it here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.utils import stateless
from torch.optim import SGD, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten
from torch.utils.data import _utils as loader_utils
from torch.utils.data._utils import pin_memory as pinning
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as LoaderIterator

if TYPE_CHECKING:
    from timm.models.swin_transformer import WindowAttention
    from timm.models.vision_transformer import VisionTransformer

__all__ = [
    "CHECKED_TIMM",
    "CHECKED_TORCH",
    "BatchNorm",
    "DispatchMode",
    "FakeTensor",
    "FakeTensorMode",
    "LoaderIterator",
    "StorageWeakRef",
    "TreeSpec",
    "add_position_embedding",
    "conditional_step",
    "leave_child_exits_to_us",
    "loader_utils",
    "pinning",
    "relative_position_bias",
    "reparametrize_module",
    "shut_down_killed_workers",
    "storage_pointer",
    "tensor_version",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
    "with_metadata_of",
    "worker_processes",
]

# Releases on which the tests of all that is below passed.
CHECKED_TORCH = ("2.14",)
CHECKED_TIMM = ("1.0.31",)

# BatchNorm: the class that the three public ones share; there is no other test for "a batch normalisation".
# FakeTensor, FakeTensorMode: shapes, types and storages without values, for planning what a network saves; the meta
#     device shares no storages and its tensors name no real device.
# StorageWeakRef: whether a storage still lives, without holding it.
# DispatchMode: sees every operation, also those of the backward pass; hooks of modules do not.
# tree_*, TreeSpec: nested tuples of tensors as flat lists, since checkpoint() saves only tensors that are arguments.
# loader_utils, LoaderIterator, pinning: for tests, which shorten the loader's waits and watch its threads.
# Elsewhere only by inheritance: models/backbones/swin_attention.py overrides timm's SwinTransformerBlock._attn.


def storage_pointer(tensor: Tensor) -> int:
    """The same for all views of one memory. data_ptr() is 0 for every fake tensor."""
    return tensor.untyped_storage()._cdata


def tensor_version(tensor: Tensor) -> int:
    """Goes up with every change in place, by which autograd itself finds out about it."""
    return tensor._version


def reparametrize_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Inside, the module's parameters and buffers are these, tied ones too; torch.func.functional_call is one call."""
    return stateless._reparametrize_module(module, dict(tensors), tie_weights=True)


# Whose fused optimizers take a tensor that makes them skip a step; MPS's refuse it.
_SKIPPING_DEVICES = ("cpu", "cuda")


def conditional_step(optimizer: Optimizer, applied: Tensor) -> None:
    """`optimizer.step()` if `applied`, a bool on the device, is true; without waiting for it on a CPU and on CUDA.

    The device is waited for too where the optimizer has no fused kernel, as a user's may. SGD's fused one leaves the
    momentum of a first step that is skipped as it was allocated, so it is asked to skip only where there is a momentum
    already; see `training.optim.create_optimizer`.
    """
    if applied.device.type not in _SKIPPING_DEVICES or not _skips(optimizer):
        if bool(applied):
            optimizer.step()
        return
    # How GradScaler tells the fused kernels; its own way scales the loss as well.
    optimizer.grad_scale, optimizer.found_inf = None, (~applied).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def _skips(optimizer: Optimizer) -> bool:
    """Whether its kernel takes a tensor that makes it skip a step, and leaves nothing undefined when it does."""
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    if not isinstance(optimizer, SGD):
        return True
    moved = (p for group in optimizer.param_groups if group["momentum"] for p in group["params"] if p.requires_grad)
    return all(optimizer.state[p].get("momentum_buffer") is not None if p in optimizer.state else False for p in moved)


def with_metadata_of(given: Mapping[str, object], fitted: OrderedDict[str, object]) -> OrderedDict[str, object]:
    """`fitted` with the versions of layers that torch keeps beside a state dict, and reads when it loads one."""
    fitted._metadata = getattr(given, "_metadata", None)  # type: ignore[attr-defined]
    return fitted


def leave_child_exits_to_us() -> None:
    """Keep torch from installing its SIGCHLD handler, which raises wherever the program is when a worker dies."""
    signal_handling._SIGCHLD_handler_set = True


def worker_processes(iterator: object) -> list[BaseProcess]:
    """The processes of an iterator of a DataLoader, [] where it has none."""
    return list(getattr(iterator, "_workers", ()))


def shut_down_killed_workers(iterator: object) -> None:
    """Free what an iterator of a DataLoader has, whose worker processes were killed.

    One may have held the lock of the event that they share, for which the shutdown would wait: it gets another event.
    """
    assert isinstance(iterator, LoaderIterator), "only an iterator with workers has any to be killed"
    # Of the multiprocessing event that it stands for, the shutdown calls `set` alone.
    iterator._workers_done_event = threading.Event()  # type: ignore[assignment]
    iterator._shutdown_workers()


def add_position_embedding(body: VisionTransformer, tokens: Tensor) -> Tensor:
    """timm's VisionTransformer: positions and prefix tokens, resized for its input; a part of its forward pass only."""
    return body._pos_embed(tokens)


def relative_position_bias(attention: WindowAttention) -> Tensor:
    """timm's WindowAttention: its table as [1, heads, places, places]."""
    return attention._get_rel_pos_bias()
