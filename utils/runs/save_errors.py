"""What a run does where a file of its own cannot be written (CHECKPOINT.on_save_error)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import CheckpointError

logger = logging.getLogger(__name__)


@contextmanager
def on_save_error(continues: bool, what: str) -> Iterator[None]:
    """Write something in here: an error is a log line where the run continues, and a CheckpointError where it stops."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        message = str(error) if isinstance(error, CheckpointError) else f"cannot write {what}: {error}"
        if not continues:
            advice = "fix this and continue with --resume; CHECKPOINT.on_save_error=continue would train on"
            raise CheckpointError(f"{message} ({advice})") from None
        logger.error("%s; training continues (CHECKPOINT.on_save_error)", message)
