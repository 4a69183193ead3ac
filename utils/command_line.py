"""What scripts share: the option --set, what they print, and how they end: an exit code, and one line where something
is wrong.
"""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from collections.abc import Callable

from configs.errors import HybridMedNetError
from configs.followed import Followed
from utils.arguments import Values, override
from utils.completion import of_settings
from utils.log import setup_logging
from utils.terminal import tolerant_output
from utils.text import printable_lines

logger = logging.getLogger(__name__)

# What the machine may refuse at any place of a program, and what to do about it.
_ADVICE = {
    errno.EMFILE: "raise the limit (ulimit -n), or use fewer data workers (DATA.num_workers, --num-workers)",
    errno.ENFILE: "the machine has too many files open: close other programs, or use fewer data workers",
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some of your quota, or write elsewhere",
    errno.EFBIG: "files may not grow to that size here: see ulimit -f",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "check the permissions, or write elsewhere",
    errno.ENOMEM: "use a smaller batch or fewer data workers",
}


def add_overrides(parser: argparse.ArgumentParser, followed: Followed) -> None:
    """--set for a script that works with a saved model; its help names the settings that have an effect."""
    parser.add_argument(
        "--set",
        metavar="SECTION.key=value",
        action=Values,
        takes=override,
        completer=of_settings(followed.keys),
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

    Returns the exit code: work's own or 0; 2 after errors of the user or the machine, one line on stderr; 130 after
    Ctrl-C. Who reads the output, and whether to the end, changes nothing.
    """
    with tolerant_output():
        setup_logging()
        try:
            return work() or 0
        except (HybridMedNetError, OSError, MemoryError) as error:
            return say_error(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


def say_error(error: HybridMedNetError | OSError | MemoryError) -> int:
    """One line on stderr for an error that a user or the machine has caused; the exit code."""
    logger.debug("the error was raised here", exc_info=error)
    show_error(describe_error(error))
    return error.exit_code if isinstance(error, HybridMedNetError) else 2


def describe_error(error: HybridMedNetError | OSError | MemoryError) -> str:
    """What happened, to which file, and what to do."""
    if isinstance(error, HybridMedNetError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory ({str(error) or 'no more is known'}): {_ADVICE[errno.ENOMEM]}"
    what = error.strerror or str(error)
    file = "" if error.filename is None else f" ('{error.filename}')"
    advice = f": {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    return f"{what[:1].lower()}{what[1:]}{file}{advice}"
