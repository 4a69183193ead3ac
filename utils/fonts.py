"""Letters that the plots' own font lacks: a font of the system that has them, else an escape that cannot be mistaken.

Looked up by letter, not by language. Nothing is looked up where the plots' own font has all letters.
"""

from __future__ import annotations

import logging
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from utils.text import printable_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("figures")

# Asked first, in this order; after them whatever else is installed.
PREFERRED = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Noto Sans CJK JP",
    "Droid Sans Fallback",
    "Noto Sans",
    "Arial Unicode MS",
)
# Has a box for every letter there is.
NOT_LETTERS = "Last Resort"
# The first matplotlib that joins and orders letters (by libraqm); before, Arabic stands apart and back to front.
LAYS_OUT_SCRIPTS = (3, 11)


def display_names(names: Sequence[str], longest: int | None = None) -> list[str]:
    """Names as figures show them: letters without a font as escapes, cut to `longest`; no two look alike.

    Where a name had to be escaped, or what is shown of two would be the same, its number in the list, from 1, precedes.
    """
    plain = [drawable(name) for name in names]
    short = [name if longest is None or len(name) <= longest else name[: longest - 1] + "…" for name in plain]
    # Compared as they are cut over a panel, in two lines, where the end of a long word is lost.
    looks = [_look(name if longest is None else wrap(name, longest // 2, 2)) for name in short]
    numbered = [plain[i] != names[i] or looks.count(looks[i]) > 1 for i in range(len(names))]
    return [f"{i}: {name}" if number else name for i, (name, number) in enumerate(zip(short, numbered), 1)]


def drawable(text: str) -> str:
    """The text with every letter that no font has as \\u and its code; control characters as in `printable`."""
    absent = _families(_special(text))[1]
    if absent:
        _tell(absent)
    return "".join(_escape(c) if c in absent else c for c in printable_lines(text))


def set_fonts(figure: Figure) -> None:
    """Give every text of a figure the fonts that its letters need; what has none is escaped, and said once."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    for axes in figure.axes:  # tick labels are made when they are asked for, and written anew while drawing
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                formatter.seq = [drawable(name) for name in formatter.seq]
            axis.get_ticklabels()
    for one in figure.findobj(Text):
        assert isinstance(one, Text)
        text = one.get_text()
        one.set_text(drawable(text))
        families = _families(_special(text))[0]
        if families:
            one.set_fontfamily([*one.get_fontfamily(), *families])


def wrap(text: str, width: int, lines: int) -> str:
    """At most so many lines of so many letters, half as many where letters are as wide as Chinese ones."""
    wide = any(unicodedata.east_asian_width(c) in "WF" for c in text)
    return "\n".join(textwrap.wrap(text, width // 2 if wide else width, max_lines=lines, placeholder=" …") or [""])


def _look(text: str) -> str:
    """Equal for texts that a reader cannot tell apart."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _escape(c: str) -> str:
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"


def _special(text: str) -> frozenset[str]:
    """The letters to look for; without those of ASCII, figures above all, each text asks for few and the same ones."""
    return frozenset(c for c in text if not c.isascii() and c.isprintable() and not c.isspace())


@cache
def _families(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """(families beside the plots' own that the letters need, letters that no font has)."""
    if not letters:
        return (), letters
    unreadable = frozenset(c for c in letters if not _laid_out(c))
    left = set(letters - unreadable)
    left -= _drawn_by(_own_font(), left)
    chosen: list[str] = []
    if not left:
        return (), unreadable
    for family, path in _installed():
        found = _drawn_by(path, left)
        if found:
            chosen.append(family)
            left -= found
        if not left:
            break
    return tuple(chosen), unreadable | left


def _laid_out(c: str) -> bool:
    """Whether matplotlib can set this letter where it belongs: right-to-left and Indic scripts need a newer one."""
    import matplotlib

    complex_script = unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) in ("Mn", "Mc")
    version = tuple(int(part) for part in matplotlib.__version__.split(".")[:2])
    return not complex_script or version >= LAYS_OUT_SCRIPTS


def _own_font() -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties()))


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """(family, file) of upright fonts, the preferred ones first; fonts newer than matplotlib's list of them too."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {entry.fname for entry in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError) as error:
                logger.debug("font '%s' cannot be read: %s", path, error)
    entries = [entry for entry in fontManager.ttflist if entry.style == "normal"]
    entries.sort(key=lambda entry: str(entry.weight) in ("400", "normal", "regular"))  # these last: they stay
    upright = {entry.name: entry.fname for entry in entries}
    order = {name: position for position, name in enumerate(PREFERRED)}
    families = sorted(upright, key=lambda name: (order.get(name, len(order)), name))
    return tuple((name, upright[name]) for name in families if not name.startswith(NOT_LETTERS))


def _drawn_by(path: str, letters: Iterable[str]) -> set[str]:
    """Those of the letters that a font can draw; none where it has no outlines or cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(path)
        return {c for c in letters if font.get_char_index(ord(c))}
    except (OSError, RuntimeError, ValueError) as error:
        logger.debug("font '%s' cannot be read: %s", path, error)
        return set()


@cache
def _tell_once(package: str) -> None:
    logger.warning(
        "No font here has all letters of the names in the figures: they are shown with numbers and codes (\\u80ba). "
        "Install one, for example %s, and draw them again.",
        package,
    )


def _tell(absent: frozenset[str]) -> None:
    chinese = any(unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for c in absent)
    _tell_once("Noto Sans CJK (Debian, Ubuntu: apt install fonts-noto-cjk)" if chinese else "Noto (fonts-noto-core)")
