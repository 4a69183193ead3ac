"""CSV files that people open in spreadsheet programs: text that stays text, and figures of as many digits as count."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

# A cell that begins so is a formula to spreadsheet programs, and a formula can run things.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
# Apostrophes before one are counted too: so what was written is known from what stands there.
_ESCAPED = re.compile(r"'+(?=[ ']*[=+\-@\t\r\n＝＋－＠])")
_DIGITS = 9  # more than float32 has, so that logits of float32 that differ stay different
BYTE_ORDER_MARK = "\ufeff"


def safe_cell(text: str) -> str:
    """A text that no spreadsheet program takes for a formula: with an apostrophe before it where it might be one.

    Numbers stay as they are; `original_cell` gives the text back. Source: OWASP, CSV injection.
    """
    may_be_formula = text.lstrip(" ").startswith(_FORMULA) and not is_number(text)
    return f"'{text}" if may_be_formula or _ESCAPED.match(text) else text


def original_cell(text: str) -> str:
    """The text of which `safe_cell` made this one."""
    return text[1:] if text[:1] == "'" and safe_cell(text[1:]) == text else text


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a CSV file's text, every cell safe.

    Where there are characters beyond ASCII it begins with a byte order mark, without which Excel takes them for those
    of the local code page.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(safe_cell, row) for row in rows)
    content = text.getvalue()
    return content if content.isascii() else BYTE_ORDER_MARK + content


def probability_text(value: float, limits: Sequence[float] = ()) -> str:
    """A probability in nine digits, counted from the first that is not 0, or not 9 where it is above a half.

    So scores whose logits differ in float32 still differ, however near 0 or 1 they are. It lies on the same side of
    each of `limits` as the probability itself, which may take more digits.
    """
    if not 0 < value < 1:
        return repr(value)
    nines = 0 if value <= 0.5 else -1 - math.floor(math.log10(1 - value))
    for digits in range(_DIGITS, 18):
        text = f"{value:.{digits}g}" if value <= 0.5 else f"{value:.{min(digits + nines, 17)}f}".rstrip("0")
        if 0 < float(text) < 1 and all((float(text) >= limit) == (value >= limit) for limit in limits):
            return text
    return repr(value)


def is_number(text: str) -> bool:
    """Whether Python reads it as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
