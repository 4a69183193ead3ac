"""What the pages of docs/benchmarks are made of: tables in Markdown, and figures as JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def markdown_table(heading: str, rows: Iterable[Sequence[str] | str]) -> str:
    """heading: 'one | two | three'. rows: cells, or such a line each."""
    lines = [row if isinstance(row, str) else " | ".join(row) for row in rows]
    return "\n".join([f"| {heading} |", "|" + " --- |" * (heading.count("|") + 1), *(f"| {line} |" for line in lines)])


def write_page(path: Path, text: str, figures: Any) -> None:
    """The page, and what it was made from as .json beside it."""
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
