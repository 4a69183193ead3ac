"""Wait for a state, not for a time: how long something takes depends on what else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 120.0  # only reached where something is wrong; a busy machine may need ten times what an idle one does
_LOOK_EVERY_S = 0.02


def wait_until(condition: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """The first true value of condition(). AssertionError that names `what` if there is none within limit_s seconds."""
    end = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"waited {limit_s:.0f} s in vain: {what}"
        time.sleep(_LOOK_EVERY_S)
