"""--log-format and --log-file of every script, read before the command line is taken apart: how to say what is wrong
with it depends on them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FORMATS = ("text", "json")
_OVERRIDE = re.compile(r"\s*logging\.format\s*=\s*['\"]?(\w+)['\"]?\s*", re.IGNORECASE)


class AskedLogging(NamedTuple):
    """style: one of FORMATS."""

    style: str
    file: Path | None


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """They are for people and completion: `asked_logging` has read them by then."""
    group = parser.add_argument_group("log")
    group.add_argument(
        "--log-format", choices=FORMATS, help="of all output: lines of text, or of JSON (LOGGING.format)"
    )
    group.add_argument("--log-file", metavar="FILE", help="append the log and errors to this file too")


def asked_logging(words: Sequence[str]) -> AskedLogging:
    """Of a command line: --log-format, else LOGGING.format of --set, else of --config's file, else text."""
    style, file = _value(words, "--log-format", "--log-fo"), _value(words, "--log-file", "--log-fi")
    if style not in FORMATS:
        said = [found[1].lower() for word in words if (found := _OVERRIDE.fullmatch(word))]
        style = said[-1] if said else _of_file(_value(words, "--config", "--conf"))
    return AskedLogging(style if style in FORMATS else "text", Path(file) if file else None)


def _value(words: Sequence[str], option: str, shortest: str) -> str | None:
    """The last value of an option, which may be shortened."""
    found = None
    for word, following in zip(words, [*words[1:], None]):
        name, equals, value = word.partition("=")
        if option.startswith(name) and name.startswith(shortest):
            found = value if equals else following
    return found


def _of_file(name: str | None) -> str | None:
    """What a settings file says; what is wrong with it is said when it is read in earnest."""
    if name is None:
        return None
    from configs.default_config import Config

    return Config.peek(name, "LOGGING", "format")
