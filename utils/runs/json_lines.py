"""Plain values, and files of one JSON object a line that may be read while they are written."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"

logger = logging.getLogger(__name__)


def plain(value: object) -> JsonValue:
    """What JSON can carry: NaN and infinities as None, tuples as lists, keys as strings.

    Raises TypeError for anything that is not a plain value.
    """
    if isinstance(value, Mapping):
        return plain_object(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{type(value).__name__} is not a plain value: {value!r}")


def plain_object(values: Mapping[str, object]) -> JsonObject:
    """`plain` of a mapping."""
    return {str(key): plain(item) for key, item in values.items()}


def to_line(row: Mapping[str, JsonValue]) -> str:
    """One line of such a file, with its line end."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[JsonObject]:
    """The objects of a file, [] where there is none.

    A last line without its end that is not yet whole is being written, or was when its process was killed: it is left
    out. Any other line that is not a JSON object is left out with a warning. Raises OSError.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    *lines, unfinished = content.split(b"\n")
    rows = [(number, _row(line)) for number, line in enumerate(lines, 1) if line.strip()]
    damaged = [str(number) for number, row in rows if row is None]
    if damaged:
        logger.warning("'%s': left out what is not a JSON object, line %s", path, ", ".join(damaged[:5]))
    return [row for row in (*(row for _, row in rows), _row(unfinished)) if row is not None]


def _row(line: bytes) -> JsonObject | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None
    return row if isinstance(row, dict) else None
