"""Checkpoints: written whole, verified when read; see `files`."""

from utils.checkpoint.files import FORMAT_VERSION, load_checkpoint, read_weights, save_checkpoint

__all__ = ["FORMAT_VERSION", "load_checkpoint", "read_weights", "save_checkpoint"]
