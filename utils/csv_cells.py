"""Cells of CSV files that people open in spreadsheet programs."""

from __future__ import annotations

# A cell that begins so is a formula to spreadsheet programs, and a formula can run things.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(text: str) -> str:
    """A text that no spreadsheet program takes for a formula: with an apostrophe before it where it might be one.

    Numbers stay as they are. Source: OWASP, CSV injection.
    """
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) and not is_number(text) else text


def is_number(text: str) -> bool:
    """Whether Python reads it as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
