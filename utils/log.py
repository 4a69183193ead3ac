"""Log lines: text for people or JSON for machines, on the terminal and in the run's folder.

Control characters in a message are escaped here, whoever logs it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from configs.errors import CheckpointError
from utils.json_output import json_line
from utils.text import printable_lines

# Before the further lines of a message: a line break in a name must not begin what looks like a line of the log.
_INDENT = "  "
_PYTHONS = warnings.formatwarning


class TextFormatter(logging.Formatter):
    """'12:31:07  message', with the level where it is not INFO."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return (
            f"{datetime.fromtimestamp(record.created):%H:%M:%S}  {level}{printable_lines(record.getMessage(), _INDENT)}"
        )


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC, ISO 8601), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        return json_line(record.levelname, record.name, printable_lines(record.getMessage()), record.created)


class _AboveProgressBar(logging.Handler):
    """Writes to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


class _LogFile(logging.FileHandler):
    """A file that cannot be written any more is said once, and left."""

    def handleError(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        root.removeHandler(self)
        root.error("cannot write the log '%s': %s", self.baseFilename, sys.exc_info()[1])


class CommandLogFile(_LogFile):
    """The file of --log-file, which is told errors too."""


# Libraries that tell at INFO what they do.
_NOISY = (
    *("timm", "matplotlib", "fontTools", "PIL", "pydicom", "highdicom"),
    *("httpx", "huggingface_hub", "torch", "onnxscript", "onnx_ir"),
)


def setup_logging(style: str = "text") -> None:
    """Send all loggers of the project to stderr as 'text' or 'json'; Python's own warnings are escaped like them."""
    handler = _AboveProgressBar()
    handler.setFormatter(formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    warnings.formatwarning = _format_warning
    logging.captureWarnings(style == "json")
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def log_to_file(path: Path, style: str = "text", kind: type[_LogFile] = _LogFile) -> Iterator[None]:
    """Append the lines of all loggers from INFO on to a file, as 'text' or 'json', until the context is left.

    Raises CheckpointError where it cannot be written.
    """
    try:
        handler = kind(path, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write the log '{path}': {error}") from None
    handler.setFormatter(formatter(style))
    root = logging.getLogger()
    level = root.level
    root.setLevel(min(level, logging.INFO))  # a notebook's root logger says nothing below WARNING
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Python's text of a warning: pydicom quotes values of a file's elements in some."""
    return printable_lines(_PYTHONS(message, category, filename, lineno, line), _INDENT)


def formatter(style: str) -> logging.Formatter:
    """Of lines of 'text' or 'json'."""
    return JsonFormatter() if style == "json" else TextFormatter()
