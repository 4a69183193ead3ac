"""Text that others wrote: shown without control characters, compared, and told apart where it looks alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

# C0 and C1 controls (ESC begins what moves a cursor or renames a window), DEL, line separators, what turns the
# direction of writing (Unicode TR 36, 2.10), what is not drawn at all, and surrogates, which no terminal takes.
# Joiners (U+200C, U+200D) stay: Persian, Hindi and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Letters of other alphabets that are drawn like a Latin one (from Unicode TR 39, confusables.txt), and what is read for
# another letter in most typefaces.
_LOOK_ALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјорсухԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧονυıⅼІ0|1",
    "ABESIJKMHOPCTYXaesijopcyxdqwABEZHIKMNOPTYXovuillOll",
)
_WITHIN = re.compile(r"(?<=[^\W_])[\s_\-‐‑‒–—]+(?=[^\W_])")
_BLANKS = re.compile(r"[\s_\-‐‑‒–—]+")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: rows of equally many texts, the first column to the left and the others to the right."""
    cells = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    padded = ((text.rjust(w) if n else text.ljust(w) for n, (text, w) in enumerate(zip(row, widths))) for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def has_controls(text: str) -> bool:
    """Whether a text has what no line of a file can hold: controls, separators of lines, bytes that are no UTF-8."""
    return bool(_CONTROLS.search(text))


def printable(text: object) -> str:
    """A text on one line: what a terminal, a log, a web page or a figure would act on is escaped ('\\x1b', '\\u202e').

    All letters stay as they are.
    """
    return _UNSAFE.sub(_escape, str(text))


def printable_lines(text: object, indent: str = "") -> str:
    """`printable` of each line, lines kept. indent: stands before each line but the first that has no blank before it,
    so that a line break in a name cannot begin what looks like a line of ours.
    """
    first, *others = str(text).replace("\r\n", "\n").split("\n")
    return "\n".join([printable(first), *(_indented(printable(line), indent) for line in others)])


def _indented(line: str, indent: str) -> str:
    return line if not line or line.startswith(" ") else indent + line


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """A text as it is meant to be read: NFKC (full-width letters and digits become plain ones, accents are composed),
    no characters that are not drawn, blanks of every kind as one plain blank and none at the ends.
    """
    if text.isascii() and text.isalnum():
        return text
    undrawn = "".join(" " if mark.isspace() else mark for mark in unicodedata.normalize("NFKC", text))
    shown = "".join(mark for mark in undrawn if not _UNSAFE.match(mark) and mark not in "\u200c\u200d")
    return " ".join(shown.split())


def folded(text: str) -> str:
    """What two spellings of one name have in common: `visible`, in one case, with '_' and '-' within it as blanks."""
    return _WITHIN.sub(" ", visible(text).casefold())


def tell_apart(one: str, other: str) -> str:
    """In what two names differ that look alike, for a message ('only the second ends with a blank'); '' for names that
    a reader can tell apart, and for equal ones.
    """
    if one == other or _skeleton(one) != _skeleton(other):
        return ""
    found = [*_blanks_at_ends(one, other), *_undrawn(one, other)]
    first, second = ("".join(mark for mark in text if not _is_undrawn(mark)).strip() for text in (one, other))
    if first != second and unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
        return "; ".join([*found, f"in Unicode form: {_first_difference(first, second)}"])
    first, second = (unicodedata.normalize("NFC", text) for text in (first, second))
    if first != second and first.casefold() == second.casefold():
        found.append("in upper and lower case only")
    elif first != second:
        found.append(_first_difference(first, second))
    return "; ".join(found)


def told_apart(one: str, other: str) -> str:
    """`'one' and 'other'`, escaped, and in brackets in what they differ where they look alike."""
    difference = tell_apart(one, other)
    return f"'{printable(one)}' and '{printable(other)}'" + (f" (they differ: {difference})" if difference else "")


def alike_between(ones: Iterable[str], others: Iterable[str]) -> str:
    """For the end of a message that lists names of two sides: '; 'Mass' and 'mass' (they differ: …)' of the first two,
    one of each side, that look alike; '' where none do.
    """
    found = next(look_alikes(ones, others), None)
    return f"; {told_apart(*found)}" if found else ""


def look_alikes(ones: Iterable[str], others: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The pairs of two names, one of each side, that look alike and differ."""
    looks = {_skeleton(other): other for other in others}
    for one in ones:
        other = looks.get(_skeleton(one), one)
        if other != one:
            yield one, other


def _skeleton(text: str) -> str:
    """Equal for names that look alike."""
    return _BLANKS.sub("", visible(text).translate(_LOOK_ALIKES).casefold().translate(_LOOK_ALIKES))


def _is_undrawn(mark: str) -> bool:
    return bool(_UNSAFE.match(mark)) or mark in "\u200c\u200d"


def _blanks_at_ends(one: str, other: str) -> list[str]:
    found = []
    for end, strip in (("begins", str.lstrip), ("ends", str.rstrip)):
        blank = [strip(text) != text for text in (one, other)]
        if blank[0] != blank[1]:
            found.append(f"only the {'first' if blank[0] else 'second'} {end} with a blank")
    return found


def _undrawn(one: str, other: str) -> list[str]:
    found = []
    for order, text, against in (("first", one, other), ("second", other, one)):
        marks = dict.fromkeys(mark for mark in text if _is_undrawn(mark) and mark not in against)
        found += [f"only the {order} has {_named(mark)}, which is not drawn" for mark in marks]
    return found


def _first_difference(one: str, other: str) -> str:
    """'é' (U+00E9) in the first, 'e' (U+0065) in the second, at the first place where they differ."""
    at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    first, second = (_named(text[at]) if at < len(text) else "nothing" for text in (one, other))
    return f"the first has {first}, the second {second} as character {at + 1}"


def _named(mark: str) -> str:
    return f"U+{ord(mark):04X} {unicodedata.name(mark, 'without a name')}"
