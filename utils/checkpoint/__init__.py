"""Checkpoints: written whole, verified when read (files), found again after damage (recovery)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `python -m utils.checkpoint --help` does without torch
    from utils.checkpoint.files import (
        FORMAT_VERSION,
        find_weights,
        load_checkpoint,
        read_described_weights,
        read_file,
        read_weights,
        save_checkpoint,
    )
    from utils.checkpoint.integrity import verify
    from utils.checkpoint.operating_point import OPERATING_POINT, keep_operating_point, store_operating_point
    from utils.checkpoint.recovery import load_resumable, set_aside
    from utils.checkpoint.safetensors_files import read_safetensors, write_safetensors

__all__ = [
    "FORMAT_VERSION",
    "OPERATING_POINT",
    "find_weights",
    "keep_operating_point",
    "load_checkpoint",
    "load_resumable",
    "read_described_weights",
    "read_file",
    "read_safetensors",
    "read_weights",
    "save_checkpoint",
    "set_aside",
    "store_operating_point",
    "verify",
    "write_safetensors",
]

_PLACES = {
    "operating_point": ("OPERATING_POINT", "keep_operating_point", "store_operating_point"),
    "integrity": ("verify",),
    "recovery": ("load_resumable", "set_aside"),
    "safetensors_files": ("read_safetensors", "write_safetensors"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _PLACES.items() if name in names), "files")
    return getattr(import_module(f"{__name__}.{module}"), name)
