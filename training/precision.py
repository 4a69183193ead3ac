"""Which number format the forward pass uses, and the loss scaling it needs."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from configs.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """dtype None: float32 throughout. Losses are computed in float32 in any case."""

    device_type: str
    dtype: torch.dtype | None

    @property
    def name(self) -> str:
        return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[self.dtype]

    @property
    def setting(self) -> bool | Literal["bf16", "fp16"]:
        """The value of TRAIN.mixed_precision that means it on every device."""
        if self.dtype is None:
            return False
        return "bf16" if self.dtype == torch.bfloat16 else "fp16"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """A loss scaler that does nothing but for fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)


def choose_precision(setting: bool | str, device: torch.device) -> Precision:
    """TRAIN.mixed_precision for a device.

    True and 'auto': bf16 where the hardware computes it, else fp16 on CUDA, else float32.
    Raises ConfigError for bf16 or fp16 asked for by name where it would be emulated or is not there.
    """
    kind = device.type
    if setting is False:
        return Precision(kind, None)
    if setting == "bf16" and not has_bf16(device):
        raise ConfigError(f"TRAIN.mixed_precision 'bf16': this {kind} has no bf16 arithmetic; use auto or false")
    if setting == "fp16" and kind != "cuda":
        raise ConfigError(f"TRAIN.mixed_precision 'fp16' needs a CUDA device, this is {kind}; use auto or false")
    if setting in ("bf16", "fp16"):
        return Precision(kind, torch.bfloat16 if setting == "bf16" else torch.float16)
    if has_bf16(device):
        return Precision(kind, torch.bfloat16)
    return Precision(kind, torch.float16 if kind == "cuda" else None)


def choose_available_precision(setting: bool | str, device: torch.device) -> Precision:
    """The same for a network that was trained elsewhere: a format that this device lacks is float32, with a warning."""
    try:
        return choose_precision(setting, device)
    except ConfigError:
        logger.warning("TRAIN.mixed_precision is '%s', which this %s does not compute: float32", setting, device.type)
        return Precision(device.type, None)


def choose_memory_format(setting: bool | str, prefers_channels_last: bool = False) -> torch.memory_format:
    """TRAIN.channels_last for a network; 'auto' without a probe follows what its backbone prefers."""
    channels_last = prefers_channels_last if setting == "auto" else setting
    return torch.channels_last if channels_last else torch.contiguous_format


def has_bf16(device: torch.device) -> bool:
    """Whether its hardware computes in bf16, so that nothing is emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def choose_device(setting: str) -> torch.device:
    """TRAIN.device; 'auto' is CUDA, then MPS, then the CPU. `prepare_process` sets the process up for it.

    Raises ConfigError for a device that is not there.
    """
    if setting == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(setting)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise ConfigError(f"TRAIN.device '{setting}' cannot be used here: {reason}; try auto or cpu") from None
    return device
