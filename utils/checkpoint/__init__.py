"""Checkpoints: written whole, verified when read (files), found again after damage (recovery)."""

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
