"""What the shell completes, by argcomplete, where it is installed: options, files, names, and settings of --set.

A script is completed that has PYTHON_ARGCOMPLETE_OK in its first lines. docs/command_line.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

Completer = Callable[..., list[str]]


def completing() -> bool:
    """Whether the shell is asking; nothing else is done then."""
    return "_ARGCOMPLETE" in os.environ


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, which ends the process, if it is asking."""
    if completing():
        import argcomplete

        argcomplete.autocomplete(parser)


def of_settings(keys: Sequence[str] = ()) -> Completer:
    """'SECTION.key=', and after it the values that are listed. keys: only these; all where there are none."""

    def found(prefix: str, **others: object) -> list[str]:
        allowed = {key: values for key, values in _settings() if not keys or key in keys}
        key, equals, _ = prefix.partition("=")
        return [f"{key}={value}" for value in allowed.get(key, ())] if equals else [f"{key}=" for key in allowed]

    return found


def of_yaml_files(prefix: str, **others: object) -> list[str]:
    """Folders and YAML files."""
    from argcomplete.completers import FilesCompleter

    return list(FilesCompleter(("yaml", "yml"))(prefix, **others))


def _settings() -> Iterator[tuple[str, list[str]]]:
    """(SECTION.key, its values where they are listed) of every setting."""
    from configs.default_config import Config
    from configs.section import Section

    def of(section: type[Section], prefix: str) -> Iterator[tuple[str, list[str]]]:
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from of(kind, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", _values(kind)

    for name, field in Config.model_fields.items():
        yield from of(field.default_factory, f"{name}.")  # type: ignore[arg-type]


def _values(kind: object) -> list[str]:
    """Of bool, literals, and unions of them."""
    if kind is bool:
        return ["true", "false"]
    found = []
    for part in get_args(kind):
        found += [str(part)] if isinstance(part, (str, int)) else _values(part)
    return found
