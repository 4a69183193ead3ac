"""Which of several implementations of a function is used on a device: the first whose results are right there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Largest relative deviation from the plain implementation that a kernel may have, of y and of every gradient.
KERNEL_TOLERANCE = 1e-3

Kernel = Callable[..., Tensor]
# Arguments like those of a trained network and the gradient of the result, for a device and a type of number.
Example = Callable[[torch.device, torch.dtype], tuple[list[Tensor | None], Tensor]]


@dataclass
class KernelChoice:
    """A function in plain PyTorch, and faster kernels for it that are compared with it before their first use.

    kernels: by type of device, names and what imports them; ImportError means that one is not installed.
    other: what the rest of the arguments of a call are, behind those of the example.
    """

    task: str
    plain_name: str
    plain: Kernel
    kernels: dict[str, tuple[tuple[str, Callable[[], Kernel]], ...]]
    example: Example
    other: tuple = ()
    chosen: dict[tuple[torch.device, torch.dtype], Kernel] = field(default_factory=dict)

    def of(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """What to use there: `plain` for float64, where there is no kernel or none is right, and in exported graphs.

        The check runs in a thread of its own, which has no autocast, no grad mode, no hooks and no modes of the caller
        that it could disturb. A compiler cannot run it: what was not checked before (`prepare`) is plain there.
        """
        if device.type not in self.kernels or dtype == torch.float64 or is_exported():
            return self.plain
        key = (device, dtype)
        if key not in self.chosen and not torch.compiler.is_compiling():
            with ThreadPoolExecutor(1) as thread:
                self.chosen[key] = thread.submit(self._choose, *key).result()
        return self.chosen.get(key, self.plain)

    def _choose(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """The first kernel without a fault, else the plain function. Kernels set aside are named in warnings."""
        faults = []
        chosen, function = self.plain_name, self.plain
        for name, candidate in self._installed(device.type):
            fault = self._fault(candidate, device, dtype)
            if fault is None:
                chosen, function = name, candidate
                break
            faults.append((name, fault))
        for name, fault in faults:
            logger.warning("%s on %s, %s: %s %s; %s is used instead", self.task, device, dtype, name, fault, chosen)
        return function

    def _installed(self, device_type: str) -> Iterator[tuple[str, Kernel]]:
        for name, load in self.kernels[device_type]:
            try:
                kernel = load()
            except ImportError:
                continue  # not installed, which needs no words: there are others
            yield name, kernel

    def _fault(self, kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
        """What is wrong with a kernel, by a small example in float64; None where it agrees."""
        arguments, dy = self.example(device, dtype)
        try:
            found = self._with_gradients(kernel, arguments, dy)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a kernel that cannot be compiled may fail in any way
            return f"fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        wide = [x if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in arguments]
        exact = self._with_gradients(self.plain, wide, dy.double())
        tolerance = KERNEL_TOLERANCE + (torch.finfo(dtype).eps if dtype.itemsize < 4 else 0)
        worst = max(((x - e).abs().max() / e.abs().max()).nan_to_num(torch.inf).item() for x, e in zip(found, exact))
        return None if worst <= tolerance else f"deviates by {worst:.1e}, where {tolerance:.1e} is allowed"

    def _with_gradients(self, kernel: Kernel, arguments: list[Tensor | None], dy: Tensor) -> list[Tensor]:
        y = kernel(*arguments, *self.other)
        wanted = [x for x in arguments if x is not None and x.requires_grad]
        return [y, *torch.autograd.grad(y, wanted, dy)]


def prepare_kernels(model: nn.Module, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check the kernels that a network's modules name as `kernels`, for a compiler cannot."""
    for choice in (getattr(module, "kernels", None) for module in model.modules()):
        if isinstance(choice, KernelChoice):
            for dtype in dtypes:
                choice.of(device, dtype)


def is_exported() -> bool:
    """Whether a graph is being made for other programs, which know neither our autograd function nor our kernels.

    Up to torch 2.11 a graph that torch.compile makes counts as exported, unless it is asked who makes it.
    """
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    return exporting or torch.jit.is_tracing()
