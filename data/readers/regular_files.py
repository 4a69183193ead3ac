"""What others have put into a data folder: only regular files are opened, and only so much of them is unpacked."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from configs.errors import DataError

_HEAD_BYTES = 256
# Images and tables shrink to a tenth by deflate, blank ones to a hundredth; a bomb to a thousandth.
_MAX_EXPANSION, _FREE_BYTES = 100, 2**26


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; DataError for a pipe or a device, reading which might never end, and for a folder.

    OSError as `open` raises it.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise DataError(f"it is {kind}, not a file")
    return path.open("rb")


def read_head(path: Path) -> bytes:
    """The first 256 bytes, which tell what a file is."""
    with open_regular(path) as file:
        return file.read(_HEAD_BYTES)


def leaves(root: Path, path: Path) -> bool:
    """Whether a path is, or lies behind, a symbolic link out of root."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))  # Path.resolve raises for a loop


def refuse_link(root: Path, path: Path) -> Path:
    """The path; DataError where it is a link out of root that was not named by the user."""
    if leaves(root, path):
        raise DataError(f"'{path}' is a link that leaves data_dir, to '{os.path.realpath(path)}'")
    return path


def check_expansion(packed: int, unpacked: int) -> None:
    """DataError for what unpacks to more than 64 MiB and more than 100 times its size: a decompression bomb."""
    if unpacked > max(_FREE_BYTES, _MAX_EXPANSION * packed):
        raise DataError(
            f"its {packed:,} bytes unpack to more than {_MAX_EXPANSION} times as many: a decompression bomb"
        )
