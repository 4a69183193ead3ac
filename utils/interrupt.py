"""SIGINT and SIGTERM: the first is noted, so that training can save and leave; the second leaves at once."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Interrupted(BaseException):
    """Training was asked to stop, and has saved. Not an error: the exit code is 128 + the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class StopRequest:
    """Call it to learn the number of the signal received, or 0.

    Before `save_before_leaving` there is nothing to save: a signal raises Interrupted on the spot.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self.save_before_leaving = False
        self._owner = os.getpid()

    def install(self) -> StopRequest:
        """Take over SIGINT and SIGTERM of this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        return self

    def __call__(self) -> int:
        return self.signal_number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data worker inherits the handler, not the duty
            os._exit(128 + number)
        if self.signal_number or not self.save_before_leaving:
            raise Interrupted(number)
        self.signal_number = number
