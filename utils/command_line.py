"""What scripts share: the option --set, what they print, and how they end: an exit code, and one line where something
is wrong.
"""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from configs.errors import HybridMedNetError
from configs.followed import Followed
from utils import json_output
from utils.arguments import Values, override
from utils.completion import of_settings
from utils.log import CommandLogFile, formatter, log_to_file, setup_logging
from utils.log_options import asked_logging
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
    if json_output.active():
        print(json_output.json_line("INFO", "result", printable_lines(text)), flush=True)
    else:
        print(printable_lines(text), flush=True)


def show_error(error: BaseException | str) -> None:
    """Print 'error: …' on stderr, escaped likewise, and into --log-file."""
    _say("ERROR", printable_lines(error, "  "), "error: ")


def _say(level: str, message: str, prefix: str = "") -> None:
    """A line on stderr, and of the log file where there is one."""
    if json_output.active():
        print(json_output.json_line(level, "error", message), file=sys.stderr, flush=True)
    else:
        print(f"{prefix}{message}", file=sys.stderr)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, CommandLogFile):
            number = logging.getLevelNamesMapping()[level]
            handler.handle(logging.LogRecord("error", number, "", 0, "%s", (message,), None))


def run_script(work: Callable[[], int | None], arguments: Sequence[str] | None = None) -> int:
    """Do the work of a script that has nothing to save when it is interrupted.

    arguments: of the command line, where --log-format and --log-file are looked for before it is taken apart; the
    process's own where None.
    Returns the exit code: work's own or 0; 2 after errors of the user or the machine, one line on stderr; 130 after
    Ctrl-C. Who reads the output, and whether to the end, changes nothing.
    """
    words = sys.argv[1:] if arguments is None else [str(word) for word in arguments]
    with tolerant_output(), ExitStack() as output:
        try:
            asked = asked_logging(words)
            _use(asked.style, output)
            if asked.file is not None:
                output.enter_context(log_to_file(asked.file, asked.style, CommandLogFile))
            output.enter_context(_switching(lambda style: _use(style, output)))
            return work() or 0
        except (HybridMedNetError, OSError, MemoryError) as error:
            return say_error(error)
        except KeyboardInterrupt:
            _say("ERROR", "interrupted")
            return 130
        except Exception:
            if not json_output.active():
                raise
            _say("CRITICAL", traceback.format_exc())
            return 1


def use_log_format(style: str) -> None:
    """Log lines, and within `run_script` all output, in this style from now on: 'text' or 'json'."""
    _switch[-1](style) if _switch else setup_logging(style)


_switch: list[Callable[[str], None]] = []  # of the scripts that are running


@contextmanager
def _switching(switch: Callable[[str], None]) -> Iterator[None]:
    _switch.append(switch)
    try:
        yield
    finally:
        _switch.pop()
        logging.captureWarnings(False)


def _use(style: str, output: ExitStack) -> None:
    """Once output is JSON it stays so: a line of text after it would not be read."""
    if style == "json" and not json_output.active():
        output.enter_context(json_output.JsonOutput())
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, CommandLogFile)]
    now = "json" if json_output.active() else style
    setup_logging(now)
    for handler in files:
        handler.setFormatter(formatter(now))
    logging.getLogger().handlers += files


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
