"""What readers have to say of an image that they did read: collected where it is read, counted by the main process.

A reader calls `remark`; whoever reads on behalf of a run does so `with collecting() as remarks`. Outside of that
nothing is kept. The collection belongs to a context (contextvars), so that threads and nested readers don't mix theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

# constant: all stored pixels are equal. clipped: nearly all shown pixels are black or white. flat: the shown image has
# nearly no contrast. not_finite: NaN or infinity among the values. orientation: an EXIF block that cannot be read.
Kind = Literal["constant", "clipped", "flat", "not_finite", "orientation"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Remark(NamedTuple):
    """kind: what is counted together. detail: of this image, in words."""

    kind: Kind
    detail: str


_collected: ContextVar[dict[Kind, Remark] | None] = ContextVar("remarks", default=None)


@contextmanager
def collecting() -> Iterator[dict[Kind, Remark]]:
    """The remarks made inside, by kind: the first of each, as an image may be read more than once."""
    found: dict[Kind, Remark] = {}
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def remark(kind: Kind, detail: str) -> None:
    """Say something of the image that is being read."""
    found = _collected.get()
    if found is not None:
        found.setdefault(kind, Remark(kind, detail))


def is_collecting() -> bool:
    """Whether remarks are kept, so that what they need has to be measured."""
    return _collected.get() is not None
