"""What scripts share: the option --set, what they print, and how they end: an exit code, and one line where something
is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from configs.errors import HybridMedNetError
from configs.followed import Followed
from utils.log import setup_logging
from utils.text import printable_lines


def add_overrides(parser: argparse.ArgumentParser, followed: Followed) -> None:
    """--set for a script that works with a saved model; its help names the settings that have an effect."""
    parser.add_argument(
        "--set",
        metavar="SECTION.key=value",
        nargs="+",
        action="extend",
        default=[],
        help=f"override settings: {followed.describe()}",
    )


def show(text: str) -> None:
    """Print a result; what it has from files is escaped, so that no name can act on the terminal."""
    print(printable_lines(text), flush=True)


def show_error(error: BaseException | str) -> None:
    """Print 'error: …' on stderr, escaped likewise."""
    print(f"error: {printable_lines(error, '  ')}", file=sys.stderr)


def run_script(work: Callable[[], int | None]) -> int:
    """Do the work of a script that has nothing to save when it is interrupted.

    Returns the exit code: work's own or 0; 2 after the user's errors, one line on stderr; 130 after Ctrl-C.
    """
    setup_logging()
    try:
        return work() or 0
    except HybridMedNetError as error:
        show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
