"""Checkpoint files: the only torch.save and torch.load of the project.

A checkpoint holds tensors and plain Python values, so `weights_only=True` reads it and nothing in it can run. It is
torch's zip file whose comment is the SHA-256 of everything before it: neither torch.load nor safetensors notices
flipped bits.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from configs.errors import CheckpointError, DamagedCheckpointError
from utils.atomic_file import keep_as, replacing
from utils.checkpoint.description import check_description
from utils.checkpoint.integrity import check_digest, digest_comment, first_line, verify
from utils.checkpoint.old_config import old_config_allowed
from utils.checkpoint.safetensors_files import has_digest, read_safetensors
from utils.checkpoint.tensors import check_storages, tensors_in
from utils.listener import CheckpointContent, FileContent
from utils.renamed_keys import todays_content

FORMAT_VERSION = 1
_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
# What is looked at in files of other programs too.
_OURS = ("class_names", "removed_channels")
_PREFIXES = ("module.", "_orig_mod.")


def save_checkpoint(content: CheckpointContent, path: Path, previous: Path | None = None) -> None:
    """Write atomically: a temporary file in the same folder, flushed to disk, read back, then renamed.

    content: tensors and plain values only; anything else is a CheckpointError before the old file is touched.
    previous: the name under which the file that was at `path` is kept.
    Raises CheckpointError, the old file intact, where it cannot be written; free space is looked at first.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(content, path.parent)
        with replacing(path) as temporary:
            _write(content, temporary)
            # What cannot be read again must not replace what can; its bytes have just been counted.
            _safe_load(temporary, "cpu", mmap=True, checked=True)
            if previous is not None and path.exists():
                keep_as(path, previous)
    except CheckpointError as error:
        raise CheckpointError(f"cannot write checkpoint '{path}': {error}") from None
    except (OSError, RuntimeError, TypeError, AttributeError, pickle.PicklingError) as error:
        raise CheckpointError(f"cannot write checkpoint '{path}': {first_line(error)}") from None


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> FileContent:
    """Read what `save_checkpoint` wrote.

    Raises DamagedCheckpointError where CRC or digest do not fit, CheckpointError for anything else that is no
    checkpoint of this program, and for what it says of itself that cannot be (see description.py).
    """
    whole = verify(path)
    if not zipfile.is_zipfile(path):
        raise DamagedCheckpointError(f"'{path}' is damaged: its end is missing, or it never was a checkpoint")
    content = _safe_load(path, map_location, checked=True)
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"'{path}' is not a checkpoint of this program")
    version = content["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(f"'{path}' has format {version!r}, this program reads up to {FORMAT_VERSION}: update it")
    if not whole:
        raise DamagedCheckpointError(f"'{path}' is damaged: its digest is missing")
    content = todays_content(content)
    check_description(path, content)
    return content


def examine(path: Path) -> str:
    """Read any .safetensors or torch file as a whole; also how it was verified, in words.

    Raises DamagedCheckpointError where its bytes are not those that were written, as far as anything in it can tell,
    or where it is no such file; CheckpointError where reading it would run something.
    """
    if path.suffix == ".safetensors":
        read_safetensors(path)
        return "whole (digest)" if has_digest(path) else "readable (it has no digest: flipped bits would not show)"
    read_file(path)
    if not zipfile.is_zipfile(path):
        return "readable (torch's format before 1.6, without checksums: flipped bits would not show)"
    return "whole (CRC and digest)" if verify(path) else "whole (CRC; it has no digest)"


def read_file(path: Path) -> object:
    """All tensors and plain values of any .safetensors or torch file, in their original structure.

    Raises CheckpointError where it is damaged, or where reading it would run something.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    # Published files carry their command line as a Namespace, which holds values and does nothing.
    content = _safe_load(path, "cpu", allowed=(argparse.Namespace,))
    if isinstance(content, Mapping) and "format_version" in content and not check_digest(path):
        raise DamagedCheckpointError(f"'{path}' is damaged: its digest is missing")
    return content


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name → tensor of a .safetensors file or of a torch file, whichever entry holds them.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`) are taken off. Raises CheckpointError.
    """
    return read_described_weights(path)[0]


def read_described_weights(path: str | Path) -> tuple[dict[str, Tensor], FileContent]:
    """(`read_weights`, what the file says beside them: entries of a torch file, metadata of .safetensors)."""
    path = Path(path)
    content: object
    content, described = read_safetensors(path) if path.suffix == ".safetensors" else (read_file(path), None)
    weights = find_weights(content)
    if weights is None or not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds no model weights (names with tensors)")
    said = described or content
    check_description(path, said if isinstance(said.get("config"), dict) else {key: said.get(key) for key in _OURS})
    return {_strip_prefixes(str(name)): tensor for name, tensor in weights.items()}, said


def find_weights(content: object) -> Mapping[str, Tensor] | None:
    """The names with tensors in what a file held, or None."""
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        return None
    return content


def _strip_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


class _Digesting:
    """A file for torch.save that adds up the digest, and keeps the reason where writing fails (torch hides it)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.held = file, hashlib.sha256(), b""
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        new = memoryview(data)
        if len(new) < 2:
            new = memoryview(self.held + bytes(new))
        else:
            self.sha256.update(self.held)
        self.sha256.update(new[:-2])
        self.held = bytes(new[-2:])  # the last two bytes are the comment's length, which changes
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write(content: CheckpointContent, path: Path) -> None:
    with path.open("wb") as file:
        digesting = _Digesting(file)
        try:
            # torch.save asks for an IO[bytes], and of one that is no real file calls write and flush alone.
            torch.save({"format_version": FORMAT_VERSION, **content}, digesting)  # type: ignore[arg-type]
        except RuntimeError:
            if digesting.error is not None:
                raise digesting.error from None
            raise
        file.seek(-2, os.SEEK_END)
        file.write(digest_comment(digesting.sha256.hexdigest()))


def _check_space(content: CheckpointContent, folder: Path) -> None:
    """Raise for a full disk before anything is written."""
    needed, free = _size_of(content), shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"it takes {needed / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free")


def _size_of(content: object) -> int:
    """Bytes of a file with this content, roughly: each storage once, and what surrounds it."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(content)}
    return sum(storages.values()) + 512 * len(storages) + 2**16


def _safe_load(
    path: Path,
    map_location: str | torch.device,
    mmap: bool = False,
    checked: bool = False,
    allowed: tuple[type, ...] = (),
) -> object:
    if not checked:
        verify(path)
    try:
        with old_config_allowed(*allowed):
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' holds more than tensors and plain values, and is not opened for safety: {_unsafe_part(error)}"
        ) from None
    except (EOFError, LookupError, TypeError, AttributeError):
        raise DamagedCheckpointError(f"'{path}' is damaged or not a torch file: its pickle cannot be read") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise DamagedCheckpointError(f"'{path}' is damaged or not a torch file: {first_line(error)}") from None
    try:
        check_storages(content)
    except CheckpointError as error:
        raise CheckpointError(f"'{path}' is made to fill the memory: {error}") from None
    return content


def _unsafe_part(error: pickle.UnpicklingError) -> str:
    """What the file names or does; torch's own message continues with advice that must not be followed."""
    named = re.search(r"GLOBAL (\S+)|unrecognized function (\S.*)", str(error))
    return f"it asks for {named[1] or named[2]}" if named else "its pickle does more than hold values"
