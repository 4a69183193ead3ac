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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from configs.errors import CheckpointError, DamagedCheckpointError
from utils.atomic_file import keep_as, replacing
from utils.checkpoint.safetensors_files import read_safetensors

FORMAT_VERSION = 1
_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")

_END_OF_ZIP = b"PK\x05\x06"  # 20 bytes later come the comment's length, in two bytes, and the comment
_CHUNK_BYTES = 1 << 22


def save_checkpoint(content: Mapping[str, Any], path: Path, previous: Path | None = None) -> None:
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
        raise CheckpointError(f"cannot write checkpoint '{path}': {_first_line(error)}") from None


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises DamagedCheckpointError where CRC or digest do not fit, CheckpointError for anything else that is no
    checkpoint of this program.
    """
    has_digest = verify(path)
    if not zipfile.is_zipfile(path):
        raise DamagedCheckpointError(f"'{path}' is damaged: its end is missing, or it never was a checkpoint")
    content = _safe_load(path, map_location, checked=True)
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"'{path}' is not a checkpoint of this program")
    version = content["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(f"'{path}' has format {version!r}, this program reads up to {FORMAT_VERSION}: update it")
    if not has_digest:
        raise DamagedCheckpointError(f"'{path}' is damaged: its digest is missing")
    return content


def verify(path: Path) -> bool:
    """Check the zip's CRC32s, and the digest where there is one: whether there is.

    Raises DamagedCheckpointError where they do not fit, CheckpointError where there is no such file.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist")
    if not os.access(path, os.R_OK):  # not damage: the file must not be set aside for it
        raise CheckpointError(f"'{path}' cannot be read: permission denied")
    try:
        _check_crc(path)
        return _check_digest(path)
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DamagedCheckpointError(f"'{path}' is damaged or not a torch file: {_first_line(error)}") from None


def read_file(path: Path) -> Any:
    """Whatever tensors and plain values a .safetensors or torch file of anyone's holds, wrapped as it is there.

    Raises CheckpointError where it is damaged, or where reading it would run something.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    # Published files carry their command line as a Namespace, which holds values and does nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return _safe_load(path, "cpu")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name → tensor of a .safetensors file or of a torch file, whatever entry they stand under.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`) are taken off. Raises CheckpointError.
    """
    return read_described_weights(path)[0]


def read_described_weights(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """(`read_weights`, what the file says beside them: entries of a torch file, metadata of .safetensors)."""
    path = Path(path)
    content, described = read_safetensors(path) if path.suffix == ".safetensors" else (read_file(path), None)
    weights = find_weights(content)
    if weights is None:
        raise CheckpointError(f"'{path}' holds no model weights (names with tensors)")
    return {_strip_prefixes(str(name)): tensor for name, tensor in weights.items()}, described or content


def find_weights(content: Any) -> Mapping[str, Tensor] | None:
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

    def write(self, data: Any) -> int:
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


def _write(content: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        digesting: Any = _Digesting(file)
        try:
            torch.save({"format_version": FORMAT_VERSION, **content}, digesting)
        except RuntimeError:
            if digesting.error is not None:
                raise digesting.error from None
            raise
        file.seek(-2, os.SEEK_END)
        file.write(_comment(digesting.sha256.hexdigest()))


def _comment(digest: str) -> bytes:
    comment = f"sha256:{digest}".encode()
    return len(comment).to_bytes(2, "little") + comment


def _check_space(content: Mapping[str, Any], folder: Path) -> None:
    """A full disk is told before anything is written to it."""
    needed, free = _size_of(content), shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"it takes {needed / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free")


def _size_of(content: Any) -> int:
    """Bytes of a file with this content, roughly: each storage once, and what surrounds it."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(content)}
    return sum(storages.values()) + 512 * len(storages) + 2**16


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _tensors(value)


def _safe_load(path: Path, map_location: str | torch.device, mmap: bool = False, checked: bool = False) -> Any:
    if not checked:
        verify(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' holds more than tensors and plain values, and is not opened for safety: {_unsafe_part(error)}"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"'{path}' is damaged or not a torch file: {_first_line(error)}") from None


def _check_crc(path: Path) -> None:
    """torch.load does not look at the CRC32s of its own zip format; a flipped bit would pass unnoticed."""
    if not zipfile.is_zipfile(path):
        return  # the older format without a zip around it; torch.load judges it
    with zipfile.ZipFile(path) as archive:
        inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > path.stat().st_size:  # torch stores, it never compresses
            raise zipfile.BadZipFile(f"it would inflate to {inflated / 1e6:,.0f} MB, more than its own size")
        if any(entry.filename.endswith("/constants.pkl") for entry in archive.infolist()):
            raise zipfile.BadZipFile("it is a TorchScript program, not weights")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"entry {damaged} fails its checksum")


def _check_digest(path: Path) -> bool:
    """Whether the zip has a comment. zipfile.BadZipFile where that is not the digest of what is before it."""
    if not zipfile.is_zipfile(path):
        return False
    sha256, left = hashlib.sha256(), path.stat().st_size - 2
    with path.open("rb") as file:
        file.seek(max(left - 2**16, 0))
        end = file.read()
        comment = end[end.rindex(_END_OF_ZIP) + 20 :]  # with its length
        if comment == b"\0\0":
            return False
        left -= len(comment) - 2
        file.seek(0)
        while left > 0:
            chunk = file.read(min(left, _CHUNK_BYTES))
            sha256.update(chunk)
            left -= len(chunk)
    if comment != _comment(sha256.hexdigest()):
        raise zipfile.BadZipFile("its content does not fit its digest")
    return True


def _unsafe_part(error: pickle.UnpicklingError) -> str:
    """What the file names or does; torch's own message goes on with advice that must not be followed."""
    named = re.search(r"GLOBAL (\S+)|unrecognized function (\S.*)", str(error))
    return f"it asks for {named[1] or named[2]}" if named else "its pickle does more than hold values"


def _first_line(error: BaseException) -> str:
    """What happened, without the advice that torch adds: it is to read the file unsafely."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(" In PyTorch 2.6")[0].replace("``weights_only=True``", "safe reading")
