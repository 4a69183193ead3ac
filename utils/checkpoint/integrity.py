"""Whether a checkpoint's bytes are those that were written, as far as the file itself can tell."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from configs.errors import CheckpointError, DamagedCheckpointError

_END_OF_ZIP = b"PK\x05\x06"  # 20 bytes later come the comment's length, in two bytes, and the comment
_CHUNK_BYTES = 1 << 22
_PICKLE, _TAR = b"\x80", slice(257, 262)  # how older formats begin: a pickle's opcode PROTO; a tar's magic


def verify(path: Path) -> bool:
    """Check the zip's CRC32s, and the digest where there is one: whether there is. Tensors are not looked at.

    False too for torch's formats before its zip, which have neither.
    Raises DamagedCheckpointError where they do not fit or it is no file of torch's at all, CheckpointError where there
    is no such file.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist")
    if not os.access(path, os.R_OK):  # not damage: the file must not be set aside for it
        raise CheckpointError(f"'{path}' cannot be read: permission denied")
    try:
        _check_crc(path)
        return check_digest(path)
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DamagedCheckpointError(f"'{path}' is damaged or not a torch file: {first_line(error)}") from None


def digest_comment(digest: str) -> bytes:
    """What ends a checkpoint: the length of the comment, in two bytes, and the comment of the zip."""
    comment = f"sha256:{digest}".encode()
    return len(comment).to_bytes(2, "little") + comment


def _check_crc(path: Path) -> None:
    """torch.load does not look at the CRC32s of its own zip format; a flipped bit would pass unnoticed."""
    if not zipfile.is_zipfile(path):
        return _check_older_format(path)
    with zipfile.ZipFile(path) as archive:
        inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > path.stat().st_size:  # torch stores, it never compresses
            raise zipfile.BadZipFile(f"it would inflate to {inflated / 1e6:,.0f} MB, more than its own size")
        if any(entry.filename.endswith("/constants.pkl") for entry in archive.infolist()):
            raise zipfile.BadZipFile("it is a TorchScript program, not weights")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"entry {damaged} fails its checksum")


def _check_older_format(path: Path) -> None:
    """zipfile.BadZipFile where a file without a whole zip does not begin as a pickle, which torch wrote before 1.6."""
    with path.open("rb") as file:
        start = file.read(_TAR.stop)
    if start.startswith(b"PK"):
        raise zipfile.BadZipFile("its end is missing")
    if start[_TAR] == b"ustar":
        raise zipfile.BadZipFile("it is a tar, which torch before 0.2 wrote and nothing reads safely")
    if start[:1] != _PICKLE:
        raise zipfile.BadZipFile("it is no checkpoint, or its beginning is missing" if start else "it is empty")


def check_digest(path: Path) -> bool:
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
    if comment != digest_comment(sha256.hexdigest()):
        raise zipfile.BadZipFile("its content does not fit its digest")
    return True


def first_line(error: BaseException) -> str:
    """What happened, without the advice that torch adds: it is to read the file unsafely."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(" In PyTorch 2.6")[0].replace("``weights_only=True``", "safe reading")
