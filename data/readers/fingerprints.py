"""Whether files are still those that were looked at, without reading them: by their sizes and times of change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

FINGERPRINT_DIGITS = 32


def fingerprint(paths: Iterable[Path], facts: Iterable[str] = ()) -> str:
    """Hexadecimal digits that change when one of the files changes, comes or goes, or a fact does.

    paths: files, and folders, of which the files right in them count. facts: what else is known of them.
    """
    found = hashlib.sha256()
    for part in (*(part for path in paths for part in _states(path)), *facts):
        text = part.encode("utf-8", "surrogateescape")
        found.update(len(text).to_bytes(8, "little") + text)  # lengths, so that no two lists make one text
    return found.hexdigest()[:FINGERPRINT_DIGITS]


def state(path: Path) -> str:
    """Size and time of the last change of a file; '' where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def _states(path: Path) -> Iterator[str]:
    if not path.is_dir():
        yield f"{path.name} {state(path)}"
        return
    try:
        names = sorted(one.name for one in path.iterdir())
    except OSError:
        names = []
    yield from (f"{name} {state(path / name)}" for name in names)
