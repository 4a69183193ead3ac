"""Any error while a file is decoded becomes one DataError that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DataError


@contextmanager
def naming(kind: str, path: Path) -> Iterator[None]:
    """Errors raised inside are a DataError "cannot read {kind} '{path}': …"; kind: 'image' or 'volume'."""
    try:
        yield
    except DataError as reason:
        raise DataError(f"cannot read {kind} '{path}': {reason}") from reason
    except FileNotFoundError as reason:
        raise DataError(f"cannot read {kind} '{path}': there is no such file") from reason
    except Exception as reason:  # decoders of foreign bytes raise anything: struct.error, SyntaxError, EOFError, …
        detail = " ".join(str(reason).split()) or "no further detail"
        raise DataError(f"cannot read {kind} '{path}': {type(reason).__name__}: {detail}") from reason
