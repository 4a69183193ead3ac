"""What a process is set up with before it computes. Scripts call it; nothing that is imported or decides does so."""

from __future__ import annotations

import torch

from utils.allocator import keep_freed_memory
from utils.seed import seed_everything


def prepare_process(device: torch.device, seed: int | None = None) -> None:
    """Settings of the whole process for work on a device.

    CPU: freed memory is kept from step to step, see `keep_freed_memory`. CUDA: cuDNN tries its convolutions for every
    new shape and keeps the fastest, which batches of one size repay; not where torch was asked for deterministic
    algorithms, for which one wins may differ from run to run.
    seed: of the global random generators; None leaves them.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    if seed is not None:
        seed_everything(seed)
