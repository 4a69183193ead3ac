"""How a script ends: an exit code, and one line where something is to be corrected."""

from __future__ import annotations

import sys
from collections.abc import Callable

from configs.errors import HybridMedNetError
from utils.log import setup_logging


def run_script(work: Callable[[], int | None]) -> int:
    """Do the work of a script that has nothing to save when it is interrupted.

    Returns the exit code: work's own or 0; 2 after the user's errors, told in one line on stderr; 130 after Ctrl-C.
    """
    setup_logging()
    try:
        return work() or 0
    except HybridMedNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
