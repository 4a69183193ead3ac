"""Docstrings of this project as reStructuredText: plain text with `code`, 'name: what it is' and indented tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from sphinx.application import Sphinx

INVISIBLE = "\u200b"  # between two names of one field, as Sphinx reads what stands before a blank as a type
_PARAMETER = re.compile(r"(\w+(?:, \w+)*): (.+)")
_BULLET = re.compile(r"(?:[-•]|\d+\.) ")
_ENUMERATED = re.compile(r"\w[.)](?: |$)|\(\w\) ")  # 'K. x' at the beginning of a line is no list


def parameters_of(thing: object) -> set[str]:
    """The names of a function's or a class's arguments."""
    try:
        return set(inspect.signature(thing).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return set()


def escaped(line: str) -> str:
    """The line with what reStructuredText would read as markup escaped, outside of backticks."""
    parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
    plain = [re.sub(r"([*|\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
    text = plain[0]
    for part, after in zip(parts[1::2], plain[1:], strict=True):
        code = f"``{part.strip('`')}``" if part.strip("`") else part
        text += ("\\ " if text[-1:].isalnum() else "") + code + ("\\ " if after[:1].isalnum() else "") + after
    return f"\\{text}" if _ENUMERATED.match(text) and not _BULLET.match(text) else text


def restructured(lines: Iterable[str], parameters: set[str]) -> list[str]:
    """The docstring's lines as reStructuredText.

    'name: text' of a parameter becomes a field, with the lines that go on with it; what is indented otherwise is
    shown as it stands; lists get the blank line that they need.
    """
    result: list[str] = []
    state = "text"  # text, field, bullet, literal
    for line in lines:
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if not stripped:
            result.append("")
            state = "text" if state != "literal" else state
            continue
        found = _PARAMETER.fullmatch(stripped) if indent == 0 else None
        if found and set(found[1].split(", ")) <= parameters:
            result += ([""] if state == "text" and result and result[-1] else []) + [
                f":param {found[1].replace(' ', INVISIBLE)}: {escaped(found[2])}"
            ]
            state = "field"
        elif _BULLET.match(stripped) and indent == 0:
            result += ([""] if state != "bullet" and result and result[-1] else []) + [
                escaped(stripped).replace("•", "-", 1)
            ]
            state = "bullet"
        elif indent and state in ("field", "bullet"):
            result.append("    " * (state == "field") + "  " * (state == "bullet") + escaped(stripped))
        elif indent:
            if state != "literal":
                result += ([""] if result and result[-1] else []) + ["::", ""]
            result.append("    " + line)
            state = "literal"
        else:
            goes_on = state == "field" and not (result[-1].rstrip().endswith((".", ":")) and stripped[0].isupper())
            if goes_on:
                result.append("    " + escaped(stripped))
                continue
            result += ([""] if state != "text" and result and result[-1] else []) + [escaped(stripped)]
            state = "text"
    return result


def process(_app: Sphinx, _what: str, _name: str, thing: object, _options: object, lines: list[str]) -> None:
    """For autodoc: what it shows is the docstring, `restructured`."""
    lines[:] = restructured(lines, parameters_of(thing))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
